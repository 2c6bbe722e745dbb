// The motion of a volume: its file, and the frame at given controls. The motion is interpolated linearly between the
// nodes of a grid over controls and space; it maps each corner of a frame's grid to a point of the canonical volume,
// whose values the corner takes.

import { countCorners } from "./cells.js";
import { unpacked } from "./files.js";
import { MOST_CORNERS, halves } from "./volume.js";

const MOST_WINDOWS = 64;
const MOST_NODES = 2 ** 22;
const MOST_SIDE = 4096;

/**
 * @typedef {object} Motion
 * @property {number[]} resolution corners of a frame's grid along z, y and x
 * @property {number[]} frame box of the frames
 * @property {Uint8Array[]} masks the existing corners by time window; all windows have the same length
 * @property {number} rows the largest number of corners of a mask
 * @property {number[]} grid nodes of the motion: controls, steps of each, and along z, y and x
 * @property {number[]} aabb box of the nodes
 * @property {Float32Array} values of each node: displacement x, y and z, and an offset of the density
 * @property {number} empty the density of canonical corners that do not exist
 */

/**
 * Read a motion file, gzip of masks and of the nodes in 16 bits, as bundle.json describes it.
 * @param {Uint8Array} file
 * @param {object} about
 * @param {number[]} frame the box of the frames
 * @param {number} controls number of the bundle's controls
 * @returns {Promise<Motion>}
 */
export async function readMotion(file, about, frame, controls) {
  const { resolution, windows, grid, aabb, empty } = about;
  check(about, controls);
  const corners = product(resolution);
  const [bits, nodes] = [Math.ceil(corners / 8), product(grid)];
  const content = await unpacked(file, about.file, windows * bits + 8 * nodes);
  const masks = Array.from({ length: windows }, (_, k) => content.subarray(k * bits, (k + 1) * bits));
  const rows = Math.max(...masks.map((mask) => countCorners(mask, corners)));
  const table = halves();
  const values = Float32Array.from(new Uint16Array(content.slice(windows * bits).buffer), (half) => table[half]);
  if (!values.every(Number.isFinite)) throw new Error(`${about.file}: holds numbers that are not finite.`);
  return { resolution, frame, masks, rows, grid, aabb, values, empty };
}

const product = (sides) => sides.reduce((all, side) => all * side, 1);

/** Refuse an invalid description before memory is allocated. */
function check({ file, resolution, windows, grid, aabb, canonical_aabb: canonical, empty }, controls) {
  const sizes = (values, count, most) =>
    values?.length === count && values.every((n) => Number.isInteger(n) && n >= 2 && n <= most);
  const box = (values) =>
    values?.length === 6 && values.every(Number.isFinite) && [0, 1, 2].every((k) => values[k] < values[k + 3]);
  const right = {
    resolution: sizes(resolution, 3, MOST_SIDE) && product(resolution) <= MOST_CORNERS,
    windows: Number.isInteger(windows) && windows >= 1 && windows <= MOST_WINDOWS,
    grid: grid?.[0] === controls && sizes(grid.slice(1), 4, MOST_SIDE) && product(grid) <= MOST_NODES,
    aabb: box(aabb),
    canonical_aabb: box(canonical),
    empty: Number.isFinite(empty) && empty < 0,
  };
  const wrong = Object.keys(right).filter((key) => !right[key]);
  if (wrong.length) throw new Error(`${file}: bundle.json describes no motion that can be drawn (${wrong.join(", ")}).`);
}

/** The index of the mask for given controls. */
export function maskAt({ masks }, [time]) {
  return Math.min(Math.max(Math.floor(time * masks.length), 0), masks.length - 1);
}

/** The nodes of the motion for given controls, (Z, Y, X, 4): the sum over controls, interpolated in their steps. */
export function nodesAt({ grid, values }, controls) {
  const [count, steps] = grid;
  const size = values.length / (count * steps);
  const nodes = new Float32Array(size);
  for (let k = 0; k < count; k++) {
    const [step, share] = between(controls[k] * (steps - 1), steps);
    const first = (k * steps + step) * size;
    for (let i = 0, a = first, b = first + size; i < size; i++, a++, b++) {
      nodes[i] += values[a] + share * (values[b] - values[a]);
    }
  }
  return nodes;
}

