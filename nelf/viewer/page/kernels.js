// lookup.js in WebAssembly with SIMD, and the network of decoder.js: calls nelf/viewer/kernels/*.c and lays out their
// memory.

import { maskAt, nodesAt } from "./motion.js";

const PAGE = 65536; // bytes, of WebAssembly's memory
const ALIGNED = 16;
const KEPT = 2 ** 26; // bytes for caching data of all masks of a motion; beyond, only one is cached
export const TOGETHER = 8; // channels that are computed together, see decoder.c
const ACTIVATIONS = ["linear", "relu", "gelu"]; // in the order of decoder.c
const [WORDS, CLEARANCE] = [36, 0]; // byte offsets of these pointers in the structs Volume and Walk

/** @returns {Promise<WebAssembly.Module | null>} null if the browser does not support SIMD */
export async function compileKernels() {
  const response = await fetch(new URL("kernels.wasm", self.location.href)).catch(() => null);
  if (!response?.ok) throw new Error("kernels.wasm: is missing beside the page.");
  return WebAssembly.compile(await response.arrayBuffer()).catch(() => null);
}

/**
 * Open the look-up of a volume in WebAssembly.
 * @param {WebAssembly.Module} compiled
 * @param {import("./volume.js").Volume} volume
 * @param {import("./lookup.js").Walk} walk
 * @param {import("./motion.js").Motion | null} motion of the volume
 * @returns {Promise<Kernels>}
 */
export async function openKernels(compiled, volume, walk, motion) {
  const memory = new WebAssembly.Memory({ initial: 8 });
  const { exports } = await WebAssembly.instantiate(compiled, { env: { memory } });
  return new Kernels(exports, new Arena(memory, exports.__heap_base.value), volume, walk, motion);
}

/** Allocates WebAssembly's memory; nothing is freed. Views are invalid once the memory grows, addresses are not. */
class Arena {
  constructor(memory, start) {
    this.memory = memory;
    this.end = start;
  }

  /** Allocate bytes, and return their address. */
  take(bytes) {
    const start = Math.ceil(this.end / ALIGNED) * ALIGNED;
    this.end = start + bytes;
    this.reach(this.end);
    return start;
  }

  /** Grow the memory to an address, and a vector beyond. */
  reach(end) {
    const pages = Math.ceil((end + ALIGNED) / PAGE) - this.memory.buffer.byteLength / PAGE;
    if (pages > 0) this.memory.grow(pages);
  }

  view(Type, start, length) {
    return new Type(this.memory.buffer, start, length);
  }

  /** Allocate a copy of an array, and return its address. */
  hold(values) {
    const start = this.take(values.byteLength);
    this.view(values.constructor, start, values.length).set(values);
    return start;
  }

  /** Allocate a C struct from arrays of 32-bit members, and return its address. */
  struct(...members) {
    const start = this.take(4 * members.reduce((sum, each) => sum + each.length, 0));
    let at = start;
    for (const each of members) {
      this.view(each.constructor, at, each.length).set(each);
      at += each.byteLength;
    }
    return start;
  }
}

const ints = (...numbers) => Int32Array.from(numbers);
const floats = (...numbers) => Float32Array.from(numbers);

/** Has the interface of Lookup in lookup.js, and renders the network, too. */
class Kernels {
  constructor(exports, arena, volume, walk, motion) {
    Object.assign(this, { exports, arena, motion, channels: volume.channels });
    const { resolution, aabb, rows, channels } = volume;
    const own = this.#grid(resolution, aabb, rows);
    this.frame = motion ? this.#grid(motion.resolution, motion.frame, motion.rows) : own;
    const [depth, height, width] = this.frame.resolution;
    this.bits = arena.take(Math.max(own.corners, this.frame.corners) / 8 + 1);
    this.#number(own, volume.mask);
    arena.view(Float32Array, own.density, rows).set(volume.density);
    const [features, stride] = [arena.view(Float32Array, own.features, rows * own.stride), own.stride];
    for (let row = 0; row < rows; row++) {
      for (let k = 0; k < channels; k++) features[row * stride + k] = volume.features[row * channels + k];
    }
    this.pitch = Math.ceil((width - 1) / 16) * 16 + 32; // see cells.c
    this.distances = arena.take(((depth + 1) * (height + 1) + 1) * this.pitch);
    this.clearance = arena.take(this.frame.corners);
    const { step, min_alpha: minAlpha, min_transmittance: minLight } = walk;
    const limits = floats(step, minAlpha, minLight, Math.log(minAlpha / (1 - minAlpha)));
    this.walk = arena.struct(ints(this.clearance), limits);
    if (motion) this.#prepare(own);
    else exports.measure_clearance(own.pointer, this.distances, this.pitch, this.clearance);
    this.camera = arena.take(4 * 21);
    this.hit = arena.take(4 * 4);
    this.target = arena.take(4 * 4);
    this.background = arena.take(4 * 3);
    this.free = arena.take(0); // scratch memory begins here; its size depends on the image
  }

