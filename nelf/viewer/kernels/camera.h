// A pinhole camera in memory, as page/kernels.js writes it.

#pragma once
#include "simd.h"

typedef struct {
    float c2w[12], fx, fy, cx, cy;
    float near, half_width, half_height; // of normalized device coordinates; near is 0 where rays run in the scene
    int32_t width, height;
} Camera;
