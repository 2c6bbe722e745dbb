// Draws an image in several workers, each with its own copy of the volume and of the network: nothing is shared, so the
// page need not be cross-origin isolated. A worker draws a band of rows with a camera that sees only these rows, and a
// margin as high as the network's receptive field; so bands meet without a seam.

const MOST = 4; // workers; processors of phones have few fast cores
const PATIENCE = 5_000; // milliseconds in which a band must be drawn; some browsers end workers without a word
const SLIGHTEST = 1e-3; // of the mean cost of a row, so that no row is free

/** How many workers draw: as many as are asked for, or as there are processors. */
export const workersHere = (asked) => Math.min(asked || self.navigator.hardwareConcurrency || 1, MOST);

/**
 * Draw the rows of a band.
 * @param {import("./kernels.js").Kernels} kernels
 * @param {Camera} camera of the whole image
 * @param {number[]} background
 * @param {{first: number, end: number, margin: number}} band rows of pixels
 * @returns {{pixels: Uint8ClampedArray, looked: number, ms: number}} see Kernels.draw; valid until the next call
 */
export function drawBand(kernels, camera, background, { first, end, margin }) {
  const begin = performance.now();
  const [top, bottom] = [Math.max(first - margin, 0), Math.min(end + margin, camera.height)];
  const seen = { ...camera, cy: camera.cy - top, height: bottom - top };
  const { pixels, looked } = kernels.draw(seen, background);
  const row = 4 * camera.width;
  return { pixels: pixels.subarray((first - top) * row, (end - top) * row), looked, ms: performance.now() - begin };
}

/** The workers beside this one. */
export class Bands {
  /**
   * Start workers; images are drawn here alone until they are ready, and if one fails.
   * @param {number} count workers, including this one
   * @param {{compiled, volume, walk, motion, decoder}} model of openKernels and setDecoder
   */
  constructor(count, model) {
    const { s, layers } = model.decoder;
    this.s = s;
    this.margin = s * (1 + layers.filter(({ side }) => side > 1).length);
    this.costs = new Map(); // of each row of blocks, by the number of rows
    this.ready = 0;
    this.workers = Array.from({ length: count - 1 }, () => {
      const worker = new Worker("helper.js", { type: "module" });
      worker.onmessage = ({ data }) => (data.message ? this.close() : this.ready++);
      worker.onerror = () => this.close();
      worker.postMessage(model);
      return worker;
    });
  }

  /** Number of workers that draw an image, including this one. */
  count(camera) {
    const all = this.workers.length + 1;
    if (this.ready + 1 < all) return 1;
    return Math.max(Math.min(all, Math.floor(camera.height / (4 * this.margin))), 1); // else most rows are margins
  }

  /**
   * Draw an image.
   * @param {import("./kernels.js").Kernels} kernels of this worker
   * @param {() => void} move to the controls, which takes all workers the same time
   * @returns {Promise<{pixels: Uint8ClampedArray, looked: number, workers: number}>} see Kernels.draw; the time is that
   *   of the first band; and how many workers drew
   */
  async draw(kernels, move, camera, controls, background) {
    const [rows, count] = [camera.height / this.s, this.count(camera)];
    if (!this.costs.has(rows)) this.costs.set(rows, new Float64Array(rows).fill(1));
    const costs = this.costs.get(rows);
    const bands = split(costs, count).map(([first, end]) => ({
      first: first * this.s,
      end: end * this.s,
      margin: this.margin,
    }));
    const others = bands.slice(1).map((band, k) => answerOf(this.workers[k], { camera, controls, background, band }));
    move();
    const own = drawBand(kernels, camera, background, bands[0]);
    const pixels = new Uint8ClampedArray(4 * camera.width * camera.height);
    pixels.set(own.pixels);
    const drawn = [own, ...(await Promise.all(others))];
    drawn.forEach((each, k) => {
      pixels.set(each.pixels, 4 * camera.width * bands[k].first);
      learn(costs, bands[k].first / this.s, bands[k].end / this.s, each.ms);
    });
    return { pixels, looked: own.looked, workers: count };
  }

  close() {
    for (const worker of this.workers) worker.terminate();
    this.workers = [];
  }
}

/** Send a band to a worker, and wait for its pixels. */
function answerOf(worker, message) {
  return new Promise((resolve, reject) => {
    const ended = () => reject(new Error("a worker of the page has ended"));
    const timer = setTimeout(ended, PATIENCE);
    worker.onmessage = ({ data }) => {
      clearTimeout(timer);
      if (data.message) reject(new Error(data.message));
      else resolve(data);
    };
    worker.onerror = ended;
    worker.postMessage(message);
  });
}

/** Rows [first, end) of as many bands of about the same cost; each has at least one row. */
function split(costs, count) {
  const total = costs.reduce((sum, cost) => sum + cost, 0);
  const ends = [0];
  let sum = 0;
  for (let row = 0; row < costs.length && ends.length < count; row++) {
    sum += costs[row];
    const left = count - ends.length; // bands that follow
    if (sum >= (total * ends.length) / count || costs.length - row - 1 === left) ends.push(row + 1);
  }
  ends.push(costs.length);
  return ends.slice(1).map((end, k) => [ends[k], end]);
}

/** Scale the costs of a band's rows to the time that it took. */
function learn(costs, first, end, ms) {
  const rows = costs.subarray(first, end);
  const share = ms / rows.reduce((sum, cost) => sum + cost, 0);
  const least = (SLIGHTEST * ms) / rows.length;
  rows.forEach((cost, k) => (rows[k] = Math.max(cost * share, least)));
}
