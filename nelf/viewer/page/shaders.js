// The WGSL of webgpu.js: the look-up and the network of nelf/viewer/kernels/*.c, with one invocation for each pixel,
// block or corner. What is fixed for a model is a constant of its shaders.

const VIEW = `
struct View {
  c2w: array<vec4f, 3>,
  focal: vec4f,      // fx, fy, cx, cy, pixels
  ndc: vec4f,        // near, half width and half height; near is 0 for rays in scene coordinates
  background: vec4f, // from 0 to 255
  image: vec4u,      // width and height in pixels, and in blocks
}
@group(0) @binding(0) var<uniform> view: View;

fn direction_at(pixel: vec2f) -> vec3f {
  let u = (pixel.x - view.focal.z) / view.focal.x;
  let v = (view.focal.w - pixel.y) / view.focal.y;
  let m = view.c2w;
  return vec3f(m[0].x, m[1].x, m[2].x) * u + vec3f(m[0].y, m[1].y, m[2].y) * v - vec3f(m[0].z, m[1].z, m[2].z);
}
`;

/** The corners of a volume in the buffer `words`: which of 32 along x exist, and the row of the first of them. */
const rows = (name, [, height, width]) => `
fn ${name}_word(x: i32, y: i32, z: i32) -> vec2u {
  return ${name}[(z * ${height} + y) * ${Math.ceil(width / 32)} + (x >> 5)];
}
fn ${name}_row(x: i32, y: i32, z: i32) -> u32 {
  let word = ${name}_word(x, y, z);
  return word.y + countOneBits(word.x & ~(0xffffffffu << u32(x & 31)));
}
`;

const vector = (values) => `vec3f(${values.map((value) => value.toString()).join(", ")})`;

/**
 * Composite the volume along the rays of all pixels: see nelf/viewer/kernels/lookup.c.
 * @param {{resolution: number[], aabb: number[], channels: number}} volume
 * @param {import("./lookup.js").Walk} walk
 * @param {{s: number, pitch: number}} layout of the network's inputs
 */
