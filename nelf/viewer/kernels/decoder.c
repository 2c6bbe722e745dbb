// From what is looked up for the blocks of an image to its pixels: the network of a GridR2L, as
// nelf/lightfields/grid_r2l.py has it, what it corrects, and what is behind.
//
// Rows of blocks go through all layers together, each layer as many rows behind the first one as it sees ahead. So
// three rows of each are all that is kept, and stay near the processor. In a row, four blocks side by side are computed
// at once, eight channels of each, and only where what is drawn follows from them: near blocks that rays hit.

#include "directions.h"
#include "environment.h"

#define MOST_LAYERS 64
#define SIDE 4     // blocks along x that are computed together
#define TOGETHER 8 // channels that are
#define LINE 16    // bytes beside a line of marks

enum { LINEAR, RELU, GELU };

// To 8 bits: multiples of a scale, so many of them below zero; a scale of 0 leaves numbers as they are.
typedef struct {
    float scale, zero;
} Rounding;

typedef struct {
    int32_t side;                // of what it sees, 1 or 3 blocks
    int32_t inputs, outputs;     // channels, filled up with zeros to multiples of 4 and 8
    int32_t activation;
    const float *weights;        // (outputs / 8, side, side, inputs, 8)
    const float *bias;           // (outputs)
    Rounding before, after, sum; // of what is activated, of that, and with what is added to it
} Layer;

typedef struct {
    int32_t s;           // pixels along a side of a block
    int32_t channels;    // of the volume
    int32_t pitch;       // numbers from one block's inputs to the next's
    int32_t blocks;      // residual ones, of two layers each, between the first layer and the last
    const Layer *layers;
    int32_t texels;      // along a side of the map of what is behind; 0 where nothing is
    const float *behind; // (texels, texels, 4)
    Rounding given;      // of what the first layer sees
} Decoder;

// Rows of one layer, three of them in turn, of blocks from -1 to where the last group ends.
typedef struct {
    float *first; // of block 0
    int32_t row, channels;
} Ring;

// The pieces of the memory that drawing takes.
typedef struct {
    int32_t width, height, groups, line; // of blocks; groups of four in a row; bytes of a line of marks
    uint8_t *marks;                      // (blocks + 3, height + 2, line): where each layer is needed, from 1 on
    float *peaks;                        // (height + 2, width + 2): the largest opacity of a block
    float *nothing;                      // a row of zeros
    float *given;                        // a row of what the first layer sees, rounded
    float *hidden, *corrections;         // rows: within a residual block, of the last layer
    float *directions;                   // (3, width, 4) of blocks' middles
    float *beyond;                       // (width, 3 s^2 + 4): a row of what is behind
    Ring rings[MOST_LAYERS];
    uint8_t *end;
} Room;

INLINE void *take(uint8_t **from, int32_t bytes) {
    void *start = *from;
    *from += (bytes + 15) & ~15;
    return start;
}

static Room room_in(uint8_t *memory, const Decoder *decoder, const Camera *camera) {
    const int32_t s = decoder->s, width = camera->width / s, height = camera->height / s;
    const int32_t groups = (width + SIDE - 1) / SIDE, across = SIDE * groups + 2;
    Room room = {.width = width, .height = height, .groups = groups, .line = ((width + 15) & ~15) + 2 * LINE};
    int32_t most = 0;
    for (int32_t k = 0; k < 2 * decoder->blocks + 2; k++) {
        const Layer *layer = decoder->layers + k;
        if (most < layer->outputs) most = layer->outputs;
    }
    room.marks = take(&memory, (decoder->blocks + 3) * (height + 2) * room.line);
    room.peaks = take(&memory, 4 * (height + 2) * (width + 2));
    room.nothing = (float *)take(&memory, 4 * across * most) + most;
    room.given = take(&memory, 4 * across * decoder->pitch);
    room.hidden = take(&memory, 4 * across * most);
    room.corrections = take(&memory, 4 * across * most);
    room.directions = take(&memory, 16 * 3 * width);
    room.beyond = take(&memory, 4 * width * (3 * s * s + 4));
    for (int32_t k = 0; k <= decoder->blocks; k++) {
        const int32_t channels = decoder->layers[2 * k].outputs, row = across * channels;
        room.rings[k] = (Ring){(float *)take(&memory, 3 * 4 * row) + channels, row, channels};
    }
    room.end = memory;
    return room;
}

// How many bytes drawing takes.
int32_t EXPORT(room_for)(const Decoder *decoder, const Camera *camera) {
    return (int32_t)room_in(0, decoder, camera).end;
}

