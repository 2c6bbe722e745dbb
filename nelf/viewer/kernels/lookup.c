// The look-up of a sparse volume along the rays of an image: the walk of page/lookup.js, which draws where a browser
// has no SIMD, and of nelf/kernels/cpu_lookup.py. Points lie one step apart, the density is interpolated before its
// sigmoid, cells that lack a corner are skipped, and a ray ends once little light is left.
//
// The rays of 2 x 2 pixels go side by side, one in each lane: neighbors read the same cells at about the same time,
// and what a ray computes without reading costs as much for four as for one.

#include "camera.h"
#include "volume.h"

#define MOST_CHANNELS 4096

typedef struct {
    const uint8_t *clearance; // (D, H, W): from the cell that begins at a corner to the nearest one with all corners
    float step, min_alpha, min_light;
    float empty; // the density whose alpha is min_alpha
} Walk;

typedef struct {
    int32_t top, bottom, left, right; // first and last row and column of blocks
} Hit;

// Where what is looked up goes: numbers from one channel of a block to the next, and from one block to the next.
typedef struct {
    float *to;
    int32_t channel, block, size;
} Target;

// Four rays in voxels: origin + t * direction, from one t to another, dt apart.
typedef struct {
    vec origin[3], direction[3], first, far, dt;
} Rays;

// The rows of a cell's corners at its smallest x: at its y and z, at y + 1, at z + 1, at both.
typedef struct {
    int32_t row[4];
} Cell;

// Four rays of the scene in normalized device coordinates, as nelf.rays.NDC.
INLINE void to_ndc(const Camera *camera, vec *origin, vec *direction) {
    const vec near = splat(camera->near), ahead = add(near, origin[2]);
    const vec forward = wasm_f32x4_neg(least(direction[2], splat(-1e-6f)));
    for (int k = 0; k < 2; k++) {
        const vec half = splat(k ? camera->half_height : camera->half_width), slope = over(direction[k], forward);
        const vec start = over(add(origin[k], mul(ahead, slope)), near);
        origin[k] = over(start, half);
        direction[k] = over(sub(slope, start), half);
    }
    origin[2] = splat(-1);
    direction[2] = splat(2);
}

// The rays through places (x, y) of the image.
INLINE Rays rays_through(const Volume *volume, const Camera *camera, float step, vec x, vec y) {
    const int32_t sides[3] = {volume->width, volume->height, volume->depth};
    const vec u = over(sub(x, splat(camera->cx)), splat(camera->fx));
    const vec v = over(sub(splat(camera->cy), y), splat(camera->fy));
    vec squares = splat(0), near = splat(0), far = splat(INFINITY);
    vec origin[3], turned[3];
    for (int k = 0; k < 3; k++) {
        const float *m = camera->c2w + 4 * k;
        origin[k] = splat(m[3]);
        turned[k] = sub(add(mul(u, splat(m[0])), mul(v, splat(m[1]))), splat(m[2]));
    }
    if (camera->near > 0) to_ndc(camera, origin, turned);
    Rays rays;
    for (int k = 0; k < 3; k++) {
        const float voxels = (sides[k] - 1) / (volume->high[k] - volume->low[k]);
        const vec d = choose(wasm_f32x4_eq(turned[k], splat(0)), splat(1e-12f), turned[k]);
        const vec a = over(sub(splat(volume->low[k]), origin[k]), d);
        const vec b = over(sub(splat(volume->high[k]), origin[k]), d);
        near = most(near, least(a, b));
        far = least(far, most(a, b));
        squares = add(squares, mul(d, d));
        rays.origin[k] = mul(sub(origin[k], splat(volume->low[k])), splat(voxels));
        rays.direction[k] = mul(d, splat(voxels));
    }
    rays.far = far;
    rays.dt = over(splat(step), wasm_f32x4_sqrt(squares));
    rays.first = add(near, mul(rays.dt, splat(0.5f)));
    return rays;
}

