/* Batch norm, pool and sigmoid of a stage for a block of images, forward and backward. */
#pragma once

#include <math.h>

#include "stage.h"

/* Divide the images by 255. Lanes without an image repeat the first image, so that they hold usual values. */
static void read_images(const polybn_network *net, int64_t block) {
    const stage *s = net->stages;
    const polybn_batch *batch = &net->batch;
    int64_t size = volume(s->input) / IMAGES, live = live_images(net, block);
    const uint8_t *image[IMAGES];
    float *x = s->x + block * volume(s->input);
    for (int i = 0; i < IMAGES; i++) image[i] = batch->images + batch->order[block * IMAGES + (i < live ? i : 0)] * size;
    for (int64_t p = 0; p < size; p++, x += IMAGES) {
        for (int i = 0; i < IMAGES; i++) x[i] = image[i][p];
        UNROLL for (int h = 0; h < PARTS; h++) store(x + h * WIDTH, load(x + h * WIDTH) / 255);
    }
}

static double live_total(const wide *sum, int64_t live) {
    double result = 0;
    for (int i = 0; i < live; i++) result += sum[i / (WIDTH / 2)][i % (WIDTH / 2)];
    return result;
}

/* Store the mean of each channel in this block, and the sum of squared deviations from it, in float64.
 *
 * There is one pass. Deviations are taken from the first value, so the distance from zero does not matter, and equal values
 * give exact results (S2, S8). */
static void measure(const polybn_network *net, const stage *s, int64_t block) {
    const float *y = s->y + block * volume(s->middle);
    int64_t plane = area(s->middle), live = live_images(net, block);
    double *sums = s->sums + block * 2 * s->middle.channels, n = (double)(live * plane);
    for (int64_t c = 0; c < s->middle.channels; c++, sums += 2) {
        double first = y[0];
        wide sum[HALVES] = {0}, square[HALVES] = {0};
        for (int64_t p = 0; p < plane; p++, y += IMAGES)
            UNROLL for (int h = 0; h < HALVES; h++) {
                wide d = load_wide(y + h * (WIDTH / 2)) - first;
                sum[h] += d;
                square[h] += d * d;
            }
        double delta = live_total(sum, live) / n;
        sums[0] = first + delta;
        sums[1] = fmax(live_total(square, live) - n * delta * delta, 0);
    }
}

INLINE lanes standardize(const channel *k, lanes y) { return ((y * k->scale - k->m1) - k->delta) * k->r; }

/* The value of a square that will be the largest after batch norm: the first of equal ones, or NaN if there is one. */
INLINE lanes strongest(const float *y, int64_t side, int64_t row, float direction) {
    lanes best = load(y);
    if (direction != 0)
        for (int64_t a = 0; a < side; a++)
            for (int64_t b = 0; b < side; b++) {
                lanes v = load(y + a * row + b * IMAGES);
                bits wins = direction > 0 ? v > best : v < best;
                best = choose(wins | (v != v), v, best);
            }
    return best;
}

INLINE void pool(const stage *s, int64_t side, int64_t block) {
    int64_t row = s->middle.width * IMAGES;
    const float *y = s->y + block * volume(s->middle);
    float *best = s->best + block * volume(s->output);
    for (int64_t c = 0; c < s->middle.channels; c++)
        for (int64_t i = 0; i < s->output.height; i++, y += (side - 1) * row)
            for (int64_t j = 0; j < s->output.width; j++, y += side * IMAGES, best += IMAGES)
                UNROLL for (int h = 0; h < PARTS; h++)
                    store(best + h * WIDTH, strongest(y + h * WIDTH, side, row, s->channels[c].direction));
}

/* Compute the output of a stage from y. The pool comes first: batch norm and sigmoid are monotonic, so they need not be
 * applied to the values that the pool drops. */