/** The step before a coordinate, and the fraction of the way to the next one. */
function between(place, steps) {
  const within = Math.min(Math.max(place, 0), steps - 1);
  const step = Math.min(Math.floor(within), steps - 2);
  return [step, within - step];
}

/** Along x, y and z: the low side of a box, its number of corners, and cells per scene unit. */
function axesOf(aabb, [depth, height, width]) {
  return [width, height, depth].map((side, k) => ({ low: aabb[k], side, perUnit: (side - 1) / (aabb[k + 3] - aabb[k]) }));
}

/**
 * Fill in the rows of a frame.
 * @param {object} canonical volume, with index
 * @param {Motion} motion
 * @param {Float32Array} nodes of nodesAt
 * @param {object} frame volume, with index
 */
export function fillFrame(canonical, motion, nodes, frame) {
  const [onX, onY, onZ] = axesOf(motion.aabb, motion.grid.slice(2));
  const [frameX, frameY, frameZ] = axesOf(frame.aabb, frame.resolution);
  const line = new Float32Array(4 * onX.side);
  const at = [0, 0, 0];
  for (let z = 0, corner = 0, row = 0; z < frameZ.side; z++) {
    const pz = frameZ.low + z / frameZ.perUnit;
    for (let y = 0; y < frameY.side; y++) {
      const py = frameY.low + y / frameY.perUnit;
      const [aside, beyond] = [onY, onZ].map(({ low, perUnit, side }, k) => between(([py, pz][k] - low) * perUnit, side));
      mixLines(nodes, aside, beyond, onY.side, line);
      for (let x = 0; x < frameX.side; x++, corner++) {
        if (frame.index[corner] < 0) continue;
        const px = frameX.low + x / frameX.perUnit;
        const [node, share] = between((px - onX.low) * onX.perUnit, onX.side);
        const moved = (k) => line[4 * node + k] + share * (line[4 * node + 4 + k] - line[4 * node + k]);
        [at[0], at[1], at[2]] = [px + moved(0), py + moved(1), pz + moved(2)];
        interpolate(canonical, motion.empty, at, frame, row);
        frame.density[row++] += moved(3);
      }
    }
  }
}

/** The nodes of the motion along x, at some y and z. */
function mixLines(nodes, [y, fy], [z, fz], height, line) {
  const [row, slice] = [line.length, line.length * height];
  for (let k = 0, a = z * slice + y * row; k < row; k++, a++) {
    const low = nodes[a] + fy * (nodes[a + row] - nodes[a]);
    const high = nodes[a + slice] + fy * (nodes[a + slice + row] - nodes[a + slice]);
    line[k] = low + fz * (high - low);
  }
}

/** Interpolate density and features at a point, and write them to a row of another volume. */
function interpolate({ resolution, aabb, index, density, features, channels }, empty, [px, py, pz], to, row) {
  const [depth, height, width] = resolution;
  const [x, fx] = between(((px - aabb[0]) / (aabb[3] - aabb[0])) * (width - 1), width);
  const [y, fy] = between(((py - aabb[1]) / (aabb[4] - aabb[1])) * (height - 1), height);
  const [z, fz] = between(((pz - aabb[2]) / (aabb[5] - aabb[2])) * (depth - 1), depth);
  const first = row * channels;
  to.density[row] = 0;
  for (let k = 0; k < channels; k++) to.features[first + k] = 0;
  for (let corner = 0; corner < 8; corner++) {
    const [i, j, l] = [corner & 1, (corner >> 1) & 1, corner >> 2];
    const share = (i ? fx : 1 - fx) * (j ? fy : 1 - fy) * (l ? fz : 1 - fz);
    const from = index[((z + l) * height + y + j) * width + x + i];
    to.density[row] += share * (from < 0 ? empty : density[from]);
    if (from < 0) continue;
    for (let k = 0; k < channels; k++) to.features[first + k] += share * features[from * channels + k];
  }
}
