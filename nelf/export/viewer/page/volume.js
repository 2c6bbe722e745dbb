// The volume of a GridR2L: its file, and compositing along rays. The walk is that of nelf/kernels/ray_features.py:
// evenly spaced points between entry and exit of the box, the density interpolated before its softplus, empty cells and
// points below min_tau skipped, a ray ended once less than min_transmittance of its light is left. Points near either
// limit fade, so that no rounding shows.

/** Read a volume file, gzip of little-endian arrays, as bundle.json describes it. */
export async function readVolume(file, about, aabb) {
  const [depth, height, width] = about.resolution;
  const corners = depth * height * width;
  const cells = (depth - 1) * (height - 1) * (width - 1);
  const half = about.dtype === "float16";
  const count = corners * about.features;
  const expected = 4 * corners + (half ? 2 : 4) * count + cells;
  // Some hosts declare .gz as an encoding, and the browser has unpacked it already.
  const content = file.byteLength === expected ? file.buffer : await unpacked(file, about.file);
  if (content.byteLength !== expected) {
    throw new Error(`${about.file}: holds ${content.byteLength} bytes, but bundle.json describes ${expected}.`);
  }
  const density = new Float32Array(content, 0, corners);
  const features = half
    ? fromHalf(new Uint16Array(content, 4 * corners, count))
    : new Float32Array(content, 4 * corners, count);
  const clearance = new Uint8Array(content, expected - cells, cells);
  return { ...about, channels: about.features, aabb, density, features, clearance };
}

async function unpacked(file, name) {
  const stream = new Blob([file]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer().catch(() => {
    throw new Error(`${name}: is not a whole gzip file.`);
  });
}

/** Numbers of 16 bits to numbers of 32, through a table of all of them. */
function fromHalf(bits) {
  const table = new Float32Array(65536);
  for (let i = 0; i < 65536; i++) {
    const [sign, exponent, fraction] = [i >> 15 ? -1 : 1, (i >> 10) & 31, i & 1023];
    if (exponent === 0) table[i] = sign * fraction * 2 ** -24;
    else if (exponent === 31) table[i] = fraction ? NaN : sign * Infinity;
    else table[i] = sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) values[i] = table[bits[i]];
  return values;
}

/**
 * What the network sees of rays: composited features, opacity, 16 spherical harmonics of the direction.
 * @returns {Float32Array} (features + 17, h, w)
 */
export function decoderInputs(volume, rays) {
  const count = rays.width * rays.height;
  const inputs = new Float32Array((volume.channels + 17) * count);
  composite(volume, rays, inputs);
  harmonics(rays.directions, inputs.subarray((volume.channels + 1) * count), count);
  return inputs;
}

/** From 0 at a limit to 1 at twice as much. */
const fade = (value, least) => Math.min(Math.max(value / least - 1, 0), 1);

/** Write composited features and opacity of all rays, channel by channel. No arrays in the loop: an eighth faster. */
function composite(volume, rays, out) {
  const { density, features, clearance, aabb, points, density_scale: scale, min_tau: minTau } = volume;
  const [depth, height, width] = volume.resolution;
  const channels = volume.channels;
  const { directions } = rays;
  const [ox, oy, oz] = rays.origin;
  const count = rays.width * rays.height;
  const [ax, ay, az, bx, by, bz] = aabb;
  const [sx, sy, sz] = [(width - 1) / (bx - ax), (height - 1) / (by - ay), (depth - 1) / (bz - az)];
  const [endX, endY, endZ] = [width - 1.001, height - 1.001, depth - 1.001];
  const [row, slice] = [width, width * height];
  const minLight = volume.min_transmittance;
  const sum = new Float32Array(channels);
  for (let n = 0; n < count; n++) {
    const dx = directions[3 * n] || 1e-12;
    const dy = directions[3 * n + 1] || 1e-12;
    const dz = directions[3 * n + 2] || 1e-12;
    const enterX = ((dx > 0 ? ax : bx) - ox) / dx;
    const enterY = ((dy > 0 ? ay : by) - oy) / dy;
    const enterZ = ((dz > 0 ? az : bz) - oz) / dz;
    const leaveX = ((dx > 0 ? bx : ax) - ox) / dx;
    const leaveY = ((dy > 0 ? by : ay) - oy) / dy;
    const leaveZ = ((dz > 0 ? bz : az) - oz) / dz;
    const near = Math.max(enterX, enterY, enterZ, 0);
    const step = (Math.min(leaveX, leaveY, leaveZ) - near) / points;
    if (!(step > 0)) continue;
    const first = near + 0.5 * step;
    const length = step * scale * Math.sqrt(dx * dx + dy * dy + dz * dz);
    const least = minTau / length; // of the density after its softplus; below it a point is empty
    const empty = least > 15 ? least : Math.log(Math.expm1(least));
    const px = (ox + first * dx - ax) * sx;
    const py = (oy + first * dy - ay) * sy;
    const pz = (oz + first * dz - az) * sz;
    const mx = dx * step * sx;
    const my = dy * step * sy;
    const mz = dz * step * sz;
    const slow = 1 / Math.max(Math.abs(mx), Math.abs(my), Math.abs(mz), 1e-6);
    let light = 1;
    let seen = 0;
    sum.fill(0);
    for (let i = 0; i < points; i++) {
      const x = Math.min(Math.max(px + i * mx, 0), endX);
      const y = Math.min(Math.max(py + i * my, 0), endY);
      const z = Math.min(Math.max(pz + i * mz, 0), endZ);
      const ix = x | 0;
      const iy = y | 0;
      const iz = z | 0;
      const clear = clearance[(iz * (height - 1) + iy) * (width - 1) + ix];
      if (clear) {
        i += ((clear - 1) * slow) | 0;
        continue;
      }
      const fx = x - ix;
      const fy = y - iy;
      const fz = z - iz;
      const gx = 1 - fx;
      const gy = 1 - fy;
      const gz = 1 - fz;
      const c = iz * slice + iy * row + ix;
      const raw =
        gz * (gy * (gx * density[c] + fx * density[c + 1]) + fy * (gx * density[c + row] + fx * density[c + row + 1])) +
        fz *
          (gy * (gx * density[c + slice] + fx * density[c + slice + 1]) +
            fy * (gx * density[c + slice + row] + fx * density[c + slice + row + 1]));
      if (raw < empty) continue;
      const tau = length * (raw > 15 ? raw : Math.log(1 + Math.exp(raw)));
      const absorbed = light * (1 - Math.exp(-tau * fade(tau, minTau)));
      const weight = absorbed * fade(light, minLight);
      light -= absorbed;
      seen += weight;
      const w00 = weight * gz * gy;
      const w01 = weight * gz * fy;
      const w10 = weight * fz * gy;
      const w11 = weight * fz * fy;
      let a = c * channels;
      for (let k = 0; k < channels; k++, a++) {
        const b = a + row * channels;
        const d = a + slice * channels;
        const e = d + row * channels;
        sum[k] +=
          w00 * (gx * features[a] + fx * features[a + channels]) +
          w01 * (gx * features[b] + fx * features[b + channels]) +
          w10 * (gx * features[d] + fx * features[d + channels]) +
          w11 * (gx * features[e] + fx * features[e + channels]);
      }
      if (light < minLight) break;
    }
    for (let k = 0; k < channels; k++) out[k * count + n] = sum[k];
    out[channels * count + n] = seen;
  }
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