// The density of a point that lies (fx, fy, fz) of the way through a cell.
INLINE float density_in(const float *density, const Cell *cell, float fx, float fy, float fz) {
    const int32_t *row = cell->row; // each pair of neighbors in x is loaded at once
    const vec low = wasm_v128_load64_lane(density + row[1], wasm_v128_load64_zero(density + row[0]), 1);
    const vec high = wasm_v128_load64_lane(density + row[3], wasm_v128_load64_zero(density + row[2]), 1);
    const vec flat = lerp(low, high, splat(fz));
    const vec pair = lerp(flat, wasm_i32x4_shuffle(flat, flat, 2, 3, 2, 3), splat(fy));
    const float a = wasm_f32x4_extract_lane(pair, 0), b = wasm_f32x4_extract_lane(pair, 1);
    return a + fx * (b - a);
}

// Add `weight` times the features of a point, `vectors` times four numbers.
INLINE void add_features(
    const float *features, const Cell *cell, float fx, float fy, float fz, float weight, int vectors, vec *sum) {
    const int stride = 4 * vectors;
    const float *corner[4];
    for (int k = 0; k < 4; k++) corner[k] = features + cell->row[k] * stride;
    for (int i = 0; i < vectors; i++) {
        vec at[4];
        for (int k = 0; k < 4; k++, corner[k - 1] += 4) at[k] = lerp(load(corner[k]), load(corner[k] + stride), splat(fx));
        const vec here = lerp(lerp(at[0], at[1], splat(fy)), lerp(at[2], at[3], splat(fy)), splat(fz));
        sum[i] = add(sum[i], mul(splat(weight), here));
    }
}

// Composite four rays, or those of the mask. Returns their opacities, and writes their features: (4, vectors).
INLINE vec composite_rays(
    const Volume *volume, const Walk *walk, const Rays *rays, ivec alive, int vectors, vec *sum) {
    const vec zero = splat(0), one = splat(1);
    const vec *move = rays->direction;
    const vec fastest = most(most(absolute(move[0]), absolute(move[1])), absolute(move[2]));
    const vec points_per_voxel = over(one, most(mul(fastest, rays->dt), splat(1e-6f)));
    const vec sides[3] = {splat(volume->width), splat(volume->height), splat(volume->depth)};
    vec point = zero, light = one, seen = zero;
    for (int k = 0; k < 4 * vectors; k++) sum[k] = zero;
    for (;;) {
        const vec t = add(rays->first, mul(point, rays->dt));
        alive = both(alive, both(wasm_f32x4_lt(t, rays->far), wasm_f32x4_ge(light, splat(walk->min_light))));
        if (!wasm_v128_any_true(alive)) return seen;
        int32_t cell[3][4], corner[4];
        float share[3][4];
        ivec at[3];
        for (int k = 0; k < 3; k++) {
            const vec place = add(rays->origin[k], mul(move[k], t));
            const vec within = clamped(place, sub(sides[k], splat(1.001f)));
            at[k] = whole(within);
            store(cell[k], at[k]);
            store(share[k], sub(within, number(at[k])));
        }
        const ivec line = wasm_i32x4_add(wasm_i32x4_mul(at[2], wasm_i32x4_splat(volume->height)), at[1]);
        store(corner, wasm_i32x4_add(wasm_i32x4_mul(line, wasm_i32x4_splat(volume->width)), at[0]));
        const uint8_t *clearance = walk->clearance;
        const ivec clear = wasm_i32x4_make(
            clearance[corner[0]], clearance[corner[1]], clearance[corner[2]], clearance[corner[3]]);
        const vec leap = wasm_f32x4_floor(mul(sub(number(clear), one), points_per_voxel));
        point = add(point, add(most(leap, zero), one));
        const ivec inside = both(alive, wasm_i32x4_eq(clear, wasm_i32x4_splat(0)));
        const uint32_t read = wasm_i32x4_bitmask(inside);
        if (!read) continue;
        Cell cells[4];
        float raws[4] = {0};
        for (int n = 0; n < 4; n++) {
            if (!(read >> n & 1)) continue;
            for (int k = 0; k < 4; k++) {
                cells[n].row[k] = row_of(line_at(volume, cell[1][n] + (k & 1), cell[2][n] + (k >> 1)), cell[0][n]);
            }
            raws[n] = density_in(volume->density, &cells[n], share[0][n], share[1][n], share[2][n]);
        }
        const vec raw = clamped_to(load(raws), -80, 80); // of no difference to its sigmoid
        const ivec matter = both(inside, wasm_f32x4_ge(raw, splat(walk->empty)));
        const uint32_t kept = wasm_i32x4_bitmask(matter);
        if (!kept) continue;
        const vec alpha = over(one, add(one, exponential(wasm_f32x4_neg(raw))));
        const vec absorbed = both(matter, mul(mul(light, alpha), fade(alpha, walk->min_alpha)));
        const vec weight = mul(absorbed, fade(light, walk->min_light));
        light = sub(light, absorbed);
        seen = add(seen, weight);
        float weights[4];
        store(weights, weight);
        for (int n = 0; n < 4; n++) {
            if (!(kept >> n & 1)) continue;
            add_features(volume->features, &cells[n], share[0][n], share[1][n], share[2][n], weights[n], vectors,
                         sum + n * vectors);
        }
    }
}

