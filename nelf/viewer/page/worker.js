// Draws: owns the ONNX session and the volume's look-up, so that the page never waits. It answers {type: "draw"} with
// {type: "frame"}, and tells {type: "progress" | "ready" | "failed"} of what it opens.

import { inNdc, raysOf, shifted } from "./camera.js";
import { load } from "./files.js";
import { openKernels } from "./kernels.js";
import { Lookup } from "./lookup.js";
import { readMotion } from "./motion.js";
import { decoderInputs, readVolume } from "./volume.js";

const FLUENT = 50; // milliseconds for the trial picture; a WebGPU that takes less need not be quicker than WASM
const HEAVY = 20; // milliseconds for the trial picture, from which on it is worth trying with all cores
const PATIENCE = 15_000; // milliseconds until WebGPU must have drawn twice; some adapters never do
const ALIKE = 1e-3; // mean squared difference of colors (30 dB), above which two pictures are not the same

let bundle;
let artifact;
let model; // content of its file
let lookup; // of its volume, see lookup.js
let shown; // the moment and other controls that a moving volume is of
let wish; // "webgpu", "wasm" or "auto"
let threads; // wished for WASM, or 0
let trial; // the camera of a small picture to try with
/** @type {{ort: object, session: object, kind: string, count: number}} */
let runtime;

onmessage = async ({ data }) => {
  try {
    if (data.type === "open") await open(data);
    else await draw(data);
  } catch (error) {
    postMessage({ type: "failed", message: readable(error) });
  }
};

/** Load an artifact's files, and take the runtime that draws it best. */
async function open(message) {
  ({ bundle, artifact, wish, threads, trial } = message);
  const { volume } = artifact;
  const progress = (about) => postMessage({ type: "progress", ...about });
  const [graph, packed, packedMotion] = await Promise.all([
    load(bundle.base, artifact.file, artifact.sha256, progress),
    volume && load(bundle.base, volume.file, null, progress),
    volume?.motion && load(bundle.base, volume.motion.file, null, progress),
  ]);
  model = graph;
  if (volume) lookup = await openLookup(packed, packedMotion, message.kernels);
  const adapter = wish === "wasm" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
  let refusal = null;
  if (wish === "webgpu") {
    if (!adapter) throw new Error("This browser offers no WebGPU adapter; choose WASM or automatic.");
    runtime = await start("webgpu");
  } else {
    if (adapter) refusal = await tryWebGPU().catch(readable);
    if (refusal || !adapter) runtime = await startWasm();
  }
  ready(refusal);
}

/** The quickest look-up of a volume that this browser has, unless that in JavaScript is wished for. */
async function openLookup(packed, packedMotion, wished) {
  const { volume: about } = artifact;
  const moves = about.motion;
  const motion = moves ? await readMotion(packedMotion, moves, bundle.aabb, 1 + bundle.controls.length) : null;
  const volume = await readVolume(packed, about, moves ? moves.canonical_aabb : bundle.aabb);
  const kernels = wished === "javascript" ? null : await openKernels(volume, about, motion);
  return kernels ?? new Lookup(volume, about, motion);
}

/**
 * Begin with WebGPU, and draw a small picture with it and without: drivers exist that draw another one, or never.
 * @returns {Promise<string | null>} why it is not to be used, if so
 */
async function tryWebGPU() {
  const attempt = await within(PATIENCE, async () => {
    const gpu = await start("webgpu");
    await tried(gpu); // compiles
    return { gpu, drawn: await tried(gpu) };
  });
  if (!attempt) return "it does not come to an end";
  const plain = await start("wasm", "webgpu"); // the same build, so no second download
  const expected = await tried(plain);
  plain.session.release();
  const refusal = comparison(attempt.drawn, expected);
  if (refusal) attempt.gpu.session.release();
  else runtime = attempt.gpu;
  return refusal;
}

/** Why a picture drawn with WebGPU is not as good as the one drawn with WASM; null if it is. */
function comparison(drawn, expected) {
  if (!expected.values) return null; // nothing is seen from here
  const { values } = expected;
  const error = values.reduce((sum, value, i) => sum + (value - drawn.values[i]) ** 2, 0) / values.length;
  if (!(error < ALIKE)) return "it draws something else";
  if (drawn.ms > FLUENT && drawn.ms > expected.ms) {
    return `it is slower here (a small picture takes ${drawn.ms.toFixed(0)} ms, with WASM ${expected.ms.toFixed(0)})`;
  }
  return null;
}

/**
 * Begin with WASM. One core is left to the page and to whatever else runs, since threads wait for each other after
 * each layer; a heavy model takes all of them if that is faster.
 */
async function startWasm() {
  const cores = Math.min(navigator.hardwareConcurrency || 1, 4);
  if (!self.crossOriginIsolated) return start("wasm"); // only such pages share memory between threads
  if (threads) return start("wasm", "wasm", threads);
  const few = await start("wasm", "wasm", Math.max(cores - 1, 1));
  const { ms } = await tried(few);
  if (ms < HEAVY || few.count === cores) return few;
  const all = await start("wasm", "wasm", cores);
  const [better, worse] = (await tried(all)).ms < ms ? [all, few] : [few, all];
  worse.session.release();
  return better;
}

/** Draw the trial picture; see ``network``. */
function tried(candidate) {
  return network(candidate, trial, bundle.time?.value ?? 0, bundle.controls.map((control) => control.value));
}

/** The result of an action, or null where it takes too long. */
function within(limit, act) {
  return Promise.race([act(), new Promise((resolve) => setTimeout(() => resolve(null), limit))]);
}

