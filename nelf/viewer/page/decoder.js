// Recognizes the network of a GridR2L in its ONNX graph: decode of nelf/lightfields/grid_r2l.py, as written by
// nelf/export/graph.py. Any other graph is left to ONNX Runtime.

import { readGraph } from "./onnx.js";

/**
 * @typedef {object} Layer a convolution, and what follows it
 * @property {number} side of its kernel, 1 or 3
 * @property {number} inputs channels
 * @property {number} outputs channels
 * @property {"linear" | "relu" | "gelu"} activation
 * @property {Float32Array} weights (outputs, inputs, side, side)
 * @property {Float32Array} bias (outputs)
 * @property {Rounding | null} before the activation
 * @property {Rounding | null} after the activation
 * @property {Rounding | null} sum after the residual sum
 *
 * @typedef {{scale: number, zero: number}} Rounding to 8 bits: scale and zero point
 *
 * @typedef {object} Decoder
 * @property {number} s pixels along a side of a block
 * @property {number} channels of the volume
 * @property {Layer[]} layers the first, two of each residual block, the last
 * @property {Rounding | null} rounding of the first layer's inputs
 * @property {{texels: number, values: Float32Array} | null} environment map of the background (3, texels, texels)
 */

const UNKNOWN = Symbol("another graph");
const MOST_BLOCKS = 30;
const MOST_STEPS = 1000;

/**
 * @param {Uint8Array} file
 * @param {object} artifact of bundle.json
 * @param {number} s pixels along a side of a block
 * @returns {Decoder | null} null for another graph
 */
export function readDecoder(file, artifact, s) {
  const search = new Search(readGraph(file, artifact.file));
  let found;
  try {
    found = search.decoder(s, artifact.volume.features);
  } catch (error) {
    if (error !== UNKNOWN) throw error;
    return null;
  }
  check(found, artifact, s);
  return { ...found, s, channels: artifact.volume.features };
}

/** Refuse layers that do not fit together or do not fit the volume. */
function check({ layers, environment }, { file, volume }, s) {
  const need = (right, what) => {
    if (!right) throw new Error(`${file}: ${what}.`);
  };
  let given = (volume.features + 1) * s * s + 16;
  layers.forEach(({ side, inputs, outputs, weights, bias }, k) => {
    need(inputs === given, `layer ${k} takes ${inputs} channels, but is given ${given}`);
    need(weights.length === outputs * inputs * side * side, `layer ${k} has too few weights or too many`);
    need(bias.length === outputs, `layer ${k} gives ${outputs} channels, but has ${bias.length} biases`);
    const added = k > 0 && k % 2 === 0;
    const expected = k === layers.length - 1 ? 4 * s * s : added ? layers[0].outputs : outputs;
    need(outputs === expected, `layer ${k} gives ${outputs} channels, but ${expected} are needed`);
    need(weights.every(Number.isFinite) && bias.every(Number.isFinite), `layer ${k} has numbers that are not finite`);
    given = outputs;
  });
  need(!environment || environment.values.every(Number.isFinite), "its environment has numbers that are not finite");
}

/** Matches a graph, from its output backwards, and throws UNKNOWN where it differs. */
class Search {
  constructor(graph) {
    this.graph = graph;
    this.makers = new Map(graph.nodes.flatMap((node) => node.outputs.map((output) => [output, node])));
    this.used = new Set();
    this.steps = 0; // of formulas, limited because a malicious graph could make them grow exponentially
  }

  decoder(s, channels) {
    const { inputs, outputs, nodes } = this.graph;
    need(inputs.length === 1 && outputs.length === 1);
    const [block, [features]] = [s * s, inputs];
    let [drawn, environment] = [outputs[0], null];
    if (this.makers.get(drawn)?.kind === "Clip") {
      const sum = this.unary("Clip", drawn, 0, 1);
      const [first, behind] = this.binary("Add", sum);
      drawn = this.slice(first, 0, 3);
      const [rest, colors] = this.binary("Mul", behind);
      const [one, opacity] = this.binary("Sub", rest);
      need(this.number(one) === 1 && this.slice(opacity, 3, Infinity) === drawn);
      environment = this.environment(colors, features, s);
    }
    const [clamped, opacities] = this.binary("Min", drawn);
    need(this.slice(opacities, 3, Infinity) === clamped);
    const shuffle = this.maker("DepthToSpace", this.unary("Clip", clamped, 0, 1));
    need(shuffle.attributes.mode === "CRD" && shuffle.attributes.blocksize === s);
    const [seen, correction] = this.binary("Add", shuffle.inputs[0]);
    const together = this.maker("Concat", seen);
    need(together.attributes.axis === 1 && together.inputs.length === 2);
    need(this.slice(together.inputs[0], 0, 3 * block) === features);
    const [near, tail] = this.binary("Mul", correction);
    const opacity = this.near(near);
    need(opacity === together.inputs[1]);
    const { layers, rounding } = this.layers(tail, features);
    need(this.slice(opacity, channels * block, (channels + 1) * block) === features);
    need(this.used.size === nodes.length);
    return { layers, rounding, environment };
  }

