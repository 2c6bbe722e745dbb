// The sparse volume of a GridR2L: its file, and looking up the rays of an image. The walk is that of
// nelf/kernels/cpu_lookup.py: points one step apart, the density interpolated before its sigmoid, cells that lack a
// corner skipped, a ray ended once less than min_transmittance of its light is left. Points near either limit fade, so
// that no rounding shows.

import { raysOf } from "./camera.js";

const MOST_CORNERS = 2 ** 27;
const CLEARANCE = 12; // cells; a walk through empty space leaps no further

/** Read a volume file, gzip of the corners' bits and of the rows, as bundle.json describes it. */
export async function readVolume(file, about, aabb) {
  const { resolution, rows, features: channels, dtype } = about;
  const corners = resolution.reduce((product, side) => product * side, 1);
  if (!(corners <= MOST_CORNERS)) throw new Error(`${about.file}: describes more corners than a browser can hold.`);
  const [mask, bytes] = [Math.ceil(corners / 8), dtype === "uint8" ? 1 : 2];
  const expected = mask + bytes * rows * (1 + channels);
  // Some hosts declare .gz as an encoding, and the browser has unpacked it already.
  const content = file.byteLength === expected ? file : await unpacked(file, about.file);
  if (content.byteLength !== expected) {
    throw new Error(`${about.file}: holds ${content.byteLength} bytes, but bundle.json describes ${expected}.`);
  }
  const { index, found } = indexOf(content.subarray(0, mask), corners);
  if (found !== rows) throw new Error(`${about.file}: has ${found} corners, but bundle.json describes ${rows} rows.`);
  const numbers = bytes === 1 ? content.subarray(mask) : new Uint16Array(content.slice(mask).buffer);
  const tables = tablesOf(about);
  const density = new Float32Array(rows);
  const features = new Float32Array(rows * channels);
  for (let i = 0; i < rows; i++) density[i] = tables[0][numbers[i]];
  for (let i = 0, at = rows; i < rows; i++) {
    for (let k = 1; k <= channels; k++, at++) features[at - rows] = tables[k][numbers[at]];
  }
  return { ...about, channels, aabb, density, features, index, clearance: clearanceOf(index, resolution), scratch: null };
}

async function unpacked(file, name) {
  const stream = new Blob([file]).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = await new Response(stream).arrayBuffer().catch(() => {
    throw new Error(`${name}: is not a whole gzip file.`);
  });
  return new Uint8Array(content);
}

/** The row of each corner, -1 where it has none, and how many there are. */
function indexOf(mask, corners) {
  const index = new Int32Array(corners).fill(-1);
  let found = 0;
  for (let i = 0; i < corners; i++) if ((mask[i >> 3] >> (7 - (i & 7))) & 1) index[i] = found++;
  return { index, found };
}

/** What each stored number stands for: a table for the density and for each channel. */
function tablesOf({ dtype, features, scale }) {
  if (dtype === "uint8") {
    return scale.low.map((low, k) => Float32Array.from({ length: 256 }, (_, q) => low + scale.step[k] * q));
  }
  return new Array(1 + features).fill(halves());
}

/** All numbers of 16 bits. */
function halves() {
  const table = new Float32Array(65536);
  for (let i = 0; i < 65536; i++) {
    const [sign, exponent, fraction] = [i >> 15 ? -1 : 1, (i >> 10) & 31, i & 1023];
    if (exponent === 0) table[i] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[i] = fraction ? NaN : sign * Infinity;
    else table[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return table;
}

/** How many cells each cell is from the nearest one with all its corners, at most 12: two passes over all neighbors. */
function clearanceOf(index, [depth, height, width]) {
  const [d, h, w] = [depth - 1, height - 1, width - 1];
  // A margin of one cell spares the neighbors' bounds.
  const [row, slice] = [w + 2, (w + 2) * (h + 2)];
  const far = new Uint8Array(slice * (d + 2)).fill(CLEARANCE);
  const before = [-1, -row - 1, -row, -row + 1];
  for (let y = -1; y <= 1; y++) for (let x = -1; x <= 1; x++) before.push(-slice + y * row + x);
  const cells = new Uint8Array(d * h * w);
  for (let z = 0; z < d; z++) {
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        const at = (z + 1) * slice + (y + 1) * row + x + 1;
        if (whole(index, (z * height + y) * width + x, width, width * height)) far[at] = 0;
        else for (const step of before) if (far[at + step] + 1 < far[at]) far[at] = far[at + step] + 1;
      }
    }
  }
  for (let z = d - 1; z >= 0; z--) {
    for (let y = h - 1; y >= 0; y--) {
      for (let x = w - 1; x >= 0; x--) {
        const at = (z + 1) * slice + (y + 1) * row + x + 1;
        if (far[at]) for (const step of before) if (far[at - step] + 1 < far[at]) far[at] = far[at - step] + 1;
        cells[(z * h + y) * w + x] = far[at];
      }
    }
  }
  return cells;
}