  /** Allocate a volume: the words of its corners, and its rows, with one more for corners that do not exist. */
  #grid(resolution, aabb, rows) {
    const { arena, channels } = this;
    const [depth, height, width] = resolution;
    const stride = Math.ceil(channels / 4) * 4; // numbers from one row of features to the next
    const words = arena.take(this.#wordBytes(resolution));
    const density = arena.take(4 * (rows + 1));
    const features = arena.take(4 * (rows + 1) * stride);
    const pointer = arena.struct(
      ints(depth, height, width),
      floats(...aabb),
      ints(words, density, features, rows, channels),
    );
    return { resolution, aabb, corners: depth * height * width, stride, words, density, features, rows, pointer };
  }

  /** Store which corners of a volume exist. */
  #number({ resolution, words }, mask) {
    this.arena.view(Uint8Array, this.bits, mask.length).set(mask);
    this.exports.number_corners(this.bits, ...resolution, words);
  }

  /** Prepare for frames of a canonical volume. */
  #prepare(canonical) {
    const { arena, motion } = this;
    arena.view(Float32Array, canonical.density, canonical.rows + 1)[canonical.rows] = motion.empty;
    const [, , depth, height, width] = motion.grid;
    this.nodes = arena.take(4 * 4 * depth * height * width);
    this.line = arena.take(4 * 4 * width);
    this.move = arena.struct(ints(depth, height, width), floats(...motion.aabb), ints(this.nodes));
    this.canonical = canonical;
    const { corners, words } = this.frame;
    const bytes = this.#wordBytes(this.frame.resolution);
    const count = (bytes + corners) * motion.masks.length <= KEPT ? motion.masks.length : 1;
    this.kept = [{ words, clearance: this.clearance }];
    while (this.kept.length < count) this.kept.push({ words: arena.take(bytes), clearance: arena.take(corners) });
  }

  #wordBytes([depth, height, width]) {
    return depth * height * Math.ceil(width / 32) * 8;
  }

  /** The arrays of a volume, the frame or the canonical one; valid until the next call. */
  arrays({ resolution, corners, stride, words, density, features, rows }) {
    const { arena, frame } = this;
    const moment = density === frame.density ? this.moment ?? { words, clearance: this.clearance } : null;
    return {
      words: arena.view(Uint32Array, moment?.words ?? words, this.#wordBytes(resolution) / 4),
      density: arena.view(Float32Array, density, rows + 1),
      features: arena.view(Float32Array, features, (rows + 1) * stride),
      ...(moment && { clearance: arena.view(Uint8Array, moment.clearance, corners) }),
    };
  }

  /** See Lookup.set. */
  set(controls) {
    const { arena, canonical, exports, frame, motion } = this;
    this.choose(controls);
    const nodes = nodesAt(motion, controls);
    arena.view(Float32Array, this.nodes, nodes.length).set(nodes);
    exports.fill_frame(canonical.pointer, this.move, frame.pointer, this.line);
  }

  /** Set which corners of the frame exist. */
  choose(controls) {
    const { arena, exports, frame, motion } = this;
    const mask = maskAt(motion, controls);
    const kept = this.kept[mask % this.kept.length];
    arena.view(Int32Array, frame.pointer + WORDS, 1)[0] = kept.words;
    arena.view(Int32Array, this.walk + CLEARANCE, 1)[0] = kept.clearance;
    if (kept.mask !== mask) {
      kept.mask = mask;
      this.#number({ ...frame, words: kept.words }, motion.masks[mask]);
      exports.measure_clearance(frame.pointer, this.distances, this.pitch, kept.clearance);
    }
    this.moment = kept;
  }

  /** See Lookup.composite. */
  composite(camera, s) {
    const blocks = (camera.width * camera.height) / (s * s);
    const size = (this.channels + 1) * camera.width * camera.height;
    this.arena.reach(this.free + 4 * size);
    this.#look(camera, s, [blocks, 1, size]);
    const [top, bottom, left, right] = this.arena.view(Int32Array, this.hit, 4);
    return { planes: this.arena.view(Float32Array, this.free, size), hit: { top, bottom, left, right } };
  }

  /** Composite into scratch memory; channel and block are strides, size is the total, in floats. */
  #look({ c2w, fx, fy, cx, cy, ndc, width, height }, s, [channel, block, size]) {
    const { arena, exports } = this;
    arena.view(Float32Array, this.camera, 19).set([...c2w, fx, fy, cx, cy, ...frustumOf(ndc)]);
    arena.view(Int32Array, this.camera + 4 * 19, 2).set([width, height]);
    arena.view(Int32Array, this.target, 4).set([this.free, channel, block, size]);
    exports.composite(this.frame.pointer, this.walk, this.camera, s, this.target, this.hit);
  }

  /**
   * Set the network that renders the composited features.
   * @param {import("./decoder.js").Decoder} decoder
   */
  setDecoder({ s, channels, layers, environment, rounding }) {
    const { arena } = this;
    const pitch = filled((channels + 1) * s * s + 16, 4);
    const structs = layers.flatMap(({ side, inputs, outputs, activation, weights, bias, before, after, sum }, k) => {
      const given = k ? filled(inputs, TOGETHER) : pitch;
      const ordered = arena.hold(inOrder(weights, side, inputs, outputs, given));
      const biases = new Float32Array(filled(outputs, TOGETHER));
      biases.set(bias);
      const about = ints(side, given, biases.length, ACTIVATIONS.indexOf(activation), ordered, arena.hold(biases));
      return [about, floats(...[before, after, sum].flatMap(levels))];
    });
    const [texels, map] = environment ? [environment.texels, arena.hold(interleaved(environment))] : [0, 0];
    const sizes = ints(s, channels, pitch, layers.length / 2 - 1, arena.struct(...structs), texels, map);
    this.decoder = arena.struct(sizes, floats(...levels(rounding)));
    Object.assign(this, { s, inputPitch: pitch, free: arena.take(0) });
  }

  /**
   * Draw an image.
   * @param {Camera} camera
   * @param {number[]} background color for networks without environment map, from 0 to 255
   * @returns {{pixels: Uint8ClampedArray, looked: number}} RGBA bytes, valid until the next call, and the time at which
   *   the look-up ended
   */
  draw(camera, background) {
    const { arena, exports, s, inputPitch: pitch } = this;
    const { width, height } = camera;
    arena.view(Int32Array, this.camera + 4 * 19, 2).set([width, height]);
    const inputs = ((width * height) / (s * s)) * pitch; // with padding for the last group of blocks
    const memory = this.free + filled(4 * (inputs + 4 * pitch), ALIGNED);
    const pixels = memory + exports.room_for(this.decoder, this.camera);
    arena.reach(pixels + 4 * width * height);
    arena.view(Float32Array, this.background, 3).set(background);
    this.#look(camera, s, [1, pitch, inputs]);
    const looked = performance.now();
    arena.view(Uint32Array, pixels, width * height).fill(new Uint32Array(Uint8Array.of(...background, 255).buffer)[0]);
    exports.decode(this.decoder, this.camera, this.free, memory, this.background, pixels);
    return { pixels: arena.view(Uint8ClampedArray, pixels, 4 * width * height), looked };
  }
}