  /** Matches min(1, twice the largest opacity of a block and its neighbors); returns the opacities. */
  near(value) {
    const pool = this.maker("MaxPool", this.unary("Clip", value, null, 1));
    const { kernel_shape: sides, pads, strides, dilations, ceil_mode: up = 0 } = pool.attributes;
    need(same(sides, [3, 3]) && same(pads, [1, 1, 1, 1]) && same(strides ?? [1, 1], [1, 1]) && !up);
    need(same(dilations ?? [1, 1], [1, 1]));
    const [peak, two] = this.binary("Mul", pool.inputs[0]);
    need(this.number(two) === 2);
    const most = this.maker("ReduceMax", peak);
    need(most.attributes.keepdims !== 0 && this.number(most.inputs[1]) === 1);
    return most.inputs[0];
  }

  /** The convolutions from the graph's features to a value, and the rounding of the features. */
  layers(value, features) {
    const layers = [this.convolution(this.rounded(value), 3)];
    let { from } = layers[0];
    while (this.makers.get(from.value)?.kind === "Add" && layers.length < 2 * MOST_BLOCKS) {
      const [around, inner] = this.binary("Add", from.value).map((each) => this.rounded(each));
      const second = { ...this.convolution(inner, 1), sum: from.rounding };
      const first = this.activated(second.from, 3);
      need(alike(first.from, around));
      layers.unshift(first, second);
      from = around;
    }
    const head = this.activated(from, 1);
    need(head.from.value === features);
    return { layers: [head, ...layers], rounding: head.from.rounding };
  }

  /** The convolution before an activation; a ReLU may be missing, as rounding with zero point 0 does the same. */
  activated({ value, rounding }, side) {
    const { kind } = this.makers.get(value) ?? {};
    if (kind === "Conv") {
      need(rounding?.zero === 0);
      return this.convolution({ value, rounding }, side);
    }
    need(kind === "Relu" || kind === "Gelu");
    const node = this.maker(kind, value);
    need((node.attributes.approximate ?? "none") === "none");
    const layer = this.convolution(this.rounded(node.inputs[0]), side);
    return { ...layer, before: layer.after, after: rounding, activation: kind.toLowerCase() };
  }

  convolution({ value, rounding }, side) {
    const node = this.maker("Conv", value);
    const { group = 1, pads, strides = [1, 1], dilations = [1, 1], auto_pad: automatic = "NOTSET" } = node.attributes;
    need(group === 1 && same(strides, [1, 1]) && same(dilations, [1, 1]) && automatic === "NOTSET");
    need(same(pads ?? [0, 0, 0, 0], new Array(4).fill((side - 1) / 2)));
    const [from, weight, bias] = node.inputs;
    const { shape, values } = this.constant(weight);
    need(shape.length === 4 && shape[2] === side && shape[3] === side && values instanceof Float32Array);
    const [outputs, inputs] = shape;
    const sizes = { side, inputs, outputs, weights: values, bias: this.constant(bias).values };
    return { ...sizes, from: this.rounded(from), activation: "linear", before: null, after: rounding, sum: null };
  }

  /** The value before rounding, and the rounding; the value itself if it is not rounded. */
  rounded(value) {
    if (this.makers.get(value)?.kind !== "DequantizeLinear") return { value, rounding: null };
    const [stored, scale, zero] = this.maker("DequantizeLinear", value).inputs;
    const [from, ...by] = this.maker("QuantizeLinear", stored).inputs;
    const rounding = { scale: this.number(scale), zero: this.number(zero) };
    need(this.number(by[0]) === rounding.scale && this.number(by[1]) === rounding.zero && rounding.scale > 0);
    need(this.constant(zero).values instanceof Uint8Array);
    return { value: from, rounding };
  }