/** Whether all eight corners of a cell exist. */
function whole(index, c, row, slice) {
  for (let corner = 0; corner < 8; corner++) {
    if (index[c + (corner & 1) + (corner & 2 ? row : 0) + (corner & 4 ? slice : 0)] < 0) return false;
  }
  return true;
}

/**
 * What the network sees of an image's pixels, in blocks of s x s: for each, the composited features and opacities of its
 * rays, channel by channel as PyTorch's pixel_unshuffle orders them, and 16 spherical harmonics of its direction.
 * @param {object} volume of readVolume
 * @param {Camera} camera
 * @param {number} s pixels along a side of a block
 * @param {{margin: number, multiple: number} | null} about where the network need not run; null for everywhere
 * @returns {{top, left, height, width, inputs: Float32Array} | null} a rectangle of blocks; null if nothing is hit
 */
export function decoderInputs(volume, camera, s, about) {
  const [height, width] = [camera.height / s, camera.width / s];
  const planes = (volume.channels + 1) * s * s;
  if (volume.scratch?.length !== planes * height * width) volume.scratch = new Float32Array(planes * height * width);
  const hit = composite(volume, camera, s, volume.scratch);
  const window = about ? windowOf(hit, height, width, about) : { top: 0, left: 0, height, width };
  if (!window) return null;
  const count = window.height * window.width;
  const inputs = new Float32Array((planes + 16) * count);
  for (let plane = 0, to = 0; plane < planes; plane++) {
    for (let row = 0; row < window.height; row++, to += window.width) {
      const from = (plane * height + window.top + row) * width + window.left;
      inputs.set(volume.scratch.subarray(from, from + window.width), to);
    }
  }
  harmonics(raysOf(camera, s, window).directions, inputs.subarray(planes * count), count);
  return { ...window, inputs };
}

/** The rectangle around the blocks that are hit, as decoder_window of nelf/lightfields/grid_r2l.py finds it. */
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

/** From 0 at a limit to 1 at twice as much. */
const fade = (value, least) => Math.min(Math.max(value / least - 1, 0), 1);

