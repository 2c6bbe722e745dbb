// The rendering worker: owns the volume and the network, so that the page never blocks. It answers {type: "draw"} with
// {type: "frame"}, and sends {type: "progress" | "ready" | "failed"} while it opens a model.

import { Bands, workersHere } from "./bands.js";
import { shifted } from "./camera.js";
import { readDecoder } from "./decoder.js";
import { load } from "./files.js";
import { compileKernels, openKernels } from "./kernels.js";
import { Lookup } from "./lookup.js";
import { readMotion } from "./motion.js";
import { refusalOf, soon } from "./trials.js";
import { readVolume } from "./volume.js";

const WHITE = [255, 255, 255]; // background of trial images

let bundle;
let artifact;
let lookup; // of its volume, see lookup.js
let runtime; // of ort.js, which runs the network; undefined if kernels.js does
let model; // volume and network, as bands.js takes them
let bands; // of bands.js, which draw together
let threads; // that the page asks for, or 0
let gpu; // of webgpu.js, which draws instead of kernels.js; undefined if that does
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
  ({ bundle, artifact, threads } = message);
  const { volume } = artifact;
  const { kernels, wish } = message;
  const progress = (about) => postMessage({ type: "progress", ...about });
  const [graph, packed, packedMotion, compiled] = await Promise.all([
    load(bundle.base, artifact.file, artifact.sha256, progress),
    volume && load(bundle.base, volume.file, null, progress),
    volume?.motion && load(bundle.base, volume.motion.file, null, progress),
    volume && kernels !== "javascript" ? compileKernels() : null,
  ]);
  const decoder = compiled && kernels !== "lookup" ? ownDecoder(graph) : null;
  if (volume) lookup = await openLookup(packed, packedMotion, compiled);
  if (decoder) {
    lookup.setDecoder(decoder);
    model.decoder = decoder;
    const refusal = wish === "wasm" ? null : await openGpu(decoder, wish, message.trial);
    gpu?.lost.then(leaveGpu);
    tellOwn(refusal);
    return;
  }
  const { OnnxRuntime } = await import("./ort.js"); // fetched only if it is needed
  const drawing = { bundle, artifact, graph, progress, ready, readable, moveTo, lookup };
  runtime = await OnnxRuntime.open({
    ...drawing,
    wish,
    threads,
    trial: shifted(message.trial, bundle.ray_shift ?? 0),
  });
}

/** The network, if kernels.js can compute it, else null. */
function ownDecoder(graph) {
  return artifact.input === "features" ? readDecoder(graph, artifact, bundle.sr_factor) : null;
}

/** Draw with WebGPU if it is asked for, or faster; returns why it is not used, null where there is none. */
async function openGpu(decoder, wish, camera) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter && wish === "webgpu") {
    throw new Error("This browser offers no WebGPU adapter; choose WASM or automatic.");
  }
  if (!adapter || (wish === "auto" && adapter.info?.isFallbackAdapter)) return null; // computed by the processor
  const opening = async () => {
    const { WebGpu } = await import("./webgpu.js");
    return WebGpu.open(adapter, lookup, artifact.volume, decoder);
  };
  if (wish === "webgpu") {
    gpu = await opening();
    return null;
  }
  const trial = shifted(camera, bundle.ray_shift ?? 0);
  const moment = [bundle.time?.value ?? 0, ...bundle.controls.map(({ value }) => value)];
  try {
    const attempt = await soon(async () => {
      const found = await opening();
      await triedOn(found, trial, moment); // the first image is slower
      return { found, drawn: await triedOn(found, trial, moment) };
    });
    moveTo(moment);
    const begin = performance.now();
    const { pixels } = lookup.draw(trial, WHITE);
    const refusal = refusalOf(attempt?.drawn, { values: colors(pixels), ms: performance.now() - begin });
    if (!refusal) gpu = attempt.found;
    else attempt?.found.close();
    shown = undefined;
    return refusal;
  } catch (error) {
    return readable(error);
  }
}

/** Go on with WASM: adapters are taken away, and their memory ends. */
function leaveGpu(reason) {
  if (!gpu) return;
  gpu = shown = undefined;
  tellOwn(reason);
}

/** Tell the page which of nelf's implementations renders, and why it is not WebGPU if that was tried. */
function tellOwn(refusal) {
  const notes = refusal ? [`WebGPU is not used: ${refusal}`] : [];
  ready({ network: "nelf", runtime: gpu ? "WebGPU" : "WASM", timed: Boolean(artifact.volume.motion), notes });
}

/** Draw the trial image with WebGPU. */
async function triedOn(candidate, camera, moment) {
  const begin = performance.now();
  if (artifact.volume.motion) candidate.set(moment);
  const bitmap = await candidate.draw(camera, WHITE);
  const ms = performance.now() - begin;
  const pen = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  return { values: colors(pen.getImageData(0, 0, bitmap.width, bitmap.height).data), ms };
}

/** Colors from 0 to 1. */
const colors = (pixels) => Float32Array.from(pixels, (value) => value / 255);

/** The fastest look-up of a volume that this browser supports. */
async function openLookup(packed, packedMotion, compiled) {
  const { volume: about } = artifact;
  const moves = about.motion;
  const motion = moves ? await readMotion(packedMotion, moves, bundle.aabb, 1 + bundle.controls.length) : null;
  const volume = await readVolume(packed, about, moves ? moves.canonical_aabb : bundle.aabb);
  model = { compiled, volume, walk: about, motion };
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
  const { width, height } = camera;
  if (gpu) {
    moveTo([time, ...controls]);
    const image = await gpu.draw(asked, background).catch((error) => leaveGpu(readable(error)));
    if (image) {
      const times = { ...gpu.ms, ms: performance.now() - begin };
      postMessage({ type: "frame", width, height, image, ...times }, [image]);
      return;
    }
  }
  const { pixels, looked, workers } = runtime
    ? await runtime.draw(asked, time, controls, background)
    : await drawn(asked, [time, ...controls], background);
  const times = { ms: performance.now() - begin, lookup: looked - begin };
  postMessage({ type: "frame", width, height, pixels, workers, ...times }, [pixels.buffer]);
}

/** Draw with kernels.js, here and in other workers; here alone if one of them fails. */
async function drawn(...view) {
  const [, controls] = view;
  bands ??= new Bands(workersHere(threads), model);
  const draw = () => bands.draw(lookup, () => moveTo(controls), ...view);
  return draw().catch(() => {
    bands.close();
    return draw();
  });
}

/** Set the time and other controls of a moving volume, if they have changed. */
function moveTo(controls) {
  if (!artifact.volume?.motion || shown?.every((value, k) => value === controls[k])) return;
  (gpu ?? lookup).set(controls);
  shown = controls;
}

/** The message of an error; when out of memory, ONNX Runtime throws a number or std::bad_alloc. */
function readable(error) {
  const text = String(error?.message ?? error);
  const memory = typeof error === "number" || /memory|alloc/i.test(text);
  return memory ? `The browser has no memory left for this model; choose a smaller one. (${text})` : text;
}
