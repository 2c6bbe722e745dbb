// The page: reads bundle.json, asks the worker for frames and shows them.

import { Orbit, cameraOf } from "./camera.js";
import { listen } from "./gestures.js";
import { Inputs, Models } from "./panel.js";

const VERSION = 4; // of bundle.json, that this page reads
const NEEDED = [
  ...["image", "intrinsics", "near", "far", "aabb", "sr_factor", "stride", "background_color"],
  ...["orbit", "controls", "artifacts"],
];
const BACKGROUNDS = { white: [255, 255, 255], black: [0, 0, 0], gray: [128, 128, 128] };
const REST = 180; // milliseconds without movement, after which a full frame is drawn
const FLUENT = 80; // milliseconds: target frame time while moving, for automatic resolution
const MEASURED = 10; // frames that are drawn to measure a model, since the first ones are slower
const SLOW = 250; // milliseconds; a slower model is not drawn again just to be measured
const UNKNOWN = "unknown"; // indeterminate progress
const PREVIEW_WIDTHS = [50, 100, 200]; // of the teacher's images, coarse to fine

const at = (id) => document.getElementById(id);
const [canvas, status, message, words, bar] = ["view", "status", "message", "words", "progress"].map(at);
const pen = canvas.getContext("2d");
const page = new URL(".", location.href);
const asked = new URLSearchParams(location.search); // such as ?model=fp32&runtime=wasm&resolution=1&threads=2&kernels=javascript

let bundle;
let orbit;
let models;
let inputs;
let worker;
let opened = 0; // number of models opened so far
let ready = false;
let busy = false; // a frame is being drawn
let requested; // its view
let dirty = false; // something has changed since that frame began
let sharp = false; // that frame, or the last one, has full resolution
let movedAt = 0;
let frames = 0;

/** Show a message over the image; a failure is an alert for screen readers, progress has a bar. */
function say(text, { failed = false, part = null } = {}) {
  words.textContent = text;
  message.role = failed ? "alert" : null;
  message.hidden = !text;
  message.classList.toggle("failed", failed);
  bar.hidden = part === null;
  if (part === UNKNOWN) bar.removeAttribute("value");
  else if (part !== null) bar.value = part;
}

function fail(text) {
  status.textContent = "";
  say(text, { failed: true });
}

/** Read and check bundle.json. */
async function readBundle() {
  const response = await fetch(new URL("bundle.json", page)).catch(() => null);
  if (!response) throw new Error("The server does not answer.");
  if (!response.ok) throw new Error("bundle.json is missing: this folder is not a bundle.");
  const described = await response.json().catch(() => null);
  if (described?.format !== "nelf-bundle") throw new Error("bundle.json is damaged, or not that of a nelf bundle.");
  if (described.version !== VERSION) {
    const todo = described.version < VERSION ? " Export it again: stages=[export]." : "";
    throw new Error(`This bundle has version ${described.version}; this page reads version ${VERSION}.${todo}`);
  }
  const missing = NEEDED.filter((key) => !(key in described));
  if (missing.length) throw new Error(`bundle.json is damaged: it lacks ${missing.join(", ")}.`);
  // A bundle may hold programs for other runtimes, too.
  const artifacts = described.artifacts.filter(({ file, input }) => file.endsWith(".onnx") || input === "server");
  if (!artifacts.length) throw new Error("bundle.json names no model that a browser can draw.");
  return { ...described, artifacts, base: page.href };
}

/** Open the chosen model; the last image stays until the new one arrives. */
function open() {
  const artifact = models.chosen;
  const server = artifact.input === "server";
  worker?.terminate(); // its frame is no longer needed
  opened++;
  ready = busy = false;
  at("chosen").textContent = artifact.name;
  at("runtime").disabled = at("resolution").disabled = server;
  at("background").disabled = artifact.output !== "rgba"; // for others, the background is part of the colors
  document.body.style.background = `rgb(${background().join()})`;
  tell([]);
  if (server) {
    say("");
    ready = true;
    inputs.setTimed(false);
    redraw();
    return;
  }
  say(`Loading ${artifact.name} …`, { part: 0 });
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => handlers[data.type](data);
  worker.onerror = () => fail("The page's worker did not start; the browser may be too old.");
  const trial = cameraOf(bundle, orbit.pose(), artifact.size ? 1 : 0.25);
  const threads = Number(asked.get("threads"));
  const kernels = asked.get("kernels");
  worker.postMessage({ type: "open", bundle, artifact, wish: at("runtime").value, threads, kernels, trial });
}

/** The background color (0 to 255) of the chosen model. */
function background() {
  const own = bundle.background_color.map((part) => Math.round(255 * part));
  return (models.chosen.output === "rgba" && BACKGROUNDS[at("background").value]) || own;
}

/** Keep a setting in the page's address, for reloading and sharing. */
function remember({ target: { id, value } }) {
  asked.set(id, value);
  history.replaceState(null, "", `?${asked}`);
}

/** Show notes: the scene's license, and runtimes that were tried and rejected. */
function tell(notes) {
  at("notes").textContent = [bundle.license, ...notes].filter(Boolean).join(" · ");
}