/** Make a session on a runtime, of the build of that name or of another one that has it too. */
async function start(kind, build = kind, count = 1) {
  const base = new URL("./runtime/", self.location.href).href;
  // The number of threads is settled once for each copy of the module.
  const ort = await import(`${base}ort.${build}.min.mjs?threads=${count}`).catch(() => {
    throw new Error(`runtime/ort.${build}.min.mjs: is missing beside the page.`);
  });
  ort.env.wasm.wasmPaths = base;
  ort.env.wasm.numThreads = count;
  postMessage({ type: "progress", name: kind === "webgpu" ? "WebGPU runtime" : "WASM runtime" });
  const options = { executionProviders: [kind], logSeverityLevel: 3 };
  const session = await ort.InferenceSession.create(model, options).catch((error) => {
    throw new Error(`${artifact.file}: cannot be opened with ${kind}. ${readable(error)}`);
  });
  return { ort, session, kind, count };
}

/** Tell the page with what it draws, and why not with WebGPU where that was tried. */
function ready(refusal) {
  const { session, kind, count } = runtime;
  const timed = session.inputNames.includes("time") || Boolean(artifact.volume?.motion);
  const label = kind === "webgpu" ? "WebGPU" : `WASM, ${count} thread${count > 1 ? "s" : ""}`;
  const kernels = lookup && (lookup instanceof Lookup ? "JavaScript" : "WASM SIMD");
  postMessage({ type: "ready", runtime: label, kernels, timed, notes: refusal ? [`WebGPU is not used: ${refusal}`] : [] });
}

/** Draw one frame and hand its pixels over. */
async function draw({ camera, time, controls, background }) {
  const drawn = await network(runtime, camera, time, controls).catch(async (error) => {
    if (runtime.kind !== "webgpu" || wish === "webgpu") throw error;
    runtime = await startWasm(); // adapters are taken away, and their memory ends
    ready(readable(error));
    return network(runtime, camera, time, controls);
  });
  const { width, height } = camera;
  const pixels = new Uint8ClampedArray(4 * width * height);
  const words = new Uint32Array(pixels.buffer);
  words.fill(new Uint32Array(Uint8Array.of(...background, 255).buffer)[0]);
  if (drawn.values) paint(pixels, width, drawn, background);
  const message = { type: "frame", width, height, pixels, ms: performance.now() - drawn.begin, lookup: drawn.lookup };
  postMessage(message, [pixels.buffer]);
}

/** Lay what the network has drawn, colors and maybe opacity in a rectangle of the picture, over a background. */
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

/**
 * Inputs for a camera, then the graph.
 * @returns the values of its output (C, h, w), none where there is nothing to draw; their rectangle of pixels; when it
 *   began, and the milliseconds of both and of the first
 */
async function network({ ort, session }, camera, time, controls) {
  const begin = performance.now();
  if (artifact.volume?.motion) moveTo([time, ...controls]);
  const { feeds, window } = inputs(ort, session, camera);
  const lookup = performance.now() - begin;
  if (!feeds) return { values: null, begin, lookup, ms: lookup };
  if (session.inputNames.includes("time")) feeds.time = new ort.Tensor("float32", [time], [1]);
  if (session.inputNames.includes("controls")) {
    feeds.controls = new ort.Tensor("float32", controls, [1, controls.length]);
  }
  const output = (await session.run(feeds))[artifact.output];
  return { values: await output.getData(), window, begin, lookup, ms: performance.now() - begin };
}

/** Make the volume that of a moment and other controls, unless it is already. */
function moveTo(controls) {
  if (shown?.every((value, k) => value === controls[k])) return;
  lookup.set(controls);
  shown = controls;
}

/** The inputs of the artifact's kind, see nelf/export/inputs.py, and the pixels that they are for. */
function inputs(ort, session, asked) {
  const camera = shifted(asked, bundle.ray_shift ?? 0);
  const tensor = (data, ...shape) => new ort.Tensor("float32", data, shape);
  const window = { top: 0, left: 0, width: camera.width, height: camera.height };
  if (artifact.input === "pose") return { feeds: { c2w: tensor(camera.c2w, 1, 3, 4) }, window };
  const s = bundle.sr_factor;
  if (artifact.input === "features") {
    const part = decoderInputs(lookup, camera, s, artifact.size ? null : artifact.window);
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
    return { feeds: { points: tensor(pointsOf(rays, channels / 3), 1, channels, height, width) }, window };
  }
  const origins = new Float32Array(3 * width * height);
  for (let i = 0; i < origins.length; i++) origins[i] = rays.origin[i % 3];
  const feeds = { rays_o: tensor(origins, 1, height, width, 3), rays_d: tensor(rays.directions, 1, height, width, 3) };
  return { feeds, window };
}

/** Points on rays, linear from near to far; channel point * 3 + coordinate. */
function pointsOf(rays, points) {
  const count = rays.width * rays.height;
  const { origins, directions } = inNdc(rays, bundle.ndc);
  const out = new Float32Array(3 * points * count);
  for (let p = 0; p < points; p++) {
    const t = bundle.near + ((bundle.far - bundle.near) * p) / (points - 1);
    for (let k = 0; k < 3; k++) {
      const channel = out.subarray((3 * p + k) * count);
      for (let n = 0; n < count; n++) channel[n] = origins[3 * n + k] + t * directions[3 * n + k];
    }
  }
  return out;
}

/** What to show of an error: when memory ends, ONNX Runtime throws a number or std::bad_alloc. */
function readable(error) {
  const text = String(error?.message ?? error);
  const memory = typeof error === "number" || /memory|alloc/i.test(text);
  return memory ? `The browser has no memory left for this model; choose a smaller one. (${text})` : text;
}
