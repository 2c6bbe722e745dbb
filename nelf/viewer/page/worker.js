// The rendering worker: owns the volume and the network, so that the page never blocks. It answers {type: "draw"} with
// {type: "frame"}, and sends {type: "progress" | "ready" | "failed"} while it opens a model.

import { shifted } from "./camera.js";
import { readDecoder } from "./decoder.js";
import { load } from "./files.js";
import { compileKernels, openKernels } from "./kernels.js";
import { Lookup } from "./lookup.js";
import { readMotion } from "./motion.js";
import { readVolume } from "./volume.js";

let bundle;
let artifact;
let lookup; // of its volume, see lookup.js
let runtime; // of ort.js, which runs the network; undefined if kernels.js does
let shown; // time and other controls of a moving volume's present frame

onmessage = async ({ data }) => {
  try {
    if (data.type === "open") await open(data);
    else await draw(data);
  } catch (error) {
    postMessage({ type: "failed", message: readable(error) });
  }
};

/** Load an artifact's files, and choose the fastest implementation. */
async function open(message) {
  ({ bundle, artifact } = message);
  const { volume } = artifact;
  const { kernels, wish } = message;
  const progress = (about) => postMessage({ type: "progress", ...about });
  const [graph, packed, packedMotion, compiled] = await Promise.all([
    load(bundle.base, artifact.file, artifact.sha256, progress),
    volume && load(bundle.base, volume.file, null, progress),
    volume?.motion && load(bundle.base, volume.motion.file, null, progress),
    volume && kernels !== "javascript" ? compileKernels() : null,
  ]);
  const decoder = compiled && kernels !== "lookup" && wish !== "webgpu" ? ownDecoder(graph) : null;
  if (volume) lookup = await openLookup(packed, packedMotion, compiled);
  if (decoder) {
    lookup.setDecoder(decoder);
    ready({ network: "nelf", runtime: "WASM", timed: Boolean(volume.motion), notes: [] });
    return;
  }
  const { OnnxRuntime } = await import("./ort.js"); // fetched only if it is needed
  const drawing = { bundle, artifact, graph, progress, ready, readable, moveTo, lookup };
  runtime = await OnnxRuntime.open({
    ...drawing,
    wish,
    threads: message.threads,
    trial: shifted(message.trial, bundle.ray_shift ?? 0),
  });
}

/** The network, if kernels.js can compute it, else null. */
function ownDecoder(graph) {
  return artifact.input === "features" ? readDecoder(graph, artifact, bundle.sr_factor) : null;
}

/** The fastest look-up of a volume that this browser supports. */
async function openLookup(packed, packedMotion, compiled) {
  const { volume: about } = artifact;
  const moves = about.motion;
  const motion = moves ? await readMotion(packedMotion, moves, bundle.aabb, 1 + bundle.controls.length) : null;
  const volume = await readVolume(packed, about, moves ? moves.canonical_aabb : bundle.aabb);
  return compiled ? openKernels(compiled, volume, about, motion) : new Lookup(volume, about, motion);
}

/** Tell the page which implementation renders. */
function ready(about) {
  const kernels = lookup && (lookup instanceof Lookup ? "JavaScript" : "WASM SIMD");
  postMessage({ type: "ready", kernels, ...about });
}

/** Draw one frame and transfer its pixels. */
async function draw({ camera, time, controls, background }) {
  const asked = shifted(camera, bundle.ray_shift ?? 0);
  const begin = performance.now();
  const { pixels, looked } = runtime
    ? await runtime.draw(asked, time, controls, background)
    : drawn(asked, [time, ...controls], background);
  const { width, height } = camera;
  const message = { type: "frame", width, height, pixels, ms: performance.now() - begin, lookup: looked - begin };
  postMessage(message, [pixels.buffer]);
}

/** Draw with kernels.js: pixels, and the time at which the look-up ended. */
function drawn(camera, controls, background) {
  moveTo(controls);
  const { pixels, looked } = lookup.draw(camera, background);
  return { pixels: pixels.slice(), looked };
}

/** Set the time and other controls of a moving volume, if they have changed. */
function moveTo(controls) {
  if (!artifact.volume?.motion || shown?.every((value, k) => value === controls[k])) return;
  lookup.set(controls);
  shown = controls;
}

/** The message of an error; when out of memory, ONNX Runtime throws a number or std::bad_alloc. */
function readable(error) {
  const text = String(error?.message ?? error);
  const memory = typeof error === "number" || /memory|alloc/i.test(text);
  return memory ? `The browser has no memory left for this model; choose a smaller one. (${text})` : text;
}
