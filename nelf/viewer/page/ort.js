// Runs networks that kernels.js does not support with ONNX Runtime Web, and chooses its fastest backend.

import { inNdc, raysOf } from "./camera.js";
import { refusalOf, soon } from "./trials.js";
import { decoderInputs } from "./volume.js";

const HEAVY = 20; // milliseconds for the trial image, from which all cores are tried

/** @typedef {{ort: object, session: object, kind: string, count: number}} Session on "webgpu" or "wasm", with threads */

/** An artifact's graph, and the session that draws it. */
export class OnnxRuntime {
  /**
   * @param {object} about
   * @param {object} about.bundle
   * @param {object} about.artifact
   * @param {Uint8Array} about.graph content of its file
   * @param {object} about.lookup of its volume, see lookup.js
   * @param {"webgpu" | "wasm" | "auto"} about.wish
   * @param {number} about.threads requested for WASM, or 0
   * @param {Camera} about.trial of a small image for trials
   * @param {(about: object) => void} about.progress
   * @param {(about: object) => void} about.ready told with what it draws, and why not with WebGPU where that was tried
   * @param {(error: unknown) => string} about.readable
   * @param {(controls: number[]) => void} about.moveTo sets the controls of a moving volume
   * @returns {Promise<OnnxRuntime>}
   */
  static async open(about) {
    const runtime = Object.assign(new OnnxRuntime(), about);
    const adapter = about.wish === "wasm" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
    let refusal = null;
    if (about.wish === "webgpu") {
      if (!adapter) throw new Error("This browser offers no WebGPU adapter; choose WASM or automatic.");
      runtime.session = await runtime.#start("webgpu");
    } else {
      if (adapter) refusal = await runtime.#tryWebGPU().catch(about.readable);
      if (refusal || !adapter) runtime.session = await runtime.#startWasm();
    }
    runtime.#tell(refusal);
    return runtime;
  }