INLINE uint8_t *marks_of(const Room *room, int32_t layer, int32_t y) {
    return room->marks + (layer * (room->height + 2) + y + 1) * room->line + LINE;
}

// Note the blocks' largest opacities, which are hit, and around them where layers are needed: the last one where a
// neighbor is hit, and each before it a block farther.
static void mark(const Room *room, const Decoder *decoder, const float *inputs) {
    const int32_t block = decoder->s * decoder->s, width = room->width;
    const float *opacity = inputs + decoder->channels * block;
    for (int32_t y = 0; y < room->height; y++) {
        float *peaks = room->peaks + (y + 1) * (width + 2) + 1;
        uint8_t *hit = marks_of(room, 0, y);
        for (int32_t x = 0; x < width; x++, opacity += decoder->pitch) {
            float peak = 0;
            for (int32_t k = 0; k < block; k++) peak = peak > opacity[k] ? peak : opacity[k];
            peaks[x] = peak;
            hit[x] = peak > 0;
        }
    }
    for (int32_t layer = 1; layer < decoder->blocks + 3; layer++) {
        for (int32_t y = 0; y < room->height; y++) {
            const uint8_t *here = marks_of(room, layer - 1, y);
            uint8_t *to = marks_of(room, layer, y);
            for (int32_t x = 0; x < width; x += 16) {
                v128_t any = wasm_u32x4_splat(0);
                for (int k = -1; k <= 1; k++) {
                    const uint8_t *line = here + k * room->line + x;
                    any = wasm_v128_or(any, wasm_v128_or(wasm_v128_load(line - 1), wasm_v128_load(line)));
                    any = wasm_v128_or(any, wasm_v128_load(line + 1));
                }
                wasm_v128_store(to + x, any);
            }
        }
    }
}

// Half of x times one more than the error function of x over the root of two: Abramowitz and Stegun 7.1.26, 1.5e-7.
INLINE vec gelu(vec x) {
    const vec z = mul(absolute(x), splat(0.70710678f)), squared = least(mul(z, z), splat(80));
    const vec t = over(splat(1), add(splat(1), mul(z, splat(0.3275911f))));
    vec p = splat(1.061405429f);
    p = add(mul(p, t), splat(-1.453152027f));
    p = add(mul(p, t), splat(1.421413741f));
    p = add(mul(p, t), splat(-0.284496736f));
    p = add(mul(p, t), splat(0.254829592f));
    const vec rest = mul(mul(p, t), exponential(wasm_f32x4_neg(squared)));
    const vec positive = wasm_f32x4_gt(x, splat(0));
    return mul(mul(splat(0.5f), x), choose(positive, sub(splat(2), rest), rest));
}

INLINE vec activated(vec x, int32_t activation) {
    if (activation == RELU) return most(x, splat(0));
    return activation == GELU ? gelu(x) : x;
}

INLINE vec rounded(vec x, const Rounding *rounding) {
    if (rounding->scale == 0) return x;
    const vec scale = splat(rounding->scale), zero = splat(rounding->zero);
    const vec level = clamped_to(add(wasm_f32x4_nearest(over(x, scale)), zero), 0, 255);
    return mul(sub(level, zero), scale);
}

// One row of a layer, from the rows that it sees, and from what is added to it if there is something.
static void convolve(const Layer *layer, const float *const *rows, const Room *room, const uint8_t *marks,
                     const float *added, float *out) {
    const int32_t inputs = layer->inputs, outputs = layer->outputs, side = layer->side, length = side * inputs;
    const uint32_t *needed = (const uint32_t *)marks;
    for (int32_t first = 0; first < outputs; first += TOGETHER) {
        const vec bias[2] = {load(layer->bias + first), load(layer->bias + first + 4)};
        for (int32_t group = 0; group < room->groups; group++) {
            if (!needed[group]) continue;
            const float *weights = layer->weights + first * side * length;
            vec sum[SIDE][2];
            for (int n = 0; n < SIDE; n++) sum[n][0] = bias[0], sum[n][1] = bias[1];
            for (int32_t y = 0; y < side; y++) {
                const float *from = rows[y] + (SIDE * group - side / 2) * inputs;
#pragma unroll 4
                for (int32_t k = 0; k < length; k++, weights += TOGETHER) {
                    const vec a = load(weights), b = load(weights + 4);
                    for (int n = 0; n < SIDE; n++) {
                        const vec x = wasm_v128_load32_splat(from + n * inputs + k);
                        sum[n][0] = add(sum[n][0], mul(x, a));
                        sum[n][1] = add(sum[n][1], mul(x, b));
                    }
                }
            }
            for (int n = 0; n < SIDE; n++) {
                const int32_t at = (SIDE * group + n) * outputs + first;
                for (int k = 0; k < 2; k++) {
                    vec value = activated(rounded(sum[n][k], &layer->before), layer->activation);
                    value = rounded(value, &layer->after);
                    if (added) value = rounded(add(value, load(added + at + 4 * k)), &layer->sum);
                    store(out + at + 4 * k, value);
                }
            }
        }
    }
}