const handlers = {
  progress({ name, received, total }) {
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    const amount = received ? `: ${megabytes(received)}${total ? ` of ${megabytes(total)}` : ""} MB` : " …";
    say(`Loading ${name}${amount}`, { part: total ? received / total : UNKNOWN });
  },
  ready({ network, runtime, kernels, timed, notes }) {
    ready = true;
    inputs.setTimed(timed);
    say("");
    tell(notes);
    Object.assign(canvas.dataset, { network, runtime, kernels });
    redraw();
  },
  frame({ width, height, pixels, image, ms, lookup = NaN, decoding = NaN, workers = 1 }) {
    busy = false;
    show(image ?? new ImageData(pixels, width, height));
    image?.close();
    const together = workers > 1 ? `, ${workers} threads` : "";
    status.textContent = `${width} × ${height} · ${ms.toFixed(0)} ms · ${canvas.dataset.runtime}${together}`;
    Object.assign(canvas.dataset, { ms, lookup, decoding, workers });
    if (sharp) models.measured(ms);
    if (dirty || (sharp && ms < SLOW && models.count < MEASURED)) request();
  },
  failed({ message: text }) {
    worker.terminate(); // else the progress of other files would replace the message
    ready = busy = false;
    fail(text);
  },
};

/** Draw an image to the canvas, and store the view that was requested in the canvas's dataset. */
function show(image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    [canvas.width, canvas.height] = [image.width, image.height];
  }
  if (image instanceof ImageData) pen.putImageData(image, 0, 0);
  else pen.drawImage(image, 0, 0);
  Object.assign(canvas.dataset, requested, { frame: ++frames, sharp });
}

/** Redraw after a movement: coarsely while it continues, at full resolution afterwards. */
function moved() {
  movedAt = performance.now();
  redraw();
  setTimeout(() => !moving() && !sharp && redraw(), REST);
}

const moving = () => performance.now() - movedAt < REST - 5; // timers may fire slightly early

function redraw() {
  dirty = true;
  if (ready && !busy) request();
}

function request() {
  dirty = false;
  busy = true;
  const scale = moving() && !models.chosen.size ? coarse() : 1; // some graphs support one size only
  sharp = scale === 1;
  const camera = cameraOf(bundle, orbit.pose(), scale);
  const { azimuth, elevation, radius } = orbit;
  requested = { azimuth, elevation, radius, time: inputs.time, background: background().join() };
  if (models.chosen.input === "server") requestServer(camera);
  else {
    const { time, controls } = inputs;
    worker.postMessage({ type: "draw", camera, time, controls, background: background() });
  }
}

/** The scale of the image's sides while something moves. */
function coarse() {
  const wish = at("resolution").value;
  if (wish !== "auto") return Number(wish);
  return [1, 0.5].find((scale) => models.frameTime * scale ** 2 <= FLUENT) ?? 0.25;
}

/** Request images of the teacher, which is slow, with increasing resolution until something changes. */
async function requestServer(camera) {
  const [model, own] = [models.chosen, opened];
  const widths = [...PREVIEW_WIDTHS.filter((width) => width < bundle.image.width), bundle.image.width];
  try {
    for (const width of widths.slice(0, PREVIEW_WIDTHS.length)) {
      const begin = performance.now();
      const query = new URLSearchParams({ c2w: camera.c2w.join(), width });
      const response = await fetch(new URL(`${model.file}?${query}`, page));
      if (!response.ok) throw new Error(`The server cannot draw the ${model.name} (it says ${response.status}).`);
      const bitmap = await createImageBitmap(await response.blob());
      if (own !== opened) return; // another model, or this one again, has been opened
      show(bitmap);
      const seconds = (performance.now() - begin) / 1000;
      status.textContent = `${bitmap.width} × ${bitmap.height} · ${seconds.toFixed(1)} s · drawn by the server`;
      if (dirty) break;
    }
    busy = false;
    if (dirty) request();
  } catch (error) {
    if (own !== opened) return;
    busy = false;
    fail(error.message);
  }
}

try {
  say("Loading …", { part: 0 });
  bundle = await readBundle();
  document.title = `${bundle.name} · nelf`;
  at("name").textContent = bundle.name;
  orbit = new Orbit(bundle.orbit);
  for (const id of ["runtime", "resolution", "background"]) {
    const options = Array.from(at(id).options, ({ value }) => value);
    if (options.includes(asked.get(id))) at(id).value = asked.get(id);
    at(id).addEventListener("change", remember);
  }
  models = new Models(at("models"), bundle.artifacts, asked.get("model"), open);
  inputs = new Inputs(at("inputs"), bundle, moved);
  at("runtime").onchange = () => {
    models.forgetTimes();
    open();
  };
  at("resolution").onchange = redraw;
  at("background").onchange = () => {
    document.body.style.background = `rgb(${background().join()})`;
    redraw();
  };
  at("panel").open = matchMedia("(min-width: 720px)").matches;
  listen(canvas, orbit, moved, () => inputs.toggle());
  at("reset").onclick = () => {
    orbit.reset();
    moved();
  };
  open();
} catch (error) {
  fail(error.message);
}
