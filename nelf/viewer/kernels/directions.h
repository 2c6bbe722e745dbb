// Directions of blocks of pixels, and their spherical harmonics.

#pragma once
#include "camera.h"

// The unit directions of the middles of four blocks.
INLINE void directions_of(const Camera *camera, int32_t s, int32_t x, int32_t y, vec *d) {
    const vec place = mul(add(splat(x), wasm_f32x4_const(0.5f, 1.5f, 2.5f, 3.5f)), splat(s));
    const vec u = over(sub(place, splat(camera->cx)), splat(camera->fx));
    const vec v = splat((camera->cy - (y + 0.5f) * s) / camera->fy);
    vec squares = splat(0);
    for (int k = 0; k < 3; k++) {
        const float *m = camera->c2w + 4 * k;
        d[k] = sub(add(mul(u, splat(m[0])), mul(v, splat(m[1]))), splat(m[2]));
        squares = add(squares, mul(d[k], d[k]));
    }
    const vec length = wasm_f32x4_sqrt(squares);
    for (int k = 0; k < 3; k++) d[k] = over(d[k], length);
}

// Factors of the real spherical harmonics up to degree 3, as page/volume.js has them.
#define S1 0.28209479177387814f
#define S4 0.48860251190291992f
#define S15 1.0925484305920792f
#define S5 0.31539156525252005f
#define S16 0.54627421529603959f
#define S35 0.59004358992664352f
#define S105 2.8906114426405538f
#define S21 0.45704579946446572f
#define S7 0.3731763325901154f
#define S105B 1.4453057213202769f

// The 16 harmonics of four unit directions.
INLINE void harmonics_of(const vec *d, vec *out) {
    const vec one = splat(1), x = d[0], y = d[1], z = d[2];
    const vec xx = mul(x, x), yy = mul(y, y), zz = mul(z, z);
    const vec five = sub(one, mul(splat(5), zz)), round = sub(xx, yy);
    out[0] = splat(S1);
    out[1] = mul(splat(-S4), y);
    out[2] = mul(splat(S4), z);
    out[3] = mul(splat(-S4), x);
    out[4] = mul(splat(S15), mul(x, y));
    out[5] = mul(splat(-S15), mul(y, z));
    out[6] = mul(splat(S5), sub(mul(splat(3), zz), one));
    out[7] = mul(splat(-S15), mul(x, z));
    out[8] = mul(splat(S16), round);
    out[9] = mul(mul(splat(S35), y), sub(yy, mul(splat(3), xx)));
    out[10] = mul(splat(S105), mul(mul(x, y), z));
    out[11] = mul(mul(splat(S21), y), five);
    out[12] = mul(mul(splat(S7), z), sub(mul(splat(5), zz), splat(3)));
    out[13] = mul(mul(splat(S21), x), five);
    out[14] = mul(mul(splat(S105B), z), round);
    out[15] = mul(mul(splat(S35), x), sub(mul(splat(3), yy), xx));
}