// Write the 16 spherical harmonics of a row of blocks behind what is looked up there, see harmonics of page/volume.js.
static void add_harmonics(
    const Room *room, const Decoder *decoder, const Camera *camera, int32_t y, const uint8_t *marks, float *inputs) {
    const int32_t first = (decoder->channels + 1) * decoder->s * decoder->s;
    for (int32_t group = 0; group < room->groups; group++) {
        if (!((const uint32_t *)marks)[group]) continue;
        vec d[3], values[16];
        directions_of(camera, decoder->s, SIDE * group, y, d);
        harmonics_of(d, values);
        for (int32_t n = 0; n < SIDE && SIDE * group + n < room->width; n++) {
            float *to = inputs + (SIDE * group + n) * decoder->pitch + first;
            for (int k = 0; k < 16; k++) to[k] = ((const float *)(values + k))[n];
        }
    }
}

// Write what is behind a row of blocks: of each, a color's numbers of all its pixels one after the other. Directions
// are linear between the middles of blocks.
static void look_beyond(const Room *room, const Decoder *decoder, const Camera *camera, int32_t y) {
    const int32_t s = decoder->s, width = room->width, last = room->height - 1;
    for (int32_t row = y ? y + 1 : 0; row <= y + 1 && row <= last; row++) {
        float *to = room->directions + row % 3 * 4 * width;
        for (int32_t x = 0; x < width; x++) {
            vec d[3];
            directions_of(camera, s, x, row, d);
            for (int k = 0; k < 3; k++) to[4 * x + k] = wasm_f32x4_extract_lane(d[k], 0);
        }
    }
    for (int32_t i = 0; i < s; i++) {
        Between down = between(y + (i + 0.5f) / s - 0.5f, room->height);
        down.low %= 3, down.high %= 3;
        float *to = room->beyond + i * s;
        for (int32_t x = 0; x < width; x++, to += 3 * s * s + 4) {
            for (int32_t j = 0; j < s; j++) {
                const Between across = between(x + (j + 0.5f) / s - 0.5f, width);
                const vec direction = lerp4(room->directions, width, across, down);
                const vec color = color_of(decoder->behind, decoder->texels, direction);
                to[j] = wasm_f32x4_extract_lane(color, 0);
                to[j + s * s] = wasm_f32x4_extract_lane(color, 1);
                to[j + 2 * s * s] = wasm_f32x4_extract_lane(color, 2);
            }
        }
    }
}

// Draw a block: what was looked up, corrected where anything is near, over what is behind or a color (0 to 255).
INLINE void paint(const Decoder *decoder, const float *inputs, const float *corrections, float near,
                  const float *beyond, const float *background, uint32_t *pixels, int32_t width) {
    const int32_t s = decoder->s, block = s * s;
    const vec one = splat(1), weight = splat(near);
    const float *opacities = inputs + decoder->channels * block;
    for (int32_t k = 0, row = 0, column = 0; k < block; k += 4) {
        const vec opacity = clamped_to(add(load(opacities + k), mul(weight, load(corrections + 3 * block + k))), 0, 1);
        const vec rest = sub(one, opacity);
        ivec words = wasm_i32x4_splat((int32_t)0xff000000);
        for (int c = 0; c < 3; c++) {
            const int32_t at = c * block + k;
            vec color = clamped_to(add(load(inputs + at), mul(weight, load(corrections + at))), 0, 1);
            color = least(color, opacity);
            if (beyond) color = clamped_to(add(color, mul(rest, load(beyond + at))), 0, 1);
            color = mul(color, splat(255));
            if (!beyond) color = add(color, mul(rest, splat(background[c])));
            const ivec level = whole(wasm_f32x4_nearest(clamped_to(color, 0, 255)));
            words = wasm_v128_or(words, wasm_i32x4_shl(level, 8 * c));
        }
        uint32_t drawn[4];
        store(drawn, words);
        for (int n = 0; n < 4 && k + n < block; n++) {
            pixels[row * width + column] = drawn[n];
            if (++column == s) column = 0, row++;
        }
    }
}

