/* The layout of the buffers of a network. */
#pragma once

#include "lanes.h"
#include "model.h"

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* The size of a group if `count` is split evenly into the fewest groups of at most `limit`. */
INLINE int64_t evenly(int64_t count, int64_t limit) { return quotient_up(count, quotient_up(count, limit)); }

INLINE int64_t area(polybn_shape s) { return s.height * s.width; }
INLINE int64_t volume(polybn_shape s) { return s.channels * area(s) * IMAGES; } /* floats in a block */
INLINE int64_t kernel_height(const stage *s) { return s->input.height - s->middle.height + 1; }
INLINE int64_t kernel_width(const stage *s) { return s->input.width - s->middle.width + 1; }
INLINE int64_t kernel_area(const stage *s) { return kernel_height(s) * kernel_width(s); }
INLINE int64_t tap_count(const stage *s) { return s->input.channels * kernel_area(s); }
INLINE int64_t output_rows(const stage *s) { return evenly(s->middle.channels, ROWS); }
INLINE int64_t input_rows(const stage *s) { return evenly(s->input.channels, ROWS); }
INLINE int64_t output_groups(const stage *s) { return quotient_up(s->middle.channels, output_rows(s)); }
INLINE int64_t input_groups(const stage *s) { return quotient_up(s->input.channels, input_rows(s)); }
INLINE int is_dense(const stage *s) { return area(s->middle) == 1; }
INLINE int keeps_gradient(const stage *s) { return !s->norm && s->pool == 1; } /* the gradients of y and of the output agree */

INLINE int64_t block_count(const polybn_network *net) { return quotient_up(net->batch.count, IMAGES); }
INLINE int64_t live_images(const polybn_network *net, int64_t block) {
    return least(IMAGES, net->batch.count - block * IMAGES);
}

/* The gradient for the output of a stage */
INLINE float *gradient_of(const polybn_network *net, const stage *s) {
    return s + 1 < net->stages + net->depth ? s[1].dx : net->gradient;
}

static void *carve(char **memory, int64_t bytes) {
    char *start = *memory;
    *memory += quotient_up(bytes, 64) * 64;
    return start;
}

#define FLOATS(count) carve(&memory, 4 * (count))

/* Place the buffers of a network for `batch` images from `memory` on, and return their end. */
static char *lay_out(polybn_network *net, int64_t batch, char *memory) {
    int64_t blocks = quotient_up(batch, IMAGES);
    stage *end = net->stages + net->depth;
    for (stage *s = net->stages; s < end; s++) {
        s->x = s == net->stages ? FLOATS(blocks * volume(s->input)) : s[-1].out;
        s->y = s->convolution ? FLOATS(blocks * volume(s->middle)) : s->x;
        s->best = s->pool > 1 ? FLOATS(blocks * volume(s->output)) : s->y;
        s->out = keeps_gradient(s) && !s->sigmoid ? s->y : FLOATS(blocks * volume(s->output));
        s->sums = carve(&memory, 16 * blocks * s->middle.channels);
        s->channels = carve(&memory, (int64_t)sizeof(channel) * s->middle.channels);
        if (!s->convolution) continue;
        s->taps = carve(&memory, 8 * tap_count(s));
        s->forward_weight = FLOATS(output_groups(s) * output_rows(s) * (tap_count(s) + 1));
        s->backward_weight = FLOATS(input_groups(s) * input_rows(s) * kernel_area(s) * s->middle.channels);
        s->dweight = FLOATS((is_dense(s) ? 1 : blocks) * s->middle.channels * tap_count(s));
    }
    net->gradient = FLOATS(blocks * volume(end[-1].output));
    for (stage *s = end - 1; s > net->stages + net->first; s--)
        s->dx = !s->convolution && keeps_gradient(s) ? gradient_of(net, s) : FLOATS(blocks * volume(s->input));
    net->losses = carve(&memory, 8 * batch);
    net->right = carve(&memory, 8 * batch);
    return memory;
}
