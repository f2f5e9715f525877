/* Convolutions of blocks of images, and their gradients. A dense layer is a convolution whose output has a single place.
 *
 * Each sum has a register of its own. ROWS sums, of different channels at one place, share every vector of images that is
 * loaded; the weights are stored in the order in which they are read.
 */
#pragma once

#include "stage.h"

/* Call a function with a constant number of rows, 1 to `limit`, so that its arrays can be kept in registers. */
#define WITH_ROWS(rows, limit, function, ...) \
    do { \
        if ((rows) < 1 || (rows) > (limit)) __builtin_unreachable(); \
        switch (rows) { \
        case 1: function(1, __VA_ARGS__); break; \
        case 2: function(2, __VA_ARGS__); break; \
        case 3: function(3, __VA_ARGS__); break; \
        case 4: function(4, __VA_ARGS__); break; \
        case 5: function(5, __VA_ARGS__); break; \
        case 6: function(6, __VA_ARGS__); break; \
        case 7: function(7, __VA_ARGS__); break; \
        case 8: function(8, __VA_ARGS__); break; \
        } \
    } while (0)
#define MOST_ROWS 8

/* The values that a sum runs over; steps are in floats. */
typedef struct {
    int64_t planes, rows, columns;
    int64_t plane, row, column;
    int64_t weight_plane, weight_row;
} walk;

typedef struct {
    lanes of[MOST_ROWS][PARTS];
} sums;

INLINE void add_products(const int rows, sums *sum, const float *source, const float *weight, const walk *w) {
    for (int64_t p = 0; p < w->planes; p++)
        for (int64_t a = 0; a < w->rows; a++) {
            const float *v = source + p * w->plane + a * w->row, *k = weight + p * w->weight_plane + a * w->weight_row;
            for (int64_t b = 0; b < w->columns; b++, v += w->column, k += rows)
                UNROLL for (int h = 0; h < PARTS; h++) {
                    lanes x = load_once(v + h * WIDTH);
                    UNROLL for (int r = 0; r < rows; r++) sum->of[r][h] = FMA(all(k[r]), x, sum->of[r][h]);
                }
        }
}

INLINE void store_sums(const int rows, const sums *sum, float *target, int64_t plane, int64_t left) {
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int h = 0; h < PARTS; h++)
            if (r < left) store(target + r * plane + h * WIDTH, sum->of[r][h]);
}

/* y[o, i, j] = bias[o] + sum of weight[o, c, a, b] * x[c, i + a, j + b] */
INLINE void convolve_rows(const int rows, const stage *s, const float *x, float *y) {
    int64_t kh = kernel_height(s), kw = kernel_width(s), width = s->input.width, plane = area(s->middle) * IMAGES;
    walk w = {.planes = s->input.channels, .plane = area(s->input) * IMAGES, .weight_plane = kh * kw * rows,
              .rows = kh, .row = width * IMAGES, .weight_row = kw * rows,
              .columns = kw, .column = IMAGES};
    for (int64_t o = 0; o < s->middle.channels; o += rows) {
        const float *weight = s->forward_weight + o * (tap_count(s) + 1);
        float *target = y + o * plane;
        for (int64_t i = 0; i < s->middle.height; i++)
            for (int64_t j = 0; j < s->middle.width; j++, target += IMAGES) {
                sums sum;
                UNROLL for (int r = 0; r < rows; r++)
                    UNROLL for (int h = 0; h < PARTS; h++) sum.of[r][h] = all(weight[r]); /* the bias */
                add_products(rows, &sum, x + (i * width + j) * IMAGES, weight + rows, &w);
                store_sums(rows, &sum, target, plane, s->middle.channels - o);
            }
    }
}

/* dx[c, i, j] = sum of weight[o, c, a, b] * dy[o, i - a, j - b], over all a and b for which dy exists */
INLINE void convolve_back_rows(const int rows, const stage *s, const float *dy, float *dx) {
    int64_t kh = kernel_height(s), kw = kernel_width(s), width = s->middle.width, plane = area(s->input) * IMAGES;
    walk w = {.planes = s->middle.channels, .plane = area(s->middle) * IMAGES, .weight_plane = kh * kw * rows,
              .row = -width * IMAGES, .weight_row = kw * rows, .column = -IMAGES};
    for (int64_t c = 0; c < s->input.channels; c += rows) {
        const float *weight = s->backward_weight + c * s->middle.channels * kh * kw;
        float *target = dx + c * plane;
        for (int64_t i = 0; i < s->input.height; i++)
            for (int64_t j = 0; j < s->input.width; j++, target += IMAGES) {
                int64_t a = most(0, i - s->middle.height + 1), b = most(0, j - width + 1);
                w.rows = least(kh, i + 1) - a;
                w.columns = least(kw, j + 1) - b;
                sums sum;
                UNROLL for (int r = 0; r < rows; r++)
                    UNROLL for (int h = 0; h < PARTS; h++) sum.of[r][h] = all(0);
                add_products(rows, &sum, dy + ((i - a) * width + j - b) * IMAGES, weight + (a * kw + b) * rows, &w);
                store_sums(rows, &sum, target, plane, s->input.channels - c);
            }
    }
}

