// What follows from the bits of a grid's corners: where their rows are, and how far cells are from the nearest one
// that lacks no corner. The same as indexOf and clearanceOf of page/volume.js.

#include "volume.h"

#define FARTHEST 12 // cells; a walk through empty space leaps no further

// Note the corners of a mask, the first in its highest bit. Returns how many there are.
int32_t EXPORT(number_corners)(const uint8_t *mask, int32_t depth, int32_t height, int32_t width, Word *words) {
    int32_t found = 0;
    int64_t bit = 0;
    for (int32_t line = 0; line < depth * height; line++) {
        for (int32_t x = 0; x < width; words++) {
            *words = (Word){0, found};
            for (int32_t end = least_of(x + 32, width); x < end; x++, bit++) {
                const uint32_t exists = mask[bit >> 3] >> (7 - (bit & 7)) & 1;
                words->exists |= exists << (x & 31);
                found += exists;
            }
        }
    }
    return found;
}

// Which cells of 32 along x lack no corner.
INLINE uint32_t whole_cells(const Volume *volume, int32_t word, int32_t y, int32_t z) {
    const bool last = word + 1 == words_of(volume->width);
    uint32_t all = UINT32_MAX;
    for (int k = 0; k < 4; k++) {
        const Word *line = line_at(volume, y + (k & 1), z + (k >> 1)) + word;
        const uint32_t next = last ? 0 : line[1].exists;
        all &= line->exists & (line->exists >> 1 | next << 31);
    }
    return all;
}

// Take the smaller of two numbers in each of `count` places, a multiple of 16.
INLINE void take_least(uint8_t *to, const uint8_t *from, int32_t count) {
    for (int32_t x = 0; x < count; x += 16) {
        wasm_v128_store(to + x, wasm_u8x16_min(wasm_v128_load(to + x), wasm_v128_load(from + x)));
    }
}

// The distances of a line, where `near` has the least of the lines beside it: one more than the least of three.
INLINE void step_from(uint8_t *line, const uint8_t *near, int32_t count) {
    const v128_t one = wasm_u8x16_splat(1);
    for (int32_t x = 0; x < count; x += 16) {
        const v128_t sides = wasm_u8x16_min(wasm_v128_load(near + x - 1), wasm_v128_load(near + x + 1));
        const v128_t step = wasm_i8x16_add(wasm_u8x16_min(sides, wasm_v128_load(near + x)), one);
        wasm_v128_store(line + x, wasm_u8x16_min(wasm_v128_load(line + x), step));
    }
}

// From each cell, in cells along the axis where it is most, to the nearest one with all its corners: 0 there, 12 at
// most. Two passes over all neighbors, lines of cells at a time; (D, H, W), a cell stands where its first corner does.
// `far` is room for (D + 1) (H + 1) + 1 lines of `pitch` bytes, a multiple of 16 that leaves 17 beside a line.
void EXPORT(measure_clearance)(const Volume *volume, uint8_t *far, int32_t pitch, uint8_t *clearance) {
    const int32_t depth = volume->depth - 1, height = volume->height - 1, width = volume->width - 1;
    const int32_t slice = (height + 2) * pitch, count = (width + 15) & ~15;
    uint8_t *near = far + (depth + 2) * slice + 16;
    __builtin_memset(far, FARTHEST, (depth + 2) * slice + pitch);
    for (int pass = 0; pass < 2; pass++) {
        const int32_t back = pass ? 1 : -1;
        for (int32_t i = 0; i < depth; i++) {
            for (int32_t j = 0; j < height; j++) {
                const int32_t z = pass ? depth - 1 - i : i, y = pass ? height - 1 - j : j;
                uint8_t *line = far + (z + 1) * slice + (y + 1) * pitch + 16;
                if (!pass) {
                    for (int32_t x = 0; x < width; x += 32) {
                        for (uint32_t cells = whole_cells(volume, x >> 5, y, z); cells; cells &= cells - 1) {
                            line[x + __builtin_ctz(cells)] = 0;
                        }
                    }
                }
                const uint8_t *before = line + back * slice;
                __builtin_memcpy(near, before, count);
                take_least(near, before - pitch, count);
                take_least(near, before + pitch, count);
                take_least(near, line + back * pitch, count);
                step_from(line, near, count);
                for (int32_t x = 1; x < width; x++) {
                    const int32_t here = pass ? width - 1 - x : x;
                    line[here] = least_of(line[here], line[here + back] + 1);
                }
            }
        }
    }
    for (int32_t z = 0; z < depth; z++) {
        for (int32_t y = 0; y < height; y++) {
            const uint8_t *line = far + (z + 1) * slice + (y + 1) * pitch + 16;
            __builtin_memcpy(clearance + (z * volume->height + y) * volume->width, line, width);
        }
    }
}
