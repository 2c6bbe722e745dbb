// The volume of a moment: each corner of a frame's grid takes what the canonical volume has where the motion leads
// from there. The same as frameOf of page/motion.js, where it is said in words.

#include "volume.h"

// The motion of this moment on the nodes of a grid: x, y and z in scene unit, and what is added to the density.
typedef struct {
    int32_t depth, height, width;
    float low[3], high[3];
    const float *nodes; // (depth, height, width, 4)
} Motion;

// A place between neighbors of an axis.
typedef struct {
    int32_t first;
    float share;
} Place;

INLINE Place place_of(float u, int32_t side) {
    const float within = u < 0 ? 0 : u > side - 1 ? side - 1 : u;
    const int32_t first = least_of(within, side - 2);
    return (Place){first, within - first};
}

// Coordinate `k` of a corner of a grid, scene unit.
INLINE float position(const Volume *grid, int k, int32_t corner, int32_t side) {
    return grid->low[k] + corner * ((grid->high[k] - grid->low[k]) / (side - 1));
}

// The nodes of the motion along x, at some y and z.
static void mix_lines(const Motion *motion, Place y, Place z, vec *line) {
    const int32_t row = 4 * motion->width, slice = row * motion->height;
    const float *nodes = motion->nodes + z.first * slice + y.first * row;
    for (int32_t k = 0; k < row; k += 4) {
        const vec low = lerp(load(nodes + k), load(nodes + k + row), splat(y.share));
        const vec high = lerp(load(nodes + k + slice), load(nodes + k + slice + row), splat(y.share));
        line[k / 4] = lerp(low, high, splat(z.share));
    }
}

// Where numbers of a volume are, in voxels, for a place in scene unit.
typedef struct {
    vec low, voxels;
} Scale;

static Scale scale_of(const Volume *volume) {
    const float *low = volume->low, *high = volume->high;
    const vec from = wasm_f32x4_make(low[0], low[1], low[2], 0), to = wasm_f32x4_make(high[0], high[1], high[2], 1);
    const vec cells = wasm_f32x4_make(volume->width - 1, volume->height - 1, volume->depth - 1, 0);
    return (Scale){from, over(cells, sub(to, from))};
}

// Interpolate a canonical volume at a place in voxels: write the features, return the density. Row K stands for corners
// that do not exist.
INLINE float interpolate(const Volume *volume, vec at, int vectors, float *features) {
    const Place x = place_of(wasm_f32x4_extract_lane(at, 0), volume->width);
    const Place y = place_of(wasm_f32x4_extract_lane(at, 1), volume->height);
    const Place z = place_of(wasm_f32x4_extract_lane(at, 2), volume->depth);
    const int32_t stride = 4 * vectors, next = x.first + 1;
    const float *left[4], *right[4];
    float density[2][4];
    bool any = false;
    for (int k = 0; k < 4; k++) {
        const Word *line = line_at(volume, y.first + (k & 1), z.first + (k >> 1));
        const int32_t row = row_of(line, x.first);
        const bool here = line[x.first >> 5].exists >> (x.first & 31) & 1;
        const bool there = line[next >> 5].exists >> (next & 31) & 1;
        any |= here | there;
        const int32_t rows[2] = {here ? row : volume->rows, there ? row + here : volume->rows};
        density[0][k] = volume->density[rows[0]];
        density[1][k] = volume->density[rows[1]];
        left[k] = volume->features + rows[0] * stride;
        right[k] = volume->features + rows[1] * stride;
    }
    if (!any) {
        for (int i = 0; i < stride; i += 4) store(features + i, splat(0));
        return volume->density[volume->rows];
    }
    const vec fx = splat(x.share), fy = splat(y.share), fz = splat(z.share);
    for (int i = 0; i < stride; i += 4) {
        vec side[4];
        for (int k = 0; k < 4; k++) side[k] = lerp(load(left[k] + i), load(right[k] + i), fx);
        store(features + i, lerp(lerp(side[0], side[1], fy), lerp(side[2], side[3], fy), fz));
    }
    const vec sides = lerp(load(density[0]), load(density[1]), fx);
    const vec both_z = lerp(sides, wasm_i32x4_shuffle(sides, sides, 2, 3, 2, 3), fz);
    const float low = wasm_f32x4_extract_lane(both_z, 0), high = wasm_f32x4_extract_lane(both_z, 1);
    return low + y.share * (high - low);
}

INLINE void fill(const Volume *canonical, const Motion *motion, Volume *frame, vec *line, int vectors) {
    const Scale scale = scale_of(canonical);
    const int32_t words = words_of(frame->width);
    const float width = motion->high[0] - motion->low[0];
    float *density = frame->density, *features = frame->features;
    const Word *word = frame->words;
    for (int32_t z = 0; z < frame->depth; z++) {
        const float pz = position(frame, 2, z, frame->depth);
        const float uz = (pz - motion->low[2]) / (motion->high[2] - motion->low[2]) * (motion->depth - 1);
        for (int32_t y = 0; y < frame->height; y++) {
            const float py = position(frame, 1, y, frame->height);
            const float uy = (py - motion->low[1]) / (motion->high[1] - motion->low[1]) * (motion->height - 1);
            bool mixed = false;
            for (int32_t first = 0; first < 32 * words; first += 32, word++) {
                for (uint32_t left = word->exists; left; left &= left - 1) {
                    if (!mixed) mix_lines(motion, place_of(uy, motion->height), place_of(uz, motion->depth), line);
                    mixed = true;
                    const float px = position(frame, 0, first + __builtin_ctz(left), frame->width);
                    const Place x = place_of((px - motion->low[0]) / width * (motion->width - 1), motion->width);
                    const vec moved = lerp(line[x.first], line[x.first + 1], splat(x.share));
                    const vec at = mul(sub(add(wasm_f32x4_make(px, py, pz, 0), moved), scale.low), scale.voxels);
                    *density++ = interpolate(canonical, at, vectors, features) + wasm_f32x4_extract_lane(moved, 3);
                    features += 4 * vectors;
                }
            }
        }
    }
}

// Write the density and the features of a frame's corners. `line` is room for the nodes of the motion along x.
void EXPORT(fill_frame)(const Volume *canonical, const Motion *motion, Volume *frame, vec *line) {
    const int32_t vectors = (canonical->channels + 3) / 4;
    if (vectors == 1) fill(canonical, motion, frame, line, 1); // the usual four, without loops
    else fill(canonical, motion, frame, line, vectors);
}
