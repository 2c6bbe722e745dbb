// A sparse volume in memory, as page/kernels.js writes it, and how its rows are found.

#pragma once
#include "simd.h"

// Which of 32 corners along x exist, and the row of the first of them. Rows stand in the order of their corners, x
// fastest, so a corner's row follows from a count of bits, and the one after it is that of its neighbor in x.
typedef struct {
    uint32_t exists;
    int32_t row;
} Word;

typedef struct {
    int32_t depth, height, width; // corners along z, y and x
    float low[3], high[3];        // x, y and z of the box, scene unit
    const Word *words;            // (depth, height, words_of(width))
    float *density;               // (K)
    float *features;              // (K, C), each row filled up to a multiple of four
    int32_t rows, channels;       // K, C
} Volume;

INLINE int32_t words_of(int32_t width) { return (width + 31) >> 5; }

// The words of a line of corners.
INLINE const Word *line_at(const Volume *volume, int32_t y, int32_t z) {
    return volume->words + (z * volume->height + y) * words_of(volume->width);
}

// The row of a corner, or where it would be.
INLINE int32_t row_of(const Word *line, int32_t x) {
    const Word word = line[x >> 5];
    return word.row + __builtin_popcount(word.exists & ~(UINT32_MAX << (x & 31)));
}
