/* A network in memory: nothing here depends on the instructions that work on it. */
#pragma once

#include <stdint.h>

#include "network/interface.h"

/* What batch norm does to a channel, y to ((y * scale - m1) - delta) * r * gamma + beta, and what its derivative needs.
 * Without batch norm it does nothing: scale, r and gamma are 1, the others 0. */
typedef struct {
    float scale, m1, delta, r, gamma, beta;
    float direction; /* sign of gamma * r: a pool looks for the largest y, the smallest, or takes the first */
    float slope;     /* derivative of the result by y */
    float mean_g, mean_gx;
} channel;

/* Activations (blocks, channels, height, width, IMAGES). */
typedef struct {
    polybn_stage;
    float *x;    /* input; the output of the stage before */
    float *y;    /* after the convolution; going back, the gradient takes its place */
    float *best; /* what the pool found; y if there is none */
    float *out;
    float *dx;
    float *forward_weight, *backward_weight; /* in the order in which they are read */
    float *dweight;                          /* one gradient for each block, or one in all for a dense layer */
    int64_t *taps;                           /* from a value of the output to the inputs of each weight */
    double *sums;                            /* (blocks, channels, 2) */
    channel *channels;
} stage;

typedef struct variant variant;

struct polybn_network {
    const variant *variant;
    int64_t depth, first; /* number of stages; the first one that has parameters */
    char *memory;
    int64_t size; /* of it, in bytes */
    float *gradient; /* of the loss by the output of the last stage */
    double *losses;  /* of each image */
    int64_t *right;  /* 1 where the largest score is that of the label */
    /* of one call */
    polybn_batch batch;
    float *scores;
    float rate;
    int training;
    stage stages[];
};

/* The functions that are compiled for one set of instructions. */
struct variant {
    char *(*lay_out)(polybn_network *net, int64_t batch, char *memory);
    void (*prepare)(polybn_network *net);
    double (*step)(polybn_network *net, int64_t *right);
    void (*score)(polybn_network *net);
};

extern const variant polybn_network_avx512, polybn_network_avx2, polybn_network_baseline;
