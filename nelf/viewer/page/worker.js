// Draws: owns the volume's look-up and the network, so that the page never waits. It answers {type: "draw"} with
// {type: "frame"}, and tells {type: "progress" | "ready" | "failed"} of what it opens.

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
let runtime; // draws the network: of ort.js, or null where kernels.js does
let shown; // the moment and other controls that a moving volume is of

onmessage = async ({ data }) => {
  try {
    if (data.type === "open") await open(data);
    else await draw(data);
  } catch (error) {
    postMessage({ type: "failed", message: readable(error) });
  }
};

/** Load an artifact's files, and take what draws it best. */
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
  const { OnnxRuntime } = await import("./ort.js"); // whoever does without it need not fetch it
  const drawing = { bundle, artifact, graph, progress, ready, readable, moveTo, lookup };
  runtime = await OnnxRuntime.open({
    ...drawing,
    wish,
    threads: message.threads,
    trial: shifted(message.trial, bundle.ray_shift ?? 0),
  });
}

/** The network where kernels.js can compute it; null for another one. */
function ownDecoder(graph) {
  return artifact.input === "features" ? readDecoder(graph, artifact, bundle.sr_factor) : null;
}

/** The quickest look-up of a volume that this browser has. */
async function openLookup(packed, packedMotion, compiled) {
  const { volume: about } = artifact;
  const moves = about.motion;
  const motion = moves ? await readMotion(packedMotion, moves, bundle.aabb, 1 + bundle.controls.length) : null;
  const volume = await readVolume(packed, about, moves ? moves.canonical_aabb : bundle.aabb);
  return compiled ? openKernels(compiled, volume, about, motion) : new Lookup(volume, about, motion);
}

/** Tell the page with what it draws. */
function ready(about) {
  const kernels = lookup && (lookup instanceof Lookup ? "JavaScript" : "WASM SIMD");
  postMessage({ type: "ready", kernels, ...about });
}

/** Draw one frame and hand its pixels over. */
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

/** What kernels.js draws: pixels, and when their look-up was done. */
function drawn(camera, controls, background) {
  moveTo(controls);
  const { pixels, looked } = lookup.draw(camera, background);
  return { pixels: pixels.slice(), looked };
}

/** Make a volume that moves that of a moment and other controls, unless it is already. */
function moveTo(controls) {
  if (!artifact.volume?.motion || shown?.every((value, k) => value === controls[k])) return;
  lookup.set(controls);
  shown = controls;
}

/** What to show of an error: when memory ends, ONNX Runtime throws a number or std::bad_alloc. */
function readable(error) {
  const text = String(error?.message ?? error);
  const memory = typeof error === "number" || /memory|alloc/i.test(text);
  return memory ? `The browser has no memory left for this model; choose a smaller one. (${text})` : text;
}