static void convolve(const stage *s, const float *x, float *y) {
    WITH_ROWS(output_rows(s), ROWS, convolve_rows, s, x, y);
}

static void convolve_back(const stage *s, const float *dy, float *dx) {
    WITH_ROWS(input_rows(s), ROWS, convolve_back_rows, s, dy, dx);
}

/* Some blocks of images, and the gradient of the weights for them. */
typedef struct {
    int64_t blocks;
    const float *dy, *x;
    float *dweight;
} gradient;

/* dweight[o, c, a, b] = sum of dy[o, i, j] * x[c, i + a, j + b], for `rows` output channels from o on and GRADIENT_TAPS
 * weights */
INLINE void correlate_rows(const int rows, const stage *s, const gradient *g, int64_t o, int64_t tap) {
    int64_t plane = area(s->middle) * IMAGES, row = s->middle.width * IMAGES, count = tap_count(s);
    const float *x[GRADIENT_TAPS];
    lanes sum[MOST_ROWS][GRADIENT_TAPS];
    UNROLL for (int t = 0; t < GRADIENT_TAPS; t++) {
        x[t] = g->x + s->taps[least(tap + t, count - 1)];
        UNROLL for (int r = 0; r < rows; r++) sum[r][t] = all(0);
    }
    for (int64_t block = 0; block < g->blocks; block++)
        for (int64_t i = 0; i < s->middle.height; i++) {
            const float *dy = g->dy + block * volume(s->middle) + o * plane + i * row;
            int64_t from = block * volume(s->input) + i * s->input.width * IMAGES;
            for (int64_t j = 0; j < row; j += WIDTH) {
                lanes own[MOST_ROWS];
                UNROLL for (int r = 0; r < rows; r++) own[r] = load(dy + r * plane + j);
                UNROLL for (int t = 0; t < GRADIENT_TAPS; t++) {
                    lanes v = load_once(x[t] + from + j);
                    UNROLL for (int r = 0; r < rows; r++) sum[r][t] = FMA(own[r], v, sum[r][t]);
                }
            }
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int t = 0; t < GRADIENT_TAPS; t++)
            if (tap + t < count) g->dweight[(o + r) * count + tap + t] = total(sum[r][t]);
}

/* The gradients of the weights of output channels o0 ... o1 - 1 */
static void correlate(const stage *s, const gradient *g, int64_t o0, int64_t o1) {
    int64_t size = evenly(o1 - o0, GRADIENT_ROWS);
    for (int64_t o = o0; o < o1; o += size)
        for (int64_t tap = 0; tap < tap_count(s); tap += GRADIENT_TAPS)
            WITH_ROWS(least(size, o1 - o), GRADIENT_ROWS, correlate_rows, s, g, o, tap);
}

/* Copy the bias and the weights of output channels o0 ... o1 - 1 into the order in which the sums read them: the weights of
 * the rows of a group side by side. */
static void pack(const stage *s, int64_t o0, int64_t o1) {
    int64_t kernel = kernel_area(s), taps = tap_count(s), inputs = s->input.channels, outputs = s->middle.channels;
    int64_t rows = output_rows(s), columns = input_rows(s);
    for (int64_t o = o0; o < o1; o++) {
        const float *weight = s->weight + o * taps;
        float *ahead = s->forward_weight + (o - o % rows) * (taps + 1) + o % rows;
        *ahead = s->bias[o];
        for (int64_t t = 0; t < taps; t++) ahead[(t + 1) * rows] = weight[t];
        for (int64_t c = 0; c < inputs; c++) {
            float *back = s->backward_weight + ((c - c % columns) * outputs + o * columns) * kernel + c % columns;
            for (int64_t k = 0; k < kernel; k++) back[k * columns] = weight[c * kernel + k];
        }
    }
}

/* Store the offset of the input of each weight, relative to the place of the output. */
static void find_taps(const stage *s) {
    int64_t kh = kernel_height(s), kw = kernel_width(s), tap = 0;
    for (int64_t c = 0; c < s->input.channels; c++)
        for (int64_t a = 0; a < kh; a++)
            for (int64_t b = 0; b < kw; b++)
                s->taps[tap++] = ((c * s->input.height + a) * s->input.width + b) * IMAGES;
}