static void paint_row(const Room *room, const Decoder *decoder, const Camera *camera, int32_t y, const float *inputs,
                      const float *background, uint32_t *pixels) {
    const int32_t s = decoder->s, pitch = decoder->layers[2 * decoder->blocks + 1].outputs, line = room->width + 2;
    const float *peaks = room->peaks + y * line;
    const uint8_t *marks = marks_of(room, 1, y);
    if (decoder->texels) look_beyond(room, decoder, camera, y);
    for (int32_t x = 0; x < room->width; x++) {
        const float *beyond = decoder->texels ? room->beyond + x * (3 * s * s + 4) : 0;
        if (!marks[x] && !beyond) continue;
        float peak = 0;
        for (int k = 0; k < 9; k++) {
            const float each = peaks[k / 3 * line + x + k % 3];
            peak = peak > each ? peak : each;
        }
        const float *corrections = marks[x] ? room->corrections + x * pitch : room->nothing;
        const float near = 2 * peak < 1 ? 2 * peak : 1;
        paint(decoder, inputs + x * decoder->pitch, corrections, near, beyond, background, pixels + x * s,
              camera->width);
    }
}

// What the first layer sees of a row of inputs.
INLINE const float *see(const Room *room, const Decoder *decoder, const float *inputs) {
    if (decoder->given.scale == 0) return inputs;
    for (int32_t k = 0; k < room->width * decoder->pitch; k += 4) {
        store(room->given + k, rounded(load(inputs + k), &decoder->given));
    }
    return room->given;
}

INLINE float *row_of_ring(const Ring *ring, int32_t y) { return ring->first + y % 3 * ring->row; }

// Nothing is beyond the last block of a row, whatever its group has written there.
INLINE void end_row(const Room *room, const Ring *ring, int32_t y) {
    __builtin_memset(row_of_ring(ring, y) + room->width * ring->channels, 0, sizeof(float) * ring->channels);
}

// The rows of a layer that one of the next sees.
INLINE void look_at(const float **rows, const Room *room, const Ring *ring, int32_t y) {
    for (int k = 0; k < 3; k++) {
        const int32_t row = y + k - 1;
        rows[k] = row < 0 || row >= room->height ? room->nothing : row_of_ring(ring, row);
    }
}

// Draw an image, four bytes for each pixel, from what is looked up for its blocks (height, width, pitch).
void EXPORT(decode)(const Decoder *decoder, const Camera *camera, float *inputs, uint8_t *memory,
                    const float *background, uint32_t *pixels) {
    const Room room = room_in(memory, decoder, camera);
    __builtin_memset(memory, 0, room.end - memory);
    const int32_t row = room.width * decoder->pitch, last = decoder->blocks + 1, s = decoder->s;
    const Layer *layers = decoder->layers;
    mark(&room, decoder, inputs);
    for (int32_t step = 0; step < room.height + last; step++) {
        const float *rows[3];
        if (step < room.height) {
            const uint8_t *marks = marks_of(&room, last + 1, step);
            add_harmonics(&room, decoder, camera, step, marks, inputs + step * row);
            rows[0] = see(&room, decoder, inputs + step * row);
            convolve(layers, rows, &room, marks, 0, row_of_ring(room.rings, step));
            end_row(&room, room.rings, step);
        }
        for (int32_t block = 1; block < last; block++) {
            const int32_t y = step - block;
            if (y < 0 || y >= room.height) continue;
            const Ring *from = room.rings + block - 1, *to = room.rings + block;
            const uint8_t *marks = marks_of(&room, last + 1 - block, y);
            look_at(rows, &room, from, y);
            convolve(layers + 2 * block - 1, rows, &room, marks, 0, room.hidden);
            rows[0] = room.hidden;
            convolve(layers + 2 * block, rows, &room, marks, row_of_ring(from, y), row_of_ring(to, y));
            end_row(&room, to, y);
        }
        const int32_t y = step - last;
        if (y < 0) continue;
        look_at(rows, &room, room.rings + last - 1, y);
        convolve(layers + 2 * last - 1, rows, &room, marks_of(&room, 1, y), 0, room.corrections);
        paint_row(&room, decoder, camera, y, inputs + y * row, background, pixels + y * s * camera->width);
    }
}