/** Write composited features and opacity of all pixels' rays; give the first and last row and column of hit blocks. */
function composite(volume, camera, s, out) {
  const { density, features, index, clearance, channels, step, aabb } = volume;
  const [minAlpha, minLight] = [volume.min_alpha, volume.min_transmittance];
  const empty = Math.log(minAlpha / (1 - minAlpha)); // of the density before its sigmoid
  const [depth, height, width] = volume.resolution;
  const [cellRow, cellSlice, row, slice] = [width - 1, (width - 1) * (height - 1), width, width * height];
  const [endX, endY, endZ] = [width - 1.001, height - 1.001, depth - 1.001];
  const [ax, ay, az, bx, by, bz] = aabb;
  const [sx, sy, sz] = [(width - 1) / (bx - ax), (height - 1) / (by - ay), (depth - 1) / (bz - az)];
  const { c2w: m, fx: focalX, fy: focalY, cx, cy } = camera;
  const [ox, oy, oz] = [m[3], m[7], m[11]];
  const [blocksWide, count] = [camera.width / s, (camera.width * camera.height) / (s * s)];
  const sum = new Float32Array(channels);
  const hit = { top: Infinity, bottom: -1, left: Infinity, right: -1 };
  out.fill(0);
  for (let pixelY = 0; pixelY < camera.height; pixelY++) {
    const blockY = (pixelY / s) | 0;
    const v = (cy - pixelY - 0.5) / focalY;
    for (let pixelX = 0; pixelX < camera.width; pixelX++) {
      const u = (pixelX + 0.5 - cx) / focalX;
      const dx = m[0] * u + m[1] * v - m[2] || 1e-12;
      const dy = m[4] * u + m[5] * v - m[6] || 1e-12;
      const dz = m[8] * u + m[9] * v - m[10] || 1e-12;
      const near = Math.max(
        ((dx > 0 ? ax : bx) - ox) / dx,
        ((dy > 0 ? ay : by) - oy) / dy,
        ((dz > 0 ? az : bz) - oz) / dz,
        0,
      );
      const far = Math.min(
        ((dx > 0 ? bx : ax) - ox) / dx,
        ((dy > 0 ? by : ay) - oy) / dy,
        ((dz > 0 ? bz : az) - oz) / dz,
      );
      const dt = step / Math.sqrt(dx * dx + dy * dy + dz * dz);
      const first = near + 0.5 * dt;
      if (!(first < far)) continue;
      const points = Math.ceil((far - first) / dt);
      const px = (ox + first * dx - ax) * sx;
      const py = (oy + first * dy - ay) * sy;
      const pz = (oz + first * dz - az) * sz;
      const mx = dx * dt * sx;
      const my = dy * dt * sy;
      const mz = dz * dt * sz;
      const slow = 1 / Math.max(Math.abs(mx), Math.abs(my), Math.abs(mz), 1e-6);
      let light = 1;
      let seen = 0;
      for (let i = 0; i < points; i++) {
        const x = Math.min(Math.max(px + i * mx, 0), endX);
        const y = Math.min(Math.max(py + i * my, 0), endY);
        const z = Math.min(Math.max(pz + i * mz, 0), endZ);
        const ix = x | 0;
        const iy = y | 0;
        const iz = z | 0;
        const clear = clearance[iz * cellSlice + iy * cellRow + ix];
        if (clear) {
          i += ((clear - 1) * slow) | 0;
          continue;
        }
        // Rows stand in the order of their corners: the one after a corner's is that of its neighbor in x.
        const c = iz * slice + iy * row + ix;
        const r00 = index[c];
        const r01 = index[c + row];
        const r10 = index[c + slice];
        const r11 = index[c + slice + row];
        const fx = x - ix;
        const fy = y - iy;
        const fz = z - iz;
        const gx = 1 - fx;
        const gy = 1 - fy;
        const gz = 1 - fz;
        const raw =
          gz *
            (gy * (gx * density[r00] + fx * density[r00 + 1]) + fy * (gx * density[r01] + fx * density[r01 + 1])) +
          fz * (gy * (gx * density[r10] + fx * density[r10 + 1]) + fy * (gx * density[r11] + fx * density[r11 + 1]));
        if (raw < empty) continue;
        const alpha = 1 / (1 + Math.exp(-raw));
        const absorbed = light * alpha * fade(alpha, minAlpha);
        const weight = absorbed * fade(light, minLight);
        if (seen === 0) sum.fill(0);
        light -= absorbed;
        seen += weight;
        const w00 = weight * gz * gy;
        const w01 = weight * gz * fy;
        const w10 = weight * fz * gy;
        const w11 = weight * fz * fy;
        let a = r00 * channels;
        let b = r01 * channels;
        let d = r10 * channels;
        let e = r11 * channels;
        for (let k = 0; k < channels; k++, a++, b++, d++, e++) {
          sum[k] +=
            w00 * (gx * features[a] + fx * features[a + channels]) +
            w01 * (gx * features[b] + fx * features[b + channels]) +
            w10 * (gx * features[d] + fx * features[d + channels]) +
            w11 * (gx * features[e] + fx * features[e + channels]);
        }
        if (light < minLight) break;
      }
      if (seen === 0) continue;
      const blockX = (pixelX / s) | 0;
      if (blockY < hit.top) hit.top = blockY;
      if (blockX < hit.left) hit.left = blockX;
      if (blockX > hit.right) hit.right = blockX;
      hit.bottom = blockY;
      // Channel (feature * s + row in the block) * s + column in the block.
      const within = ((pixelY % s) * s + (pixelX % s)) * count + blockY * blocksWide + blockX;
      for (let k = 0; k < channels; k++) out[k * s * s * count + within] = sum[k];
      out[channels * s * s * count + within] = seen;
    }
  }
  return hit;
}

// Real spherical harmonics up to degree 3, as nelf/encodings.py (tiny-cuda-nn's order and signs).
const [S1, S4, S15] = [Math.sqrt(1 / (4 * Math.PI)), Math.sqrt(3 / (4 * Math.PI)), Math.sqrt(15 / (4 * Math.PI))];
const [S5, S16, S35] = [Math.sqrt(5 / (16 * Math.PI)), Math.sqrt(15 / (16 * Math.PI)), Math.sqrt(35 / (32 * Math.PI))];
const [S105, S21, S7] = [Math.sqrt(105 / (4 * Math.PI)), Math.sqrt(21 / (32 * Math.PI)), Math.sqrt(7 / (16 * Math.PI))];
const S105B = Math.sqrt(105 / (16 * Math.PI));

/** Write the 16 harmonics of all directions, channel by channel. */
function harmonics(directions, out, count) {
  for (let n = 0; n < count; n++) {
    const length = Math.hypot(directions[3 * n], directions[3 * n + 1], directions[3 * n + 2]);
    const x = directions[3 * n] / length;
    const y = directions[3 * n + 1] / length;
    const z = directions[3 * n + 2] / length;
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
