// The sparse volume of a GridR2L: its file, and the network's inputs for the rays of an image.

import { raysOf } from "./camera.js";
import { countCorners } from "./cells.js";
import { unpacked } from "./files.js";

export const MOST_CORNERS = 2 ** 27;

/**
 * @typedef {object} Volume
 * @property {number[]} resolution corners along z, y and x
 * @property {number[]} aabb its box, smallest and largest x, y, z
 * @property {Uint8Array} mask one bit per corner, the highest bit first: whether it has a row
 * @property {number} rows number of rows, which are in the order of the corners
 * @property {number} channels
 * @property {Float32Array} density of each row
 * @property {Float32Array} features channels of each row
 */

/**
 * Read a volume file, gzip of the corners' bits and of the rows, as bundle.json describes it.
 * @returns {Promise<Volume>}
 */
export async function readVolume(file, about, aabb) {
  const { resolution, rows, features: channels, dtype } = about;
  const corners = resolution.reduce((product, side) => product * side, 1);
  if (!(corners <= MOST_CORNERS)) throw new Error(`${about.file}: describes more corners than a browser can hold.`);
  const [bits, bytes] = [Math.ceil(corners / 8), dtype === "uint8" ? 1 : 2];
  const content = await unpacked(file, about.file, bits + bytes * rows * (1 + channels));
  const mask = content.subarray(0, bits);
  const found = countCorners(mask, corners);
  if (found !== rows) throw new Error(`${about.file}: has ${found} corners, but bundle.json describes ${rows} rows.`);
  const numbers = dtype === "uint8" ? content.subarray(bits) : new Uint16Array(content.slice(bits).buffer);
  const tables = tablesOf(about);
  const density = new Float32Array(rows);
  const features = new Float32Array(rows * channels);
  for (let i = 0; i < rows; i++) density[i] = tables[0][numbers[i]];
  for (let i = 0, at = rows; i < rows; i++) {
    for (let k = 1; k <= channels; k++, at++) features[at - rows] = tables[k][numbers[at]];
  }
  return { resolution, aabb, mask, rows, channels, density, features };
}

/** The values of the stored numbers: a table for the density and for each channel. */
function tablesOf({ dtype, features, scale }) {
  if (dtype === "uint8") {
    return scale.low.map((low, k) => Float32Array.from({ length: 256 }, (_, q) => low + scale.step[k] * q));
  }
  return new Array(1 + features).fill(halves());
}

let table; // made on first use

/** The values of all 16-bit floats. */
export function halves() {
  if (table) return table;
  table = new Float32Array(65536);
  for (let i = 0; i < 65536; i++) {
    const [sign, exponent, fraction] = [i >> 15 ? -1 : 1, (i >> 10) & 31, i & 1023];
    if (exponent === 0) table[i] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[i] = fraction ? NaN : sign * Infinity;
    else table[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

/**
 * The network's inputs for an image, per block of s x s pixels: the composited features and opacities of its rays, in
 * the channel order of PyTorch's pixel_unshuffle, and 16 spherical harmonics of its direction.
 * @param {import("./lookup.js").Lookup} lookup
 * @param {Camera} camera
 * @param {number} s pixels along a side of a block
 * @param {{margin: number, multiple: number} | null} about the artifact's window; null for the whole image
 * @returns {{top, left, height, width, inputs: Float32Array} | null} a rectangle of blocks; null if nothing is hit
 */
export function decoderInputs(lookup, camera, s, about) {
  const [height, width] = [camera.height / s, camera.width / s];
  const { planes, hit } = lookup.composite(camera, s);
  const window = about ? windowOf(hit, height, width, about) : { top: 0, left: 0, height, width };
  if (!window) return null;
  const [many, count] = [planes.length / (height * width), window.height * window.width];
  const inputs = new Float32Array((many + 16) * count);
  for (let plane = 0, to = 0; plane < many; plane++) {
    for (let row = 0; row < window.height; row++, to += window.width) {
      const from = (plane * height + window.top + row) * width + window.left;
      inputs.set(planes.subarray(from, from + window.width), to);
    }
  }
  harmonics(raysOf(camera, s, window).directions, inputs.subarray(many * count), count);
  return { ...window, inputs };
}

/** The rectangle around the blocks that are hit, as decoder_window of nelf/lightfields/decoder.py finds it. */
function windowOf({ top, bottom, left, right }, height, width, { margin, multiple }) {
  if (top > bottom) return null;
  const grown = (low, high, size) => {
    const [first, last] = [Math.max(low - margin, 0), Math.min(high + 1 + margin, size)];
    const length = Math.min(Math.ceil((last - first) / multiple) * multiple, size);
    return [Math.min(first, size - length), length];
  };
  const [[y, rows], [x, columns]] = [grown(top, bottom, height), grown(left, right, width)];
  return { top: y, left: x, height: rows, width: columns };
}

// Real spherical harmonics up to degree 3, as nelf/encodings.py (tiny-cuda-nn's order and signs).
const [S1, S4, S15] = [Math.sqrt(1 / (4 * Math.PI)), Math.sqrt(3 / (4 * Math.PI)), Math.sqrt(15 / (4 * Math.PI))];
const [S5, S16, S35] = [Math.sqrt(5 / (16 * Math.PI)), Math.sqrt(15 / (16 * Math.PI)), Math.sqrt(35 / (32 * Math.PI))];
const [S105, S21, S7] = [Math.sqrt(105 / (4 * Math.PI)), Math.sqrt(21 / (32 * Math.PI)), Math.sqrt(7 / (16 * Math.PI))];
const S105B = Math.sqrt(105 / (16 * Math.PI));

/** Write the 16 harmonics of all directions, channel by channel. */
function harmonics(directions, out, count) {
  for (let n = 0; n < count; n++) {
    let [x, y, z] = [directions[3 * n], directions[3 * n + 1], directions[3 * n + 2]];
    const length = Math.sqrt(x * x + y * y + z * z);
    [x, y, z] = [x / length, y / length, z / length];
    const [xx, yy, zz] = [x * x, y * y, z * z];
    out[n] = S1;
    out[count + n] = -S4 * y;
    out[2 * count + n] = S4 * z;
    out[3 * count + n] = -S4 * x;
    out[4 * count + n] = S15 * x * y;
    out[5 * count + n] = -S15 * y * z;
    out[6 * count + n] = S5 * (3 * zz - 1);
    out[7 * count + n] = -S15 * x * z;
    out[8 * count + n] = S16 * (xx - yy);
    out[9 * count + n] = S35 * y * (yy - 3 * xx);
    out[10 * count + n] = S105 * x * y * z;
    out[11 * count + n] = S21 * y * (1 - 5 * zz);
    out[12 * count + n] = S7 * z * (5 * zz - 3);
    out[13 * count + n] = S21 * x * (1 - 5 * zz);
    out[14 * count + n] = S105B * z * (xx - yy);
    out[15 * count + n] = S35 * x * (3 * yy - xx);
  }
}