/** A rounding as decoder.c reads it; a scale of 0 means none. */
const levels = (rounding) => (rounding ? [rounding.scale, rounding.zero] : [0, 0]);

/** Near, half width and half height of NDC; near is 0 for rays in scene coordinates. */
export const frustumOf = (ndc) => (ndc ? [ndc.near, ndc.half_width, ndc.half_height] : [0, 1, 1]);

/** Round up to a multiple. */
export const filled = (count, multiple) => Math.ceil(count / multiple) * multiple;

/** Weights (outputs, inputs, side, side) as decoder.c reads them: (outputs / 8, side, side, inputs, 8), zeros added. */
export function inOrder(weights, side, inputs, outputs, given) {
  const ordered = new Float32Array(filled(outputs, TOGETHER) * side * side * given);
  let from = 0;
  for (let o = 0; o < outputs; o++) {
    const first = Math.floor(o / TOGETHER) * side * side * given;
    for (let i = 0; i < inputs; i++) {
      for (let k = 0; k < side * side; k++) {
        ordered[(first + k * given + i) * TOGETHER + (o % TOGETHER)] = weights[from++];
      }
    }
  }
  return ordered;
}

/** A map (3, texels, texels) as (texels, texels, 4), padded. */
export function interleaved({ texels, values }) {
  const count = texels * texels;
  const map = new Float32Array(4 * count);
  for (let k = 0; k < 3; k++) for (let i = 0; i < count; i++) map[4 * i + k] = values[k * count + i];
  return map;
}