export function compositing({ resolution, aabb, channels }, walk, { s, pitch }) {
  const [depth, height, width] = resolution;
  const vectors = Math.ceil(channels / 4);
  const each = (count, line) => Array.from({ length: count }, (_, k) => line(k)).join("\n  ");
  const corner = (row, k) => `mix(features[${row} * ${vectors} + ${k}], features[(${row} + 1) * ${vectors} + ${k}], share.x)`;
  return `${VIEW}
@group(0) @binding(1) var<storage, read> words: array<vec2u>;
@group(0) @binding(2) var<storage, read> clearance: array<u32>; // a byte for each corner
@group(0) @binding(3) var<storage, read> density: array<f32>;
@group(0) @binding(4) var<storage, read> features: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> inputs: array<f32>; // (blocks, ${pitch})
${rows("words", resolution)}
const LOW = ${vector(aabb.slice(0, 3))};
const HIGH = ${vector(aabb.slice(3))};
const SIDES = vec3f(${width}, ${height}, ${depth});

fn fade(value: f32, least: f32) -> f32 {
  return clamp(value / least - 1, 0, 1);
}

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) pixel: vec3u) {
  if (pixel.x >= view.image.x || pixel.y >= view.image.y) { return; }
  var origin = vec3f(view.c2w[0].w, view.c2w[1].w, view.c2w[2].w);
  var direction = direction_at(vec2f(pixel.xy) + 0.5);
  if (view.ndc.x > 0) {
    let slope = direction.xy / -min(direction.z, -1e-6);
    let start = (origin.xy + (view.ndc.x + origin.z) * slope) / view.ndc.x;
    origin = vec3f(start / view.ndc.yz, -1);
    direction = vec3f((slope - start) / view.ndc.yz, 2);
  }
  direction = select(direction, vec3f(1e-12), direction == vec3f(0));
  let a = (LOW - origin) / direction;
  let b = (HIGH - origin) / direction;
  let lows = min(a, b);
  let highs = max(a, b);
  let near = max(max(lows.x, lows.y), max(lows.z, 0));
  let far = min(min(highs.x, highs.y), highs.z);
  let dt = ${walk.step} / sqrt(dot(direction, direction));
  let voxels = (SIDES - 1) / (HIGH - LOW);
  let start = (origin - LOW) * voxels;
  let along = direction * voxels;
  let fastest = max(max(abs(along.x), abs(along.y)), abs(along.z));
  let points_per_voxel = 1 / max(fastest * dt, 1e-6);
  let first = near + 0.5 * dt;
  var point = 0.0;
  var light = 1.0;
  var seen = 0.0;
  var sum: array<vec4f, ${vectors}>;
  loop {
    let t = first + point * dt;
    if (!(t < far) || light < ${walk.min_transmittance}) { break; }
    let within = clamp(start + along * t, vec3f(0), SIDES - 1.001);
    let cell = vec3i(within);
    let corner = u32((cell.z * ${height} + cell.y) * ${width} + cell.x);
    let clear = extractBits(clearance[corner / 4], 8 * (corner % 4), 8);
    if (clear > 0) {
      point += max(floor((f32(clear) - 1) * points_per_voxel), 0) + 1;
      continue;
    }
    point += 1;
    let r0 = words_row(cell.x, cell.y, cell.z); // the row after it is that of the neighbor in x
    let r1 = words_row(cell.x, cell.y + 1, cell.z);
    let r2 = words_row(cell.x, cell.y, cell.z + 1);
    let r3 = words_row(cell.x, cell.y + 1, cell.z + 1);
    let share = within - vec3f(cell);
    let low = mix(vec2f(density[r0], density[r0 + 1]), vec2f(density[r2], density[r2 + 1]), share.z);
    let high = mix(vec2f(density[r1], density[r1 + 1]), vec2f(density[r3], density[r3 + 1]), share.z);
    let pair = mix(low, high, share.y);
    let raw = clamp(mix(pair.x, pair.y, share.x), -80, 80);
    if (raw < ${Math.log(walk.min_alpha / (1 - walk.min_alpha))}) { continue; }
    let alpha = 1 / (1 + exp(-raw));
    let absorbed = light * alpha * fade(alpha, ${walk.min_alpha});
    let weight = absorbed * fade(light, ${walk.min_transmittance});
    light -= absorbed;
    seen += weight;
    for (var k = 0u; k < ${vectors}; k++) {
      let bottom = mix(${corner("r0", "k")}, ${corner("r1", "k")}, share.y);
      let top = mix(${corner("r2", "k")}, ${corner("r3", "k")}, share.y);
      sum[k] += weight * mix(bottom, top, share.z);
    }
  }
  let block = pixel.y / ${s} * view.image.z + pixel.x / ${s};
  let at = block * ${pitch} + pixel.y % ${s} * ${s} + pixel.x % ${s};
  ${each(channels, (k) => `inputs[at + ${k * s * s}] = sum[${k >> 2}][${k & 3}];`)}
  inputs[at + ${channels * s * s}] = seen;
}
`;
}

/** Write the spherical harmonics of each block's direction behind its features, and its largest opacity. */
export const preparing = ({ s, pitch, channels }) => `${VIEW}
@group(0) @binding(1) var<storage, read_write> inputs: array<f32>;
@group(0) @binding(2) var<storage, read_write> peaks: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let block = id.x;
  if (block >= view.image.z * view.image.w) { return; }
  let place = vec2u(block % view.image.z, block / view.image.z);
  let d = normalize(direction_at((vec2f(place) + 0.5) * ${s}));
  let dd = d * d;
  let five = 1 - 5 * dd.z;
  let round = dd.x - dd.y;
  let values = array<f32, 16>(
    0.28209479177387814, -0.48860251190291992 * d.y, 0.48860251190291992 * d.z, -0.48860251190291992 * d.x,
    1.0925484305920792 * d.x * d.y, -1.0925484305920792 * d.y * d.z, 0.31539156525252005 * (3 * dd.z - 1),
    -1.0925484305920792 * d.x * d.z, 0.54627421529603959 * round, 0.59004358992664352 * d.y * (dd.y - 3 * dd.x),
    2.8906114426405538 * d.x * d.y * d.z, 0.45704579946446572 * d.y * five,
    0.3731763325901154 * d.z * (5 * dd.z - 3), 0.45704579946446572 * d.x * five,
    1.4453057213202769 * d.z * round, 0.59004358992664352 * d.x * (3 * dd.y - dd.x));
  let first = block * ${pitch};
  for (var k = 0u; k < 16; k++) { inputs[first + ${(channels + 1) * s * s} + k] = values[k]; }
  var peak = 0.0;
  for (var k = 0u; k < ${s * s}; k++) { peak = max(peak, inputs[first + ${channels * s * s} + k]); }
  peaks[block] = peak;
}
`;

