// A picture of all directions: nelf/lightfields/environment.py.

#pragma once
#include "simd.h"

// A place in a line of `count` numbers, those beyond its ends being as those at its ends.
typedef struct {
    int32_t low, high;
    float share;
} Between;

INLINE Between between(float place, int32_t count) {
    const float within = place < 0 ? 0 : place > count - 1 ? count - 1 : place;
    const int32_t low = within;
    return (Between){low, low + 1 < count ? low + 1 : low, within - low};
}

INLINE vec lerp4(const float *map, int32_t row, Between x, Between y) {
    const float *top = map + 4 * y.low * row, *bottom = map + 4 * y.high * row;
    const vec share = splat(x.share);
    return lerp(lerp(load(top + 4 * x.low), load(top + 4 * x.high), share),
                lerp(load(bottom + 4 * x.low), load(bottom + 4 * x.high), share), splat(y.share));
}

// The color of a direction of any length: see nelf/lightfields/environment.py.
INLINE vec color_of(const float *map, int32_t side, vec direction) {
    float x = wasm_f32x4_extract_lane(direction, 0), y = wasm_f32x4_extract_lane(direction, 1);
    const float z = wasm_f32x4_extract_lane(direction, 2);
    const float wide = __builtin_fabsf(x), high = __builtin_fabsf(y), sum = wide + high + __builtin_fabsf(z);
    x /= sum, y /= sum;
    if (z < 0) {
        const float folded = (1 - high / sum) * (x < 0 ? -1 : 1);
        y = (1 - wide / sum) * (y < 0 ? -1 : 1);
        x = folded;
    }
    const float half = 0.5f * side;
    return lerp4(map, side, between(x * half + half - 0.5f, side), between(y * half + half - 0.5f, side));
}
