// Whether WebGPU is used: some drivers draw a wrong image, or none, and some are slower than WASM.

const FLUENT = 50; // milliseconds for the trial image, below which WebGPU is used even if WASM is faster
const PATIENCE = 15_000; // milliseconds in which WebGPU must have drawn twice; some adapters never do
const ALIKE = 1e-3; // mean squared difference of colors (30 dB), above which two images differ

/** @typedef {{values: Float32Array | null, ms: number}} Trial colors of the trial image, null if it is empty, and its time */

/** The result of an action, or null if it takes too long. */
export function soon(act) {
  return Promise.race([act(), new Promise((resolve) => setTimeout(() => resolve(null), PATIENCE))]);
}

/**
 * Why an image drawn with WebGPU is rejected, compared with that of WASM; null if it is not.
 * @param {Trial | null} drawn null if it took too long
 * @param {Trial} expected
 */
export function refusalOf(drawn, expected) {
  if (!drawn) return "it does not come to an end";
  if (!expected.values) return null; // nothing is seen from here
  const { values } = expected;
  const error = values.reduce((sum, value, i) => sum + (value - drawn.values[i]) ** 2, 0) / values.length;
  if (!(error < ALIKE)) return "it draws something else";
  if (drawn.ms > FLUENT && drawn.ms > expected.ms) {
    return `it is slower here (a small picture takes ${drawn.ms.toFixed(0)} ms, with WASM ${expected.ms.toFixed(0)})`;
  }
  return null;
}
