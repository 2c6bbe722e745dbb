// The page: reads bundle.json, listens to hand and keyboard, asks the worker for frames and shows them.

import { Orbit, cameraOf } from "./camera.js";

const VERSION = 1; // of bundle.json, that this page reads
const DEGREES_PER_PIXEL = 0.4;
const REST = 180; // milliseconds without a movement, after which a full frame is drawn
const FLUENT = 80; // milliseconds that a frame may take while moving, where the resolution is automatic
const PREVIEW_WIDTHS = [50, 100, 200]; // of the teacher, coarse to fine

const at = (id) => document.getElementById(id);
const [canvas, status, message, words, bar] = ["view", "status", "message", "words", "progress"].map(at);
const pen = canvas.getContext("2d");
const asked = new URLSearchParams(location.search);
const page = new URL(".", location.href);

let bundle;
let orbit;
let artefact;
let worker;
let ready = false;
let busy = false; // the worker is drawing
let dirty = false; // something has changed since it began
let sharp = false; // the last frame was a full one
let movedAt = 0;
let frame = 0;
let fullMs = 0; // how long the last full frame took
let playing = false;
const values = { time: 0, controls: [] };

/** Show a sentence over the picture; a failure stays, progress has a bar. */
function say(text, { failed = false, part = null } = {}) {
  words.textContent = text;
  message.hidden = !text;
  message.classList.toggle("failed", failed);
  bar.hidden = part === null;
  if (part !== null) bar.value = part;
}

const fail = (text) => {
  status.textContent = "";
  say(text, { failed: true });
};

/** Read what the bundle holds, or say why it cannot be read. */
async function readBundle() {
  const response = await fetch(new URL("bundle.json", page)).catch(() => null);
  if (!response) throw new Error("The server does not answer.");
  if (!response.ok) throw new Error("bundle.json is missing: this folder is not a bundle.");
  const described = await response.json().catch(() => null);
  if (described?.format !== "nelf-bundle") throw new Error("bundle.json is damaged, or not that of a nelf bundle.");
  if (!(described.version <= VERSION)) {
    throw new Error(`This bundle has version ${described.version}; this page reads versions up to ${VERSION}.`);
  }
  if (!described.artefacts?.length) throw new Error("bundle.json names no model.");
  return { ...described, base: page.href };
}

/** Let the worker open the chosen model; a picture that is there stays until the new one comes. */
function open() {
  artefact = bundle.artefacts[Number(at("model").value)];
  ready = busy = false;
  fullMs = 0;
  showFacts();
  at("runtime").disabled = artefact.input === "server";
  if (artefact.input === "server") return openServer();
  say(`Loading ${artefact.name} …`, { part: 0 });
  worker?.terminate(); // what it was drawing is of no interest any more
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => handlers[data.type](data);
  worker.onerror = () => fail("The page's worker did not start; the browser may be too old.");
  worker.postMessage({ type: "open", bundle, artefact, wish: at("runtime").value });
}

function openServer() {
  worker?.terminate();
  say("");
  ready = true;
  status.textContent = "drawn by the server";
  redraw();
}

const handlers = {
  progress({ name, received, total }) {
    const amount = `${(received / 1e6).toFixed(1)} MB`;
    say(`Loading ${name}: ${amount}${total ? ` of ${(total / 1e6).toFixed(1)}` : ""}`, {
      part: total ? received / total : 0,
    });
  },
  ready({ runtime, failures }) {
    ready = true;
    say("");
    canvas.dataset.runtime = runtime;
    for (const failure of failures) console.info(failure);
    redraw();
  },
  frame({ width, height, pixels, ms, lookup }) {
    busy = false;
    show(new ImageData(pixels, width, height));
    const rate = `${ms.toFixed(0)} ms (${Math.round(1000 / ms)} frames/s)`;
    status.textContent = `${width} × ${height} · ${rate} · ${canvas.dataset.runtime}`;
    Object.assign(canvas.dataset, { ms, lookup });
    if (sharp) fullMs = ms;
    if (dirty) request();
  },
  failed({ message: text }) {
    busy = false;
    ready = false;
    fail(text);
  },
};

/** Put a picture onto the canvas, and note beside it where it was taken. */
function show(image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    [canvas.width, canvas.height] = [image.width, image.height];
  }
  if (image instanceof ImageData) pen.putImageData(image, 0, 0);
  else pen.drawImage(image, 0, 0);
  const { azimuth, elevation, radius } = orbit;
  Object.assign(canvas.dataset, { azimuth, elevation, radius, time: values.time, frame: ++frame, sharp });
}

/** Something has moved: draw, coarsely while it goes on, in full once it rests. */
function moved() {
  movedAt = performance.now();
  redraw();
  setTimeout(() => performance.now() - movedAt >= REST - 5 && !sharp && redraw(), REST);
}

function redraw() {
  dirty = true;
  if (ready && !busy) request();
}

function request() {
  dirty = false;
  busy = true;
  const moving = playing || performance.now() - movedAt < REST - 5;
  const fixed = Boolean(artefact.size); // this graph draws one size only
  const scale = moving && !fixed ? coarse() : 1;
  sharp = scale === 1;
  const camera = cameraOf(bundle, orbit.pose(), scale);
  if (artefact.input === "server") return requestServer(camera);
  worker.postMessage({ type: "draw", id: frame, camera, time: values.time, controls: values.controls });
}