  /** The environment map, if a value is its color in the directions of the pixels. */
  environment(value, features, s) {
    const sample = this.maker("GridSample", value);
    const { align_corners: aligned = 0, mode = "linear", padding_mode: padding } = sample.attributes;
    need(!aligned && mode === "linear" && padding === "border");
    let [map] = sample.inputs;
    if (this.makers.has(map)) [map] = this.maker("Expand", map).inputs; // expanded to the batch size of 1
    const { shape, values } = this.constant(map);
    need(same(shape, [1, 3, shape[2], shape[2]]));
    need(this.formula(sample.inputs[1]) === unfolded(features, s));
    return { texels: shape[2], values };
  }

  /** The formula of a value as text. */
  formula(value) {
    const node = this.makers.get(value);
    if (!node) {
      const constant = this.graph.constants.get(value);
      return constant ? `${Array.from(constant.values)}` : value;
    }
    need(this.steps++ < MOST_STEPS);
    this.used.add(node);
    const about = ["axis", "perm", "mode", "coordinate_transformation_mode"].map((key) => node.attributes[key]);
    const inputs = node.inputs.map((input) => this.formula(input));
    return `${node.kind}(${[...inputs, ...about.filter((each) => each !== undefined)].join(";")})`;
  }

  /** The node that makes a value. */
  maker(kind, value) {
    const node = this.makers.get(value);
    need(node?.kind === kind);
    this.used.add(node);
    return node;
  }

  binary(kind, value) {
    const { inputs } = this.maker(kind, value);
    need(inputs.length === 2);
    return inputs;
  }

  /** The input of a Clip with these limits, null for none. */
  unary(kind, value, ...limits) {
    const [input, ...given] = this.maker(kind, value).inputs;
    need(limits.every((limit, k) => (given[k] ? this.number(given[k]) : null) === limit));
    return input;
  }

  /** The input of a Slice of channels first to last (excluded). */
  slice(value, first, last) {
    const [input, start, end, axes, steps] = this.maker("Slice", value).inputs;
    const to = this.number(end);
    need(this.number(start) === first && (to === last || (last === Infinity && to > 2 ** 31 - 2)));
    need(this.number(axes) === 1 && (!steps || this.number(steps) === 1));
    return input;
  }

  number(name) {
    const { values } = this.constant(name);
    need(values.length === 1);
    return values[0];
  }

  /** A constant of the graph, possibly behind the node that converts it from 16 or 8 bits. */
  constant(name) {
    const { constants } = this.graph;
    const found = constants.get(name);
    if (found) return found;
    const { kind } = this.makers.get(name) ?? {};
    if (kind === "Cast") {
      const cast = constants.get(this.maker(kind, name).inputs[0]);
      need(cast);
      return cast;
    }
    const [levels, scales, zeros] = this.maker("DequantizeLinear", name).inputs.map((each) => constants.get(each));
    need(levels && scales && zeros && scales.values.length === zeros.values.length);
    const each = levels.values.length / scales.values.length; // numbers of an output
    const of = (value, k) => (value - zeros.values[Math.floor(k / each)]) * scales.values[Math.floor(k / each)];
    return { shape: levels.shape, values: Float32Array.from(levels.values, of) };
  }
}

/** The formula of octahedral in nelf/lightfields/environment.py, for linearly interpolated directions of blocks. */
function unfolded(features, s) {
  const given = `Slice(${features};-15;-12;1;1)`;
  const harmonic = (k) => `Squeeze(Slice(${given};${k};${k + 1};1);1)`; // y, z and x
  const [x, y, z] = [`Neg(${harmonic(2)})`, `Neg(${harmonic(0)})`, harmonic(1)].map((each) => `Unsqueeze(${each};1)`);
  const blocks = `Concat(${x};${y};${z};1)`;
  const pixels = `Transpose(Resize(${blocks};;1,1,${s},${s};linear;half_pixel);0,2,3,1)`;
  const scaled = `Div(${pixels};ReduceSum(Abs(${pixels});-1))`;
  const [u, v, w] = [0, 1, 2].map((k) => `Squeeze(Slice(${scaled};${k};${k + 1};-1);-1)`);
  const folded = (along, across) => `Mul(Sub(1;Abs(${across}));Where(Less(${along};0);-1;1))`;
  const pair = [
    [u, v],
    [v, u],
  ].map(([a, b]) => `Unsqueeze(Where(Less(${w};0);${folded(a, b)};${a});-1)`);
  return `Concat(${pair.join(";")};-1)`;
}

function need(condition) {
  if (!condition) throw UNKNOWN;
}

const alike = (a, b) =>
  a.value === b.value && a.rounding?.scale === b.rounding?.scale && a.rounding?.zero === b.rounding?.zero;

const same = (a, b) => a?.length === b.length && a.every((value, k) => value === b[k]);
