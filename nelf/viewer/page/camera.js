// Cameras: an orbit around a point, and the rays of an image. Axes are OpenGL's (x right, y up, looking along -z),
// pixel centers lie at +0.5, and a ray's direction has camera-space z = -1, as everywhere in nelf.

const RADIANS = Math.PI / 180;

/** @typedef {{min: number, max: number, value: number}} Range */
/** @typedef {{target: number[], up: number[], radius: Range, elevation: Range, azimuth: Range}} OrbitLimits */
/** @typedef {{near: number, half_width: number, half_height: number}} NDC see nelf/rays.py */
/** @typedef {{c2w: Float32Array, width: number, height: number, fx: number, fy: number, cx: number, cy: number, ndc: NDC | null}} Camera */

const clamp = (value, { min, max }) => Math.min(Math.max(value, min), max);

/** Position of the viewer's camera on a sphere, kept within the range of the training cameras. */
export class Orbit {
  /** @param {OrbitLimits} limits */
  constructor(limits) {
    this.limits = limits;
    this.reset();
  }

  /** Return to the initial view. */
  reset() {
    this.azimuth = this.limits.azimuth.value;
    this.elevation = this.limits.elevation.value;
    this.radius = this.limits.radius.value;
  }

  /** Rotate by degrees; azimuth wraps around if its limits span a full turn. */
  turn(azimuth, elevation) {
    const { min, max } = this.limits.azimuth;
    const next = this.azimuth + azimuth;
    this.azimuth = max - min >= 360 ? ((((next + 180) % 360) + 360) % 360) - 180 : clamp(next, this.limits.azimuth);
    this.elevation = clamp(this.elevation + elevation, this.limits.elevation);
  }

  /** Move closer (factor below one) or farther away. */
  zoom(factor) {
    this.radius = clamp(this.radius * factor, this.limits.radius);
  }

  /** Camera to world, 3 x 4, row by row. */
  pose() {
    const { target, up } = this.limits;
    const [a, e] = [this.azimuth * RADIANS, this.elevation * RADIANS];
    const [first, second] = level(up);
    const parts = [Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e)];
    const back = [0, 1, 2].map((k) => parts[0] * first[k] + parts[1] * second[k] + parts[2] * up[k]);
    const right = normalized(cross(up, back));
    const above = cross(back, right);
    const c2w = new Float32Array(12);
    for (let row = 0; row < 3; row++) {
      c2w.set([right[row], above[row], back[row], target[row] + this.radius * back[row]], 4 * row);
    }
    return c2w;
  }
}

/** The directions of azimuth 0 and 90 degrees, perpendicular to up: see orbit in nelf.export.bundle. */
function level(up) {
  const along = Math.abs(up[0]) > 0.9 ? 1 : 0;
  const first = normalized([0, 1, 2].map((k) => (k === along ? 1 : 0) - up[along] * up[k]));
  return [first, cross(up, first)];
}

const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

function normalized(v) {
  const length = Math.hypot(...v);
  return v.map((x) => x / length);
}

/**
 * The camera of a bundle at a pose, with its image scaled by a factor and rounded to whole blocks.
 * @returns {Camera}
 */
export function cameraOf(bundle, c2w, scale) {
  const block = bundle.sr_factor;
  const side = (full) => Math.max(block, Math.round((full * scale) / block) * block);
  const [width, height] = [side(bundle.image.width), side(bundle.image.height)];
  const [sx, sy] = [width / bundle.image.width, height / bundle.image.height];
  const { fx, fy, cx, cy } = bundle.intrinsics;
  return { c2w, width, height, fx: fx * sx, fy: fy * sy, cx: cx * sx, cy: cy * sy, ndc: bundle.ndc ?? null };
}

/**
 * The camera whose rays are shifted to the left and up by a number of image widths.
 * @param {Camera} camera
 * @param {number} widths
 * @returns {Camera}
 */
export function shifted(camera, widths) {
  const pixels = widths * camera.width;
  return { ...camera, cx: camera.cx + pixels, cy: camera.cy + pixels };
}

/**
 * Rays, in scene coordinates, through the centers of the image's blocks of stride x stride pixels.
 * @param {Camera} camera
 * @param {number} stride
 * @param {{top: number, left: number, width: number, height: number}} [window] of blocks; all if it is left out
 * @returns {{width: number, height: number, origin: number[], directions: Float32Array}} directions (h, w, 3)
 */
export function raysOf(camera, stride, window) {
  const { c2w: m, fx, fy, cx, cy } = camera;
  const all = { top: 0, left: 0, width: camera.width / stride, height: camera.height / stride };
  const { top, left, width, height } = window ?? all;
  const directions = new Float32Array(width * height * 3);
  let k = 0;
  for (let row = top; row < top + height; row++) {
    const y = (cy - (row + 0.5) * stride) / fy;
    for (let column = left; column < left + width; column++) {
      const x = ((column + 0.5) * stride - cx) / fx;
      directions[k++] = m[0] * x + m[1] * y - m[2];
      directions[k++] = m[4] * x + m[5] * y - m[6];
      directions[k++] = m[8] * x + m[9] * y - m[10];
    }
  }
  return { width, height, origin: [m[3], m[7], m[11]], directions };
}

const SIDEWAYS = -1e-6; // upper limit of a direction's z, for rays that do not point forward

/** Origin and direction of a ray along x or y in NDC, see nelf.rays.NDC; along z they are -1 and 2. */
export function ndcOf(origin, direction, originZ, directionZ, near, half) {
  const slope = -direction / Math.min(directionZ, SIDEWAYS);
  const start = (origin + (near + originZ) * slope) / near;
  return [start / half, (slope - start) / half];
}

/**
 * Rays in normalized device coordinates, if the camera has them, else unchanged.
 * @returns {{origins: Float32Array, directions: Float32Array}} (h, w, 3) each
 */
export function inNdc({ origin, directions }, ndc) {
  const origins = Float32Array.from(directions, (_, i) => origin[i % 3]);
  if (!ndc) return { origins, directions };
  const warped = new Float32Array(directions.length);
  for (let i = 0; i < warped.length; i += 3) {
    const z = directions[i + 2];
    [origins[i], warped[i]] = ndcOf(origin[0], directions[i], origin[2], z, ndc.near, ndc.half_width);
    [origins[i + 1], warped[i + 1]] = ndcOf(origin[1], directions[i + 1], origin[2], z, ndc.near, ndc.half_height);
    [origins[i + 2], warped[i + 2]] = [-1, 2];
  }
  return { origins, directions: warped };
}