/** Write the Chebyshev distance of each block from the nearest one with an opacity, at most `reach` + 1. */
export const measuring = (reach) => `${VIEW}
@group(0) @binding(1) var<storage, read> peaks: array<f32>;
@group(0) @binding(2) var<storage, read_write> distances: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let size = vec2i(view.image.zw);
  let block = i32(id.x);
  if (block >= size.x * size.y) { return; }
  let place = vec2i(block % size.x, block / size.x);
  var nearest = ${reach + 1};
  for (var y = max(place.y - ${reach}, 0); y <= min(place.y + ${reach}, size.y - 1); y++) {
    for (var x = max(place.x - ${reach}, 0); x <= min(place.x + ${reach}, size.x - 1); x++) {
      if (peaks[y * size.x + x] > 0) { nearest = min(nearest, max(abs(x - place.x), abs(y - place.y))); }
    }
  }
  distances[block] = u32(nearest);
}
`;

const ACTIVATED = {
  linear: () => "x",
  relu: () => "max(x, vec4f(0))",
  gelu: () => "0.5 * x * select(rest, 2 - rest, x > vec4f(0))",
};

/** To 8 bits, if a layer has that rounding. */
const rounded = (rounding, x) =>
  rounding?.scale
    ? `(clamp(round(${x} / ${rounding.scale}) + ${rounding.zero}, vec4f(0), vec4f(255)) - ${rounding.zero}) * ${rounding.scale}`
    : x;

/**
 * One layer of the network, where blocks are near enough to one with an opacity: convolve of decoder.c.
 * @param {import("./decoder.js").Layer} layer
 * @param {number} inputs channels, filled up to a multiple of 4
 * @param {number} outputs channels, filled up to a multiple of 8
 * @param {number} reach largest distance at which its output is needed
 * @param {boolean} adds whether it ends a residual block
 * @param {import("./decoder.js").Rounding | null} rounding of what it sees
 */
export const convolving = ({ side, activation, before, after, sum }, inputs, outputs, reach, adds, rounding) => `${VIEW}
@group(0) @binding(1) var<storage, read> distances: array<u32>;
@group(0) @binding(2) var<storage, read> inputs: array<vec4f>;
@group(0) @binding(3) var<storage, read> weights: array<vec4f>; // (outputs / 8, side, side, inputs, 8)
@group(0) @binding(4) var<storage, read> bias: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> outputs: array<vec4f>;
${adds ? "@group(0) @binding(6) var<storage, read> residual: array<vec4f>;" : ""}

// Abramowitz and Stegun 7.1.26
fn activated(x: vec4f) -> vec4f {
  let z = abs(x) * 0.70710678;
  let t = 1 / (1 + z * 0.3275911);
  let p = (((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592;
  let rest = p * t * exp(-min(z * z, vec4f(80)));
  return ${ACTIVATED[activation]()};
}

fn finished(x: vec4f, at: u32) -> vec4f {
  var value = activated(${rounded(before, "x")});
  value = ${rounded(after, "value")};
  ${adds ? `value += residual[at];\n  value = ${rounded(sum, "value")};` : ""}
  return value;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let size = vec2i(view.image.zw);
  let block = i32(id.x);
  if (block >= size.x * size.y || distances[block] > ${reach}) { return; }
  let group = id.y;
  var a = bias[2 * group];
  var b = bias[2 * group + 1];
  var weight = group * ${side * side * inputs * 2};
  for (var y = block / size.x - ${side >> 1}; y <= block / size.x + ${side >> 1}; y++) {
    for (var x = block % size.x - ${side >> 1}; x <= block % size.x + ${side >> 1}; x++) {
      if (x >= 0 && x < size.x && y >= 0 && y < size.y) {
        let first = u32(y * size.x + x) * ${inputs / 4};
        for (var k = 0u; k < ${inputs / 4}; k++) {
          let seen = inputs[first + k];
          let value = ${rounded(rounding, "seen")};
          let at = weight + 8 * k;
          a += value.x * weights[at] + value.y * weights[at + 2] + value.z * weights[at + 4] + value.w * weights[at + 6];
          b += value.x * weights[at + 1] + value.y * weights[at + 3] + value.z * weights[at + 5] + value.w * weights[at + 7];
        }
      }
      weight += ${2 * inputs};
    }
  }
  let at = u32(block) * ${outputs / 4} + 2 * group;
  outputs[at] = finished(a, at);
  outputs[at + 1] = finished(b, at + 1);
}
`;