INLINE void composite_image(
    const Volume *volume, const Walk *walk, const Camera *camera, int32_t s, int vectors, const Target *target,
    Hit *hit) {
    static vec sum[MOST_CHANNELS];
    const int32_t width = camera->width, height = camera->height, channels = volume->channels;
    const int32_t blocks = width / s, feature = s * s * target->channel;
    for (int32_t y = 0; y < height; y += 2) {
        for (int32_t x = 0; x < width; x += 2) {
            const vec xs = add(splat(x), wasm_f32x4_const(0.5f, 1.5f, 0.5f, 1.5f));
            const vec ys = add(splat(y), wasm_f32x4_const(0.5f, 0.5f, 1.5f, 1.5f));
            const ivec exist = both(wasm_f32x4_lt(xs, splat(width)), wasm_f32x4_lt(ys, splat(height)));
            const Rays rays = rays_through(volume, camera, walk->step, xs, ys);
            float seen[4];
            store(seen, composite_rays(volume, walk, &rays, exist, vectors, sum));
            for (int n = 0; n < 4; n++) {
                if (seen[n] == 0) continue;
                const int32_t px = x + n % 2, py = y + n / 2, block_x = px / s, block_y = py / s;
                hit->top = hit->top < block_y ? hit->top : block_y;
                hit->bottom = hit->bottom > block_y ? hit->bottom : block_y;
                hit->left = hit->left < block_x ? hit->left : block_x;
                hit->right = hit->right > block_x ? hit->right : block_x;
                // Channel (feature * s + row in the block) * s + column in the block.
                const int32_t within = (py % s) * s + px % s, block = block_y * blocks + block_x;
                float *to = target->to + within * target->channel + block * target->block;
                const float *features = (const float *)(sum + n * vectors);
                for (int32_t k = 0; k < channels; k++) to[k * feature] = features[k];
                to[channels * feature] = seen[n];
            }
        }
    }
}

// Write composited features and opacity of all pixels' rays, block by block of s x s, and which blocks are hit. What is
// not hit, and what else the target has, becomes 0.
void EXPORT(composite)(
    const Volume *volume, const Walk *walk, const Camera *camera, int32_t s, const Target *target, Hit *hit) {
    const int32_t vectors = (volume->channels + 3) / 4;
    __builtin_memset(target->to, 0, sizeof(float) * target->size);
    *hit = (Hit){INT32_MAX, -1, INT32_MAX, -1};
    if (vectors == 1) composite_image(volume, walk, camera, s, 1, target, hit); // the usual four, without loops
    else composite_image(volume, walk, camera, s, vectors, target, hit);
}