/** The share of the full resolution that is drawn while something moves. */
function coarse() {
  const wish = at("resolution").value;
  if (wish !== "auto") return Number(wish);
  return [1, 0.5].find((scale) => fullMs * scale ** 2 <= FLUENT) ?? 0.25;
}

/** A radiance field is slow: ask the server for ever finer pictures until something moves. */
async function requestServer(camera) {
  const begun = performance.now();
  try {
    for (const width of PREVIEW_WIDTHS.filter((each) => each <= bundle.image.width)) {
      const query = new URLSearchParams({ c2w: [...camera.c2w].join(), width });
      const response = await fetch(new URL(`${artefact.file}?${query}`, page));
      if (!response.ok) throw new Error(`The server cannot draw the ${artefact.name} (it says ${response.status}).`);
      const bitmap = await createImageBitmap(await response.blob());
      show(bitmap);
      status.textContent = `${bitmap.width} × ${bitmap.height} · drawn by the server`;
      if (movedAt > begun) break;
    }
    busy = false;
    if (dirty) request();
  } catch (error) {
    busy = false;
    fail(error.message);
  }
}

/** Size and quality of the chosen model. */
function showFacts() {
  const facts = [];
  if (artefact.bytes) facts.push(`${(artefact.bytes / 1e6).toFixed(2)} MB`);
  if (artefact.psnr) facts.push(`${artefact.psnr.toFixed(2)} dB`);
  if (artefact.latency_ms) facts.push(`${artefact.latency_ms.toFixed(0)} ms natively`);
  if (bundle.license) facts.push(bundle.license);
  at("facts").textContent = facts.join(" · ");
}

/** Drag to turn, pinch or wheel to zoom, keys for both. */
function listen() {
  const pointers = new Map();
  let spread = 0;
  const apart = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) spread = apart();
  };
  canvas.onpointermove = (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) {
      const now = apart();
      orbit.zoom(spread / now);
      spread = now;
    } else {
      orbit.turn((last.x - event.clientX) * DEGREES_PER_PIXEL, (event.clientY - last.y) * DEGREES_PER_PIXEL);
    }
    moved();
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => pointers.delete(event.pointerId);
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      orbit.zoom(Math.exp(event.deltaY * 0.001));
      moved();
    },
    { passive: false },
  );
  const reset = () => {
    orbit.reset();
    moved();
  };
  canvas.ondblclick = at("reset").onclick = reset;
  const keys = {
    ArrowLeft: () => orbit.turn(-5, 0),
    ArrowRight: () => orbit.turn(5, 0),
    ArrowUp: () => orbit.turn(0, 5),
    ArrowDown: () => orbit.turn(0, -5),
    "+": () => orbit.zoom(0.95),
    "-": () => orbit.zoom(1 / 0.95),
    Home: () => orbit.reset(),
    " ": () => at("play")?.click(),
  };
  canvas.onkeydown = (event) => {
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
    moved();
  };
  at("model").onchange = at("runtime").onchange = open;
  at("resolution").onchange = redraw;
}

/** A slider for the time, with a play button, and one for each other control. */
function makeInputs() {
  values.controls = bundle.controls.map((control) => control.value);
  const place = at("inputs");
  if (bundle.time) {
    values.time = bundle.time.value;
    const slider = addSlider("Time", "time", bundle.time, (value) => (values.time = value));
    const button = Object.assign(document.createElement("button"), { type: "button", id: "play", textContent: "Play" });
    place.append(button);
    button.onclick = () => {
      playing = !playing;
      button.textContent = playing ? "Pause" : "Play";
      if (playing) requestAnimationFrame(play);
      else moved();
    };
    let last = 0;
    const play = (now) => {
      if (!playing) return;
      if (last && now - last < 500) {
        const { min, max } = bundle.time;
        const next = values.time + ((max - min) * (now - last)) / 4000; // four seconds from end to end
        values.time = next > max ? min : next;
        slider.value = values.time;
        redraw();
      }
      last = now;
      requestAnimationFrame(play);
    };
  }
  bundle.controls.forEach((control, index) =>
    addSlider(control.name, `control_${index}`, control, (value) => (values.controls[index] = value)),
  );
  place.hidden = !place.querySelector("input");

  function addSlider(text, id, { min, max, value }, set) {
    const label = document.createElement("label");
    const slider = Object.assign(document.createElement("input"), { type: "range", id, min, max, step: "any" });
    slider.value = value;
    slider.oninput = () => {
      set(Number(slider.value));
      moved();
    };
    label.append(text, slider);
    place.append(label);
    return slider;
  }
}

/** Choose what the address asks for, such as ?model=fp32&runtime=wasm. */
function choose() {
  const picker = at("model");
  bundle.artefacts.forEach((each, index) => picker.add(new Option(each.name, index)));
  const index = bundle.artefacts.findIndex((each) => each.name === asked.get("model"));
  if (index >= 0) picker.value = index;
  for (const id of ["runtime", "resolution"]) if (asked.has(id)) at(id).value = asked.get(id);
}

try {
  say("Loading …", { part: 0 });
  bundle = await readBundle();
  document.title = `${bundle.name} · nelf`;
  at("name").textContent = bundle.name;
  document.querySelector("main").style.background = bundle.background;
  orbit = new Orbit(bundle.orbit);
  choose();
  makeInputs();
  listen();
  open();
} catch (error) {
  fail(error.message);
}