const ENVIRONMENT = (s, texels) => `
@group(0) @binding(5) var<storage, read> environment: array<vec4f>; // (${texels}, ${texels})

fn direction_of(block: vec2i) -> vec3f {
  return normalize(direction_at((vec2f(block) + 0.5) * ${s}));
}

// Octahedral: see nelf/lightfields/environment.py.
fn color_of(direction: vec3f) -> vec3f {
  let scaled = direction / dot(abs(direction), vec3f(1));
  let folded = (1 - abs(scaled.yx)) * select(vec2f(1), vec2f(-1), scaled.xy < vec2f(0));
  let place = (select(scaled.xy, folded, scaled.z < 0) + 1) * ${texels / 2} - 0.5;
  let within = clamp(place, vec2f(0), vec2f(${texels - 1}));
  let low = vec2u(within);
  let high = min(low + 1, vec2u(${texels - 1}));
  let share = within - vec2f(low);
  let top = mix(environment[low.y * ${texels} + low.x], environment[low.y * ${texels} + high.x], share.x);
  let bottom = mix(environment[high.y * ${texels} + low.x], environment[high.y * ${texels} + high.x], share.x);
  return mix(top, bottom, share.y).rgb;
}

// Directions are linear between the middles of blocks.
fn beyond(pixel: vec2u) -> vec3f {
  let last = vec2i(view.image.zw) - 1;
  let within = clamp((vec2f(pixel) + 0.5) / ${s} - 0.5, vec2f(0), vec2f(last));
  let low = vec2i(within);
  let high = min(low + 1, last);
  let share = within - vec2f(low);
  let top = mix(direction_of(low), direction_of(vec2i(high.x, low.y)), share.x);
  let bottom = mix(direction_of(vec2i(low.x, high.y)), direction_of(high), share.x);
  return color_of(mix(top, bottom, share.y));
}
`;

/**
 * Draw the image: the composited colors, corrected by the network near what is seen, over the background.
 * @param {{s: number, pitch: number, channels: number, outputs: number, texels: number}} layout outputs: channels of the
 *   last layer, filled up; texels: along a side of the environment map, 0 for none
 */
export const painting = ({ s, pitch, channels, outputs, texels }) => `${VIEW}
@group(0) @binding(1) var<storage, read> inputs: array<f32>;
@group(0) @binding(2) var<storage, read> peaks: array<f32>;
@group(0) @binding(3) var<storage, read> distances: array<u32>;
@group(0) @binding(4) var<storage, read> corrections: array<f32>; // (blocks, ${outputs})
${texels ? ENVIRONMENT(s, texels) : ""}
@vertex
fn cover(@builtin(vertex_index) index: u32) -> @builtin(position) vec4f {
  return vec4f(f32(index & 1) * 4 - 1, f32(index >> 1) * 4 - 1, 0, 1);
}

@fragment
fn main(@builtin(position) position: vec4f) -> @location(0) vec4f {
  let pixel = vec2u(position.xy);
  let size = vec2i(view.image.zw);
  let place = vec2i(pixel / ${s});
  let block = u32(place.y * size.x + place.x);
  let within = pixel.y % ${s} * ${s} + pixel.x % ${s};
  var rgba: vec4f;
  for (var c = 0u; c < 3; c++) { rgba[c] = inputs[block * ${pitch} + c * ${s * s} + within]; }
  rgba.a = inputs[block * ${pitch} + ${channels * s * s} + within];
  if (distances[block] <= 1) {
    var peak = 0.0;
    for (var y = max(place.y - 1, 0); y <= min(place.y + 1, size.y - 1); y++) {
      for (var x = max(place.x - 1, 0); x <= min(place.x + 1, size.x - 1); x++) { peak = max(peak, peaks[y * size.x + x]); }
    }
    for (var c = 0u; c < 4; c++) { rgba[c] += min(2 * peak, 1) * corrections[block * ${outputs} + c * ${s * s} + within]; }
  }
  rgba = clamp(rgba, vec4f(0), vec4f(1));
  let color = min(rgba.rgb, vec3f(rgba.a));
  let rest = 1 - rgba.a;
  let shown = ${texels ? "255 * clamp(color + rest * beyond(pixel), vec3f(0), vec3f(1))" : "255 * color + rest * view.background.rgb"};
  return vec4f(round(clamp(shown, vec3f(0), vec3f(255))) / 255, 1);
}
`;

