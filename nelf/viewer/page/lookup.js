// Composites a sparse volume along the rays of an image, for browsers without the SIMD that kernels.js needs. As in
// nelf/kernels/cpu_lookup.py, samples are one step apart, the density is interpolated before its sigmoid, cells that
// lack a corner are skipped, and a ray ends once its transmittance is below min_transmittance. Samples near either
// limit are faded, so that rounding has no visible effect.

import { ndcOf } from "./camera.js";
import { clearanceOf, indexOf } from "./cells.js";
import { fillFrame, maskAt, nodesAt } from "./motion.js";

/** @typedef {{step: number, min_alpha: number, min_transmittance: number}} Walk as in bundle.json */

/** Composites a volume; a moving one at the controls that were set last. */
export class Lookup {
  /**
   * @param {import("./volume.js").Volume} volume
   * @param {Walk} walk
   * @param {import("./motion.js").Motion | null} motion of the volume
   */
  constructor(volume, walk, motion) {
    this.walk = walk;
    this.planes = new Float32Array(0);
    this.motion = motion;
    this.mask = -1; // index of the motion's mask that the frame has
    const { resolution, channels } = volume;
    const index = indexOf(volume.mask, resolution);
    if (motion) {
      this.canonical = { ...volume, index };
      const [density, features] = [new Float32Array(motion.rows), new Float32Array(motion.rows * channels)];
      this.volume = { resolution: motion.resolution, aabb: motion.frame, channels, density, features };
    } else {
      this.volume = { ...volume, index, clearance: clearanceOf(index, resolution) };
    }
  }

  /** Set the time and other controls of a moving volume. */
  set(controls) {
    const { canonical, motion, volume } = this;
    const mask = maskAt(motion, controls);
    if (mask !== this.mask) {
      this.mask = mask;
      volume.index = indexOf(motion.masks[mask], volume.resolution);
      volume.clearance = clearanceOf(volume.index, volume.resolution);
    }
    fillFrame(canonical, motion, nodesAt(motion, controls), volume);
  }

  /**
   * Composite the rays of an image.
   * @param {Camera} camera
   * @param {number} s pixels along a side of a block
   * @returns {{planes: Float32Array, hit: {top, bottom, left, right}}} planes of features, then opacities, one plane
   *   per pixel of a block, with one number per block, valid until the next call; and the first and last row and
   *   column of blocks that are hit (first > last if there are none)
   */
  composite(camera, s) {
    const size = (this.volume.channels + 1) * camera.width * camera.height;
    if (this.planes.length !== size) this.planes = new Float32Array(size);
    return { planes: this.planes, hit: composite(this.volume, this.walk, camera, s, this.planes) };
  }
}

/** From 0 at a limit to 1 at twice as much. */
const fade = (value, least) => Math.min(Math.max(value / least - 1, 0), 1);

/** Write the planes of all rays; return the first and last row and column of hit blocks. */
function composite(volume, walk, camera, s, out) {
  const { density, features, index, clearance, channels, aabb } = volume;
  const { step, min_alpha: minAlpha, min_transmittance: minLight } = walk;
  const empty = Math.log(minAlpha / (1 - minAlpha)); // of the density before its sigmoid
  const [depth, height, width] = volume.resolution;
  const [row, slice] = [width, width * height];
  const [endX, endY, endZ] = [width - 1.001, height - 1.001, depth - 1.001];
  const [ax, ay, az, bx, by, bz] = aabb;
  const [sx, sy, sz] = [(width - 1) / (bx - ax), (height - 1) / (by - ay), (depth - 1) / (bz - az)];
  const { c2w: m, fx: focalX, fy: focalY, cx, cy, ndc } = camera;
  let [ox, oy, oz] = [m[3], m[7], m[11]];
  const [blocksWide, count] = [camera.width / s, (camera.width * camera.height) / (s * s)];
  const sum = new Float32Array(channels);
  const hit = { top: Infinity, bottom: -1, left: Infinity, right: -1 };
  out.fill(0);
  for (let pixelY = 0; pixelY < camera.height; pixelY++) {
    const blockY = (pixelY / s) | 0;
    const v = (cy - pixelY - 0.5) / focalY;
    for (let pixelX = 0; pixelX < camera.width; pixelX++) {
      const u = (pixelX + 0.5 - cx) / focalX;
      let dx = m[0] * u + m[1] * v - m[2] || 1e-12;
      let dy = m[4] * u + m[5] * v - m[6] || 1e-12;
      let dz = m[8] * u + m[9] * v - m[10] || 1e-12;
      if (ndc) {
        [ox, dx] = ndcOf(m[3], dx, m[11], dz, ndc.near, ndc.half_width);
        [oy, dy] = ndcOf(m[7], dy, m[11], dz, ndc.near, ndc.half_height);
        [oz, dx, dy, dz] = [-1, dx || 1e-12, dy || 1e-12, 2];
      }
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
        const c = iz * slice + iy * row + ix;
        const clear = clearance[c];
        if (clear) {
          i += ((clear - 1) * slow) | 0;
          continue;
        }
        // Rows are in the order of their corners: the row after a corner's is that of its neighbor in x.
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