static void activate(const stage *s, int64_t block) {
    if (s->out == s->y) return;
    if (s->pool == 2)
        pool(s, 2, block);
    else if (s->pool > 2)
        pool(s, s->pool, block);
    const float *best = s->best + block * volume(s->output);
    float *out = s->out + block * volume(s->output);
    for (int64_t c = 0; c < s->output.channels; c++) {
        channel k = s->channels[c];
        for (int64_t p = 0; p < area(s->output) * PARTS; p++, best += WIDTH, out += WIDTH) {
            lanes z = standardize(&k, load(best)) * k.gamma + k.beta;
            store(out, s->sigmoid ? sigmoid(z) : z);
        }
    }
}

/* Take the gradient for the output of a stage back through its sigmoid, in place; store its sum, and the sum of its products
 * with the standardized values, in float64. */
static void receive(const polybn_network *net, const stage *s, int64_t block) {
    int64_t size = volume(s->output), plane = area(s->output), live = live_images(net, block);
    float *g = gradient_of(net, s) + block * size;
    const float *out = s->out + block * size, *best = s->best + block * size;
    double *sums = s->sums + block * 2 * s->output.channels;
    for (int64_t c = 0; c < s->output.channels; c++, sums += 2) {
        channel k = s->channels[c];
        wide sum[HALVES] = {0}, product[HALVES] = {0};
        for (int64_t p = 0; p < plane; p++, g += IMAGES, out += IMAGES, best += IMAGES) {
            float xhat[IMAGES] __attribute__((aligned(64)));
            UNROLL for (int h = 0; h < PARTS; h++) {
                lanes v = load(g + h * WIDTH), y = load(out + h * WIDTH);
                if (s->sigmoid) store(g + h * WIDTH, v * y * (1 - y));
                store(xhat + h * WIDTH, standardize(&k, load(best + h * WIDTH)));
            }
            UNROLL for (int h = 0; h < HALVES; h++) {
                wide v = load_wide(g + h * (WIDTH / 2));
                sum[h] += v;
                product[h] += v * load_wide(xhat + h * (WIDTH / 2));
            }
        }
        sums[0] = live_total(sum, live);
        sums[1] = live_total(product, live);
    }
}

/* The planes of one channel. */
typedef struct {
    const float *y, *best, *g;
    float *dy;
} planes;

INLINE void spread_channel(const stage *s, int64_t side, const channel *k, planes at, int64_t live) {
    int64_t row = s->middle.width * IMAGES;
    for (int64_t i = 0; i < s->output.height; i++, at.y += (side - 1) * row, at.dy += (side - 1) * row)
        for (int64_t j = 0; j < s->output.width; j++, at.y += side * IMAGES, at.dy += side * IMAGES)
            UNROLL for (int h = 0; h < PARTS; h++, at.best += WIDTH, at.g += WIDTH) {
                bits open = alive(live, h), unseen = open;
                lanes g = load(at.g), best = load(at.best);
                for (int64_t a = 0; a < side; a++)
                    for (int64_t b = 0; b < side; b++) {
                        int64_t place = a * row + b * IMAGES + h * WIDTH;
                        lanes y = load(at.y + place);
                        bits here = (y == best) & unseen;
                        unseen &= ~here;
                        lanes d = (keep(here, g) - k->mean_g) - standardize(k, y) * k->mean_gx;
                        store(at.dy + place, keep(open, d * k->slope));
                    }
            }
}

/* Take the gradient back from the output of the pool to y (S13); dy may be the memory of y. It is 0 in lanes without an
 * image. */
static void spread(const polybn_network *net, const stage *s, int64_t block, float *dy) {
    int64_t middle = area(s->middle) * IMAGES, output = area(s->output) * IMAGES, live = live_images(net, block);
    for (int64_t c = 0; c < s->middle.channels; c++) {
        int64_t in = block * volume(s->middle) + c * middle, out = block * volume(s->output) + c * output;
        planes at = {s->y + in, s->best + out, gradient_of(net, s) + out, dy + in};
        channel k = s->channels[c];
        if (s->pool == 1)
            spread_channel(s, 1, &k, at, live);
        else if (s->pool == 2)
            spread_channel(s, 2, &k, at, live);
        else
            spread_channel(s, s->pool, &k, at, live);
    }
}
