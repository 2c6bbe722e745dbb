// Four numbers in 128 bits, and what of the C library a kernel needs.

#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <wasm_simd128.h>

#define EXPORT(name) __attribute__((export_name(#name))) name
#define INLINE static inline __attribute__((always_inline))
#define INFINITY __builtin_inff()

typedef v128_t vec;  // four floats
typedef v128_t ivec; // four whole numbers of 32 bits, or four masks of all bits or none

INLINE vec splat(float x) { return wasm_f32x4_splat(x); }
INLINE vec add(vec a, vec b) { return wasm_f32x4_add(a, b); }
INLINE vec sub(vec a, vec b) { return wasm_f32x4_sub(a, b); }
INLINE vec mul(vec a, vec b) { return wasm_f32x4_mul(a, b); }
INLINE vec over(vec a, vec b) { return wasm_f32x4_div(a, b); }
INLINE vec least(vec a, vec b) { return wasm_f32x4_pmin(b, a); }
INLINE vec most(vec a, vec b) { return wasm_f32x4_pmax(b, a); }
INLINE vec absolute(vec v) { return wasm_f32x4_abs(v); }
INLINE vec lerp(vec a, vec b, vec share) { return add(a, mul(share, sub(b, a))); }
INLINE vec choose(ivec mask, vec a, vec b) { return wasm_v128_bitselect(a, b, mask); }
INLINE ivec both(ivec a, ivec b) { return wasm_v128_and(a, b); }
INLINE ivec whole(vec v) { return wasm_i32x4_trunc_sat_f32x4(v); }
INLINE vec number(ivec v) { return wasm_f32x4_convert_i32x4(v); }
INLINE vec load(const float *from) { return wasm_v128_load(from); }
INLINE void store(void *to, vec v) { wasm_v128_store(to, v); }

INLINE vec clamped_to(vec v, float low, float high) { return least(most(v, splat(low)), splat(high)); }

INLINE int32_t least_of(int32_t a, int32_t b) { return a < b ? a : b; }

// Coordinates kept within [0, end].
INLINE vec clamped(vec at, vec end) { return least(most(at, splat(0)), end); }

// From 0 at a limit to 1 at twice as much.
INLINE vec fade(vec value, float limit) { return clamped_to(sub(mul(value, splat(1 / limit)), splat(1)), 0, 1); }

// e^x, for |x| < 87, within a few units of its last digit: 2^n times a polynomial of what is left, at most half a
// binary digit.
INLINE vec exponential(vec x) {
    const vec n = wasm_f32x4_nearest(mul(x, splat(1.44269504f)));
    const vec r = sub(sub(x, mul(n, splat(0.693145752f))), mul(n, splat(1.42860677e-6f)));
    vec p = splat(1.0f / 720);
    p = add(mul(p, r), splat(1.0f / 120));
    p = add(mul(p, r), splat(1.0f / 24));
    p = add(mul(p, r), splat(1.0f / 6));
    p = add(mul(p, r), splat(0.5f));
    p = add(mul(p, r), splat(1));
    p = add(mul(p, r), splat(1));
    return mul(p, wasm_i32x4_shl(wasm_i32x4_add(whole(n), wasm_i32x4_splat(127)), 23));
}
