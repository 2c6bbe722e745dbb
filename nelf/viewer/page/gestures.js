// Pointer and keyboard input: drag to rotate, pinch or wheel to zoom, keys for both, double-click to reset.

const DEGREES_PER_PIXEL = 0.4;
const DEGREES_PER_KEY = 5;
const ZOOM_PER_KEY = 0.95;

/**
 * Control an orbit by events of an element.
 * @param {HTMLElement} surface
 * @param {import("./camera.js").Orbit} orbit
 * @param {() => void} moved called after each movement
 * @param {() => void} space called when the space bar is pressed
 */
export function listen(surface, orbit, moved, space) {
  /** @type {Map<number, {x: number, y: number}>} */
  const pointers = new Map();
  let spread = 0; // distance between two fingers
  const apart = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  surface.onpointerdown = (event) => {
    surface.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) spread = apart();
  };
  surface.onpointermove = (event) => {
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
  surface.onpointerup = surface.onpointercancel = (event) => pointers.delete(event.pointerId);
  const wheel = (event) => {
    event.preventDefault(); // do not scroll or zoom the page
    orbit.zoom(Math.exp(event.deltaY * 0.001));
    moved();
  };
  surface.addEventListener("wheel", wheel, { passive: false });
  surface.ondblclick = () => {
    orbit.reset();
    moved();
  };
  const keys = {
    ArrowLeft: () => orbit.turn(-DEGREES_PER_KEY, 0),
    ArrowRight: () => orbit.turn(DEGREES_PER_KEY, 0),
    ArrowUp: () => orbit.turn(0, DEGREES_PER_KEY),
    ArrowDown: () => orbit.turn(0, -DEGREES_PER_KEY),
    "+": () => orbit.zoom(ZOOM_PER_KEY),
    "-": () => orbit.zoom(1 / ZOOM_PER_KEY),
    Home: () => orbit.reset(),
    " ": space,
  };
  surface.onkeydown = (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    act();
    moved();
  };
}
