// Draws a GridR2L with WebGPU: look-up, motion and network are the compute shaders of shaders.js, and rays, volume and
// features stay on the GPU until the image is complete.

import { filled, frustumOf, inOrder, interleaved, TOGETHER } from "./kernels.js";
import { maskAt, nodesAt } from "./motion.js";
import { compositing, convolving, measuring, moving, painting, preparing } from "./shaders.js";

const TILE = 8; // pixels along a side of a workgroup
const GROUP = 64; // invocations of a workgroup
const FORMAT = "rgba8unorm";
const CLOCK = "timestamp-query"; // the feature of an adapter by which a pass is timed
const STEPS = ["lookup", "decoding", "painting"]; // passes of an image
const TIMES = 16 * STEPS.length; // bytes: begin and end of each, in ns

/** Renders what a Kernels object holds; its decoder has to be set. */
export class WebGpu {
  /**
   * @param {GPUAdapter} adapter
   * @param {import("./kernels.js").Kernels} kernels gives the volume and its motion
   * @param {import("./lookup.js").Walk} walk
   * @param {import("./decoder.js").Decoder} decoder
   * @returns {Promise<WebGpu>}
   */
  static async open(adapter, kernels, walk, decoder) {
    const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
    const requiredFeatures = [CLOCK].filter((name) => adapter.features.has(name));
    const requiredLimits = { maxStorageBufferBindingSize, maxBufferSize };
    const device = await adapter.requestDevice({ requiredFeatures, requiredLimits });
    device.pushErrorScope("validation");
    device.pushErrorScope("out-of-memory");
    const gpu = new WebGpu(device, kernels);
    await gpu.#prepare(walk, decoder);
    for (let scope = 0; scope < 2; scope++) {
      const error = await device.popErrorScope();
      if (error) throw error;
    }
    return gpu;
  }

  constructor(device, kernels) {
    Object.assign(this, { device, kernels, motion: kernels.motion, size: [0, 0], ms: {} });
    this.canvas = new OffscreenCanvas(1, 1);
    this.context = this.canvas.getContext("webgpu");
    this.context.configure({ device, format: FORMAT, alphaMode: "opaque" });
    this.view = device.createBuffer({ size: 4 * 28, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
    if (device.features.has(CLOCK)) {
      const { MAP_READ, COPY_DST, COPY_SRC, QUERY_RESOLVE } = GPUBufferUsage;
      this.clock = {
        queries: device.createQuerySet({ type: "timestamp", count: 2 * STEPS.length }),
        resolved: device.createBuffer({ size: TIMES, usage: QUERY_RESOLVE | COPY_SRC }),
        read: device.createBuffer({ size: TIMES, usage: MAP_READ | COPY_DST }),
      };
    }
    this.lost = new Promise((resolve) => device.lost.then(({ message }) => resolve(message)));
  }

  /** Upload the volume and the network, and compile the shaders. */
  async #prepare(walk, { s, channels, layers, environment, rounding }) {
    const { kernels, motion } = this;
    const { frame, inputPitch: pitch } = kernels;
    const volume = { resolution: frame.resolution, aabb: frame.aabb, channels };
    const outputs = layers.map((layer) => filled(layer.outputs, TOGETHER));
    const reach = layers.length / 2 + 1; // of the first layer
    const uploaded = layers.map((layer, k) => {
      const inputs = k ? outputs[k - 1] : pitch;
      const adds = k > 0 && k % 2 === 0;
      const code = convolving(layer, inputs, outputs[k], reach - Math.ceil(k / 2), adds, k ? null : rounding);
      const weights = this.#hold(inOrder(layer.weights, layer.side, layer.inputs, layer.outputs, inputs));
      const bias = new Float32Array(outputs[k]);
      bias.set(layer.bias);
      return { code, adds, weights, bias: this.#hold(bias), groups: outputs[k] / TOGETHER };
    });
    const layout = { s, pitch, channels, outputs: outputs[outputs.length - 1], texels: environment?.texels ?? 0 };
    const codes = [compositing(volume, walk, layout), preparing(layout), measuring(reach)];
    const [paint, fill, composite, prepare, measure, ...convolutions] = await Promise.all([
      this.#render(painting(layout)),
      motion && this.#compute(moving(volume, { ...kernels.canonical, channels }, motion)),
      ...[...codes, ...uploaded.map(({ code }) => code)].map((code) => this.#compute(code)),
    ]);
    this.layers = uploaded.map((layer, k) => ({ ...layer, pipeline: convolutions[k] }));
    this.volume = this.#upload(kernels.arrays(frame));
    this.environment = environment && this.#hold(interleaved(environment));
    Object.assign(this, { s, pitch, outputs, composite, prepare, measure, paint });
    if (motion) {
      const [, , depth, height, width] = motion.grid;
      const own = this.#upload(kernels.arrays(kernels.canonical));
      this.fill = { pipeline: fill, own, nodes: this.#empty(16 * depth * height * width) };
    }
  }

  #compute(code) {
    const module = this.device.createShaderModule({ code });
    return this.device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main" } });
  }

  #render(code) {
    const module = this.device.createShaderModule({ code });
    return this.device.createRenderPipelineAsync({
      layout: "auto",
      vertex: { module, entryPoint: "cover" },
      fragment: { module, entryPoint: "main", targets: [{ format: FORMAT }] },
    });
  }

  #empty(bytes) {
    return this.device.createBuffer({ size: filled(bytes, 16), usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST });
  }

  /** A buffer with the content of an array. */
  #hold(values) {
    const buffer = this.#empty(values.byteLength);
    this.#write(buffer, values);
    return buffer;
  }