/**
 * Fill in the rows of a frame of a moving volume, one invocation for each of its corners: see motion.c.
 * @param {{resolution: number[], aabb: number[]}} frame
 * @param {{resolution: number[], aabb: number[], channels: number, rows: number}} canonical
 * @param {{grid: number[], aabb: number[]}} motion
 */
export function moving(frame, canonical, motion) {
  const [depth, height, width] = frame.resolution;
  const vectors = Math.ceil(canonical.channels / 4);
  const [, , nodesDeep, nodesHigh, nodesWide] = motion.grid;
  const sides = ([z, y, x]) => `vec3f(${x}, ${y}, ${z})`;
  return `
@group(0) @binding(0) var<storage, read> nodes: array<vec4f>;
@group(0) @binding(1) var<storage, read> words: array<vec2u>;
@group(0) @binding(2) var<storage, read> own: array<vec2u>; // of the canonical volume
@group(0) @binding(3) var<storage, read> own_density: array<f32>; // the last row is that of corners that do not exist
@group(0) @binding(4) var<storage, read> own_features: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> density: array<f32>;
@group(0) @binding(6) var<storage, read_write> features: array<vec4f>;
${rows("words", frame.resolution)}
${rows("own", canonical.resolution)}
const FRAME = ${sides(frame.resolution)};
const NODES = ${sides([nodesDeep, nodesHigh, nodesWide])};
const OWN = ${sides(canonical.resolution)};

fn row_or_last(x: i32, y: i32, z: i32) -> u32 {
  return select(${canonical.rows}u, own_row(x, y, z), extractBits(own_word(x, y, z).x, u32(x & 31), 1) == 1);
}

fn node(at: vec3i) -> vec4f {
  return nodes[(at.z * ${nodesHigh} + at.y) * ${nodesWide} + at.x];
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let x = i32(id.x);
  let y = i32(id.y);
  let z = i32(id.z);
  if (x >= ${width} || extractBits(words_word(x, y, z).x, u32(x & 31), 1) == 0) { return; }
  let low = ${vector(frame.aabb.slice(0, 3))};
  let position = low + vec3f(id) * ((${vector(frame.aabb.slice(3))} - low) / (FRAME - 1));
  let nodes_low = ${vector(motion.aabb.slice(0, 3))};
  let within = clamp((position - nodes_low) / (${vector(motion.aabb.slice(3))} - nodes_low) * (NODES - 1), vec3f(0), NODES - 1);
  let n = min(vec3i(within), vec3i(NODES) - 2);
  let f = within - vec3f(n);
  let bottom = mix(
    mix(node(n), node(n + vec3i(1, 0, 0)), f.x), mix(node(n + vec3i(0, 1, 0)), node(n + vec3i(1, 1, 0)), f.x), f.y);
  let top = mix(
    mix(node(n + vec3i(0, 0, 1)), node(n + vec3i(1, 0, 1)), f.x),
    mix(node(n + vec3i(0, 1, 1)), node(n + vec3i(1, 1, 1)), f.x), f.y);
  let moved = mix(bottom, top, f.z);
  let own_low = ${vector(canonical.aabb.slice(0, 3))};
  let scaled = (position + moved.xyz - own_low) * ((OWN - 1) / (${vector(canonical.aabb.slice(3))} - own_low));
  let place = clamp(scaled, vec3f(0), OWN - 1);
  let c = min(vec3i(place), vec3i(OWN) - 2);
  let share = place - vec3f(c);
  let row = words_row(x, y, z);
  var sum = 0.0;
  var values: array<vec4f, ${vectors}>;
  for (var corner = 0; corner < 8; corner++) {
    let step = vec3i(corner & 1, (corner >> 1) & 1, corner >> 2);
    let parts = select(1 - share, share, step == vec3i(1));
    let part = parts.x * parts.y * parts.z;
    let taken = row_or_last(c.x + step.x, c.y + step.y, c.z + step.z);
    sum += part * own_density[taken];
    for (var k = 0u; k < ${vectors}; k++) { values[k] += part * own_features[taken * ${vectors} + k]; }
  }
  density[row] = sum + moved.w;
  for (var k = 0u; k < ${vectors}; k++) { features[row * ${vectors} + k] = values[k]; }
}
`;
}