  /**
   * Draw an image.
   * @returns {Promise<{pixels: Uint8ClampedArray, looked: number}>} four bytes for each pixel, and when the look-up was
   *   done
   */
  async draw(camera, time, controls, background) {
    const drawn = await this.#network(this.session, camera, time, controls).catch(async (error) => {
      if (this.session.kind !== "webgpu" || this.wish === "webgpu") throw error;
      this.session = await this.#startWasm(); // adapters are taken away, and their memory ends
      this.#tell(this.readable(error));
      return this.#network(this.session, camera, time, controls);
    });
    const pixels = new Uint8ClampedArray(4 * camera.width * camera.height);
    new Uint32Array(pixels.buffer).fill(new Uint32Array(Uint8Array.of(...background, 255).buffer)[0]);
    if (drawn.values) paint(pixels, camera.width, drawn, background);
    return { pixels, looked: drawn.looked };
  }

  /**
   * Start WebGPU, and compare a small image with that of WASM, since some drivers draw a wrong image, or none.
   * @returns {Promise<string | null>} why WebGPU cannot be used, or null
   */
  async #tryWebGPU() {
    const attempt = await soon(async () => {
      const gpu = await this.#start("webgpu");
      await this.#tried(gpu); // compiles
      return { gpu, drawn: await this.#tried(gpu) };
    });
    if (!attempt) return "it does not come to an end";
    const plain = await this.#start("wasm", "webgpu"); // the same build, so no second download
    const expected = await this.#tried(plain);
    plain.session.release();
    const refusal = refusalOf(attempt.drawn, expected);
    if (refusal) attempt.gpu.session.release();
    else this.session = attempt.gpu;
    return refusal;
  }

  /**
   * Start WASM. One core is left to the page and to other programs, since threads synchronize after each layer; a heavy
   * model uses all cores if that is faster.
   */
  async #startWasm() {
    const cores = Math.min(navigator.hardwareConcurrency || 1, 4);
    if (!self.crossOriginIsolated) return this.#start("wasm"); // only such pages share memory between threads
    if (this.threads) return this.#start("wasm", "wasm", this.threads);
    const few = await this.#start("wasm", "wasm", Math.max(cores - 1, 1));
    const { ms } = await this.#tried(few);
    if (ms < HEAVY || few.count === cores) return few;
    const all = await this.#start("wasm", "wasm", cores);
    const [better, worse] = (await this.#tried(all)).ms < ms ? [all, few] : [few, all];
    worse.session.release();
    return better;
  }

  /** Draw the trial image; see #network. */
  #tried(candidate) {
    const { time, controls } = this.bundle;
    return this.#network(
      candidate,
      this.trial,
      time?.value ?? 0,
      controls.map((control) => control.value),
    );
  }

  /** Create a session on a backend, with the build of that name or another one that includes it. */
  async #start(kind, build = kind, count = 1) {
    const base = new URL("./runtime/", self.location.href).href;
    // The number of threads is fixed per copy of the module.
    const ort = await import(`${base}ort.${build}.min.mjs?threads=${count}`).catch(() => {
      throw new Error(`runtime/ort.${build}.min.mjs: is missing beside the page.`);
    });
    ort.env.wasm.wasmPaths = base;
    ort.env.wasm.numThreads = count;
    this.progress({ name: kind === "webgpu" ? "WebGPU runtime" : "WASM runtime" });
    const options = { executionProviders: [kind], logSeverityLevel: 3 };
    const session = await ort.InferenceSession.create(this.graph, options).catch((error) => {
      throw new Error(`${this.artifact.file}: cannot be opened with ${kind}. ${this.readable(error)}`);
    });
    return { ort, session, kind, count };
  }

  #tell(refusal) {
    const { session, kind, count } = this.session;
    const timed = session.inputNames.includes("time") || Boolean(this.artifact.volume?.motion);
    const runtime = kind === "webgpu" ? "WebGPU" : `WASM, ${count} thread${count > 1 ? "s" : ""}`;
    this.ready({ network: "ONNX Runtime", runtime, timed, notes: refusal ? [`WebGPU is not used: ${refusal}`] : [] });
  }

  /**
   * Compute the inputs for a camera, and run the graph.
   * @returns the output (C, h, w), null if nothing has to be drawn; its rectangle of pixels; the time at which the
   *   inputs were ready; and the milliseconds of both
   */
  async #network({ ort, session }, camera, time, controls) {
    const begin = performance.now();
    this.moveTo([time, ...controls]);
    const { feeds, window } = this.#inputs(ort, session, camera);
    const looked = performance.now();
    if (!feeds) return { values: null, looked, ms: looked - begin };
    if (session.inputNames.includes("time")) feeds.time = new ort.Tensor("float32", [time], [1]);
    if (session.inputNames.includes("controls")) {
      feeds.controls = new ort.Tensor("float32", controls, [1, controls.length]);
    }
    const output = (await session.run(feeds))[this.artifact.output];
    return { values: await output.getData(), window, looked, ms: performance.now() - begin };
  }

  /** The inputs of the artifact's kind, see nelf/export/inputs.py, and their rectangle of pixels. */
  #inputs(ort, session, camera) {
    const { artifact, bundle } = this;
    const tensor = (data, ...shape) => new ort.Tensor("float32", data, shape);
    const window = { top: 0, left: 0, width: camera.width, height: camera.height };
    if (artifact.input === "pose") return { feeds: { c2w: tensor(camera.c2w, 1, 3, 4) }, window };
    const s = bundle.sr_factor;
    if (artifact.input === "features") {
      const part = decoderInputs(this.lookup, camera, s, artifact.size ? null : artifact.window);
      if (!part) return { feeds: null };
      const { top, left, width, height } = part;
      const channels = part.inputs.length / (height * width);
      const feeds = { features: tensor(part.inputs, 1, channels, height, width) };
      return { feeds, window: { top: top * s, left: left * s, width: width * s, height: height * s } };
    }
    const rays = raysOf(camera, bundle.stride);
    const { width, height } = rays;
    if (artifact.input === "points") {
      const channels = session.inputMetadata.find(({ name }) => name === "points").shape[1];
      return { feeds: { points: tensor(pointsOf(rays, bundle, channels / 3), 1, channels, height, width) }, window };
    }
    const origins = new Float32Array(3 * width * height);
    for (let i = 0; i < origins.length; i++) origins[i] = rays.origin[i % 3];
    const feeds = {
      rays_o: tensor(origins, 1, height, width, 3),
      rays_d: tensor(rays.directions, 1, height, width, 3),
    };
    return { feeds, window };
  }
}

/** Composite the network's output, colors and optionally opacity in a rectangle of the image, over a background. */
function paint(pixels, width, { values, window }, [red, green, blue]) {
  const plane = window.width * window.height;
  const opaque = values.length < 4 * plane;
  for (let row = 0, i = 0; row < window.height; row++) {
    let to = 4 * ((window.top + row) * width + window.left);
    for (let column = 0; column < window.width; column++, i++, to += 4) {
      const rest = opaque ? 0 : 1 - values[3 * plane + i];
      pixels[to] = 255 * values[i] + rest * red;
      pixels[to + 1] = 255 * values[plane + i] + rest * green;
      pixels[to + 2] = 255 * values[2 * plane + i] + rest * blue;
    }
  }
}

/** Points on rays, linear from near to far; channel point * 3 + coordinate. */
function pointsOf(rays, { near, far, ndc }, points) {
  const count = rays.width * rays.height;
  const { origins, directions } = inNdc(rays, ndc);
  const out = new Float32Array(3 * points * count);
  for (let p = 0; p < points; p++) {
    const t = near + ((far - near) * p) / (points - 1);
    for (let k = 0; k < 3; k++) {
      const channel = out.subarray((3 * p + k) * count);
      for (let n = 0; n < count; n++) channel[n] = origins[3 * n + k] + t * directions[3 * n + k];
    }
  }
  return out;
}