  /** Write an array; four bytes at a time, so that up to three zeros may follow it. */
  #write(buffer, values) {
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    const whole = bytes.length & ~3;
    const rest = new Uint8Array(bytes.length - whole ? 4 : 0);
    rest.set(bytes.subarray(whole));
    this.device.queue.writeBuffer(buffer, 0, bytes, 0, whole);
    this.device.queue.writeBuffer(buffer, whole, rest);
  }

  #upload(arrays) {
    return Object.fromEntries(Object.entries(arrays).map(([name, values]) => [name, this.#hold(values)]));
  }

  /** See Lookup.set. */
  set(controls) {
    const { device, fill, kernels, motion, volume } = this;
    const mask = maskAt(motion, controls);
    if (mask !== this.mask) {
      this.mask = mask;
      kernels.choose(controls);
      const { words, clearance } = kernels.arrays(kernels.frame);
      this.#write(volume.words, words);
      this.#write(volume.clearance, clearance);
    }
    this.#write(fill.nodes, nodesAt(motion, controls));
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    const { own, nodes } = fill;
    const bound = [nodes, volume.words, own.words, own.density, own.features, volume.density, volume.features];
    const [depth, height, width] = kernels.frame.resolution;
    this.#dispatch(pass, fill.pipeline, this.#bind(fill.pipeline, bound), Math.ceil(width / GROUP), height, depth);
    pass.end();
    device.queue.submit([encoder.finish()]);
  }

  #bind(pipeline, buffers) {
    const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
    return this.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  }

  #dispatch(pass, pipeline, group, ...counts) {
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.dispatchWorkgroups(...counts);
  }

  /** Allocate what depends on the size of the image, and bind all buffers. */
  #resize(width, height) {
    const { s, pitch, outputs, view, volume, layers } = this;
    for (const buffer of this.scratch ?? []) buffer.destroy();
    const blocks = (width * height) / (s * s);
    const [inputs, peaks, distances] = [4 * pitch, 4, 4].map((bytes) => this.#empty(bytes * blocks));
    const most = Math.max(...outputs);
    const [around, hidden, next] = [0, 1, 2].map(() => this.#empty(4 * most * blocks)); // of a residual block
    this.scratch = [inputs, peaks, distances, around, hidden, next];
    this.passes = [
      [this.composite, [view, volume.words, volume.clearance, volume.density, volume.features, inputs]],
      [this.prepare, [view, inputs, peaks]],
      [this.measure, [view, peaks, distances]],
    ];
    let [from, free] = [around, next];
    layers.forEach(({ pipeline, adds, weights, bias }, k) => {
      const given = k === 0 ? inputs : adds ? hidden : from;
      const to = k === 0 ? from : adds || k === layers.length - 1 ? free : hidden;
      this.passes.push([pipeline, [view, distances, given, weights, bias, to, ...(adds ? [from] : [])]]);
      if (adds) [from, free] = [free, from];
    });
    this.passes = this.passes.map(([pipeline, buffers]) => [pipeline, this.#bind(pipeline, buffers)]);
    const drawn = [view, inputs, peaks, distances, free, ...(this.environment ? [this.environment] : [])];
    this.painted = this.#bind(this.paint, drawn);
    [this.canvas.width, this.canvas.height] = this.size = [width, height];
  }

  /** Free all memory of the GPU. */
  close() {
    this.device.destroy();
  }

  /**
   * Draw an image.
   * @param {Camera} camera
   * @param {number[]} background color for networks without environment map, from 0 to 255
   * @returns {Promise<ImageBitmap>}
   */
  async draw({ c2w, fx, fy, cx, cy, ndc, width, height }, background) {
    const { device, s } = this;
    if (this.size[0] !== width || this.size[1] !== height) this.#resize(width, height);
    const view = new Float32Array([...c2w, fx, fy, cx, cy, ...frustumOf(ndc), 0, ...background, 0, 0, 0, 0, 0]);
    new Uint32Array(view.buffer).set([width, height, width / s, height / s], 24);
    device.queue.writeBuffer(this.view, 0, view);
    const encoder = device.createCommandEncoder();
    const blocks = Math.ceil((width * height) / (s * s) / GROUP);
    const [composite, ...rest] = this.passes;
    const lookup = encoder.beginComputePass(this.#timed("lookup"));
    this.#dispatch(lookup, ...composite, Math.ceil(width / TILE), Math.ceil(height / TILE));
    lookup.end();
    const decoding = encoder.beginComputePass(this.#timed("decoding"));
    rest.forEach((each, k) => this.#dispatch(decoding, ...each, blocks, this.layers[k - 2]?.groups ?? 1));
    decoding.end();
    const target = { view: this.context.getCurrentTexture().createView(), loadOp: "clear", storeOp: "store" };
    const last = encoder.beginRenderPass({ colorAttachments: [target], ...this.#timed("painting") });
    last.setPipeline(this.paint);
    last.setBindGroup(0, this.painted);
    last.draw(3);
    last.end();
    if (this.clock) {
      const { queries, resolved, read } = this.clock;
      encoder.resolveQuerySet(queries, 0, 2 * STEPS.length, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, read, 0, TIMES);
    }
    device.queue.submit([encoder.finish()]);
    const bitmap = this.canvas.transferToImageBitmap();
    await (this.clock ? this.#readClock() : device.queue.onSubmittedWorkDone());
    return bitmap;
  }

  /** The part of a pass's description by which it is timed, if it can be. */
  #timed(step) {
    if (!this.clock) return {};
    const first = 2 * STEPS.indexOf(step);
    const { queries: querySet } = this.clock;
    return { timestampWrites: { querySet, beginningOfPassWriteIndex: first, endOfPassWriteIndex: first + 1 } };
  }

  /** Wait for the image, and note in ``ms`` how long each of its steps took. */
  async #readClock() {
    const { read } = this.clock;
    await read.mapAsync(GPUMapMode.READ);
    const at = new BigUint64Array(read.getMappedRange());
    this.ms = Object.fromEntries(STEPS.map((step, k) => [step, Number(at[2 * k + 1] - at[2 * k]) / 1e6]));
    read.unmap();
  }
}
