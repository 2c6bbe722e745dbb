// Draws: owns the ONNX session and the volume, so that the page never waits. It answers {type: "draw"} with
// {type: "frame"}, and tells {type: "progress" | "ready" | "failed"} of what it loads.

import { raysOf } from "./camera.js";
import { decoderInputs, readVolume } from "./volume.js";

let bundle;
let ort;
let session;
let artefact;
let volume;
let runtime;
const files = new Map(); // what is loaded stays: the picker goes back and forth

onmessage = async ({ data }) => {
  try {
    if (data.type === "open") await open(data);
    if (data.type === "draw") await draw(data);
  } catch (error) {
    postMessage({ type: "failed", during: data.type, message: readable(error) });
  }
};

/** Load an artefact's files and make a session of it on the first runtime that draws. */
async function open({ bundle: described, artefact: wanted, wish }) {
  [bundle, artefact, session] = [described, wanted, null];
  const parts = [artefact.file, artefact.volume?.file].filter(Boolean);
  const loaded = await Promise.all(parts.map((name) => load(name)));
  if (artefact.volume) volume = await readVolume(loaded[1], artefact.volume, bundle.aabb);
  const failures = [];
  for (const kind of await candidates(wish)) {
    try {
      await start(kind, loaded[0]);
      postMessage({ type: "ready", runtime: label(), failures });
      return;
    } catch (error) {
      failures.push(`${kind}: ${readable(error)}`);
      session = null;
    }
  }
  throw new Error(`${artefact.file}: no runtime can draw it. ${failures.join(" ")}`);
}

/** The runtimes worth trying, the wished one first. */
async function candidates(wish) {
  if (wish === "wasm") return ["wasm"];
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (wish === "webgpu" && !adapter) throw new Error("This browser offers no WebGPU adapter; choose WASM or automatic.");
  return adapter ? ["webgpu", "wasm"] : ["wasm"];
}

/** Make a session, and draw once: some adapters only fail then. */
async function start(kind, model) {
  const base = new URL("./runtime/", self.location.href).href;
  ort = await import(`${base}ort.${kind}.min.mjs`);
  ort.env.wasm.wasmPaths = base;
  // One core stays with the page: on two of them, two threads drew slower than one.
  const cores = self.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
  ort.env.wasm.numThreads = Math.min(4, Math.max(1, cores - 1));
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(model, { executionProviders: [kind], logSeverityLevel: 3 });
  runtime = kind;
  const block = bundle.sr_factor;
  const [width, height] = artefact.size ?? [4 * block, 4 * block];
  const c2w = new Float32Array([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 4]);
  const camera = { c2w, width, height, fx: width, fy: width, cx: width / 2, cy: height / 2 };
  await network(camera, bundle.time?.value ?? 0, bundle.controls.map((control) => control.value));
}

const label = () =>
  runtime === "webgpu" ? "WebGPU" : `WASM, ${ort.env.wasm.numThreads} thread${ort.env.wasm.numThreads > 1 ? "s" : ""}`;

/** Draw one frame and hand its pixels over. */
async function draw({ id, camera, time, controls }) {
  if (!session) return;
  const begin = performance.now();
  const { rgb, lookup } = await network(camera, time, controls);
  const { width, height } = camera;
  const pixels = new Uint8ClampedArray(4 * width * height);
  const plane = width * height;
  for (let i = 0; i < plane; i++) {
    pixels[4 * i] = 255 * rgb[i];
    pixels[4 * i + 1] = 255 * rgb[plane + i];
    pixels[4 * i + 2] = 255 * rgb[2 * plane + i];
    pixels[4 * i + 3] = 255;
  }
  const message = { type: "frame", id, width, height, pixels, ms: performance.now() - begin, lookup };
  postMessage(message, [pixels.buffer]);
}

/** Inputs for a camera, then the graph; gives rgb (3, H, W) and the milliseconds spent before the graph. */
async function network(camera, time, controls) {
  const begin = performance.now();
  const feeds = inputs(camera);
  const lookup = performance.now() - begin;
  if (session.inputNames.includes("time")) feeds.time = new ort.Tensor("float32", [time], [1]);
  if (session.inputNames.includes("controls")) {
    feeds.controls = new ort.Tensor("float32", controls, [1, controls.length]);
  }
  const { rgb } = await session.run(feeds);
  return { rgb: await rgb.getData(), lookup };
}

/** The inputs of the artefact's kind, see nelf/export/inputs.py. */
function inputs(camera) {
  if (artefact.input === "pose") return { c2w: new ort.Tensor("float32", camera.c2w, [1, 3, 4]) };
  const rays = raysOf(camera, bundle.sr_factor);
  const { width, height } = rays;
  if (artefact.input === "features") {
    const features = decoderInputs(volume, rays);
    return { features: new ort.Tensor("float32", features, [1, volume.channels + 17, height, width]) };
  }
  if (artefact.input === "points") {
    const channels = session.inputMetadata[0].shape[1];
    return { points: new ort.Tensor("float32", pointsOf(rays, channels / 3), [1, channels, height, width]) };
  }
  const origins = new Float32Array(3 * width * height);
  for (let i = 0; i < origins.length; i++) origins[i] = rays.origin[i % 3];
  return {
    rays_o: new ort.Tensor("float32", origins, [1, height, width, 3]),
    rays_d: new ort.Tensor("float32", rays.directions, [1, height, width, 3]),
  };
}

/** Points on rays, linear from near to far; channel point * 3 + coordinate. */
function pointsOf({ width, height, origin, directions }, points) {
  const count = width * height;
  const out = new Float32Array(3 * points * count);
  for (let p = 0; p < points; p++) {
    const t = bundle.near + ((bundle.far - bundle.near) * p) / (points - 1);
    for (let k = 0; k < 3; k++) {
      const channel = out.subarray((3 * p + k) * count);
      for (let n = 0; n < count; n++) channel[n] = origin[k] + t * directions[3 * n + k];
    }
  }
  return out;
}

/** Fetch a file of the bundle, and tell how far it is. */
async function load(name) {
  if (files.has(name)) return files.get(name);
  let response;
  try {
    response = await fetch(new URL(name, bundle.base));
  } catch {
    throw new Error(`${name}: the server does not answer.`);
  }
  if (!response.ok) throw new Error(`${name}: is missing from the bundle (the server says ${response.status}).`);
  const total = Number(response.headers.get("Content-Length")) || 0;
  const chunks = [];
  let received = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    received += value.length;
    postMessage({ type: "progress", name, received, total });
  }
  const content = new Uint8Array(received);
  let at = 0;
  for (const chunk of chunks) {
    content.set(chunk, at);
    at += chunk.length;
  }
  files.set(name, content);
  return content;
}

/** What to show of an error: ONNX Runtime throws numbers when memory ends. */
function readable(error) {
  if (typeof error === "number") return "The browser has no memory left for this model; choose a smaller one.";
  const text = String(error?.message ?? error);
  return /memory|allocation/i.test(text) ? `The browser has no memory left for this model. (${text})` : text;
}
