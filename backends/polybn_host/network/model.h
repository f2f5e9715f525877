/* A network in memory, independent of the instruction set. */
#pragma once

#include <stdint.h>

#include "network/interface.h"

/* Batch norm of a channel, which maps y to ((y * scale - m1) - delta) * r * gamma + beta, and the numbers for its derivative.
 * Without batch norm it is the identity: scale, r and gamma are 1, the others 0. */
typedef struct {
    float scale, m1, delta, r, gamma, beta;
    float direction; /* sign of gamma * r: a pool takes the largest y, the smallest, or the first */
    float slope;     /* derivative of the result with respect to y */
    float mean_g, mean_gx;
} channel;

/* Activations (blocks, channels, height, width, IMAGES). */
typedef struct {
    polybn_stage;
    float *x;    /* input: the output of the previous stage */
    float *y;    /* output of the convolution; in the backward pass, its gradient */
    float *best; /* output of the pool; y if there is none */
    float *out;
    float *dx;
    float *forward_weight, *backward_weight; /* in the order in which they are read */
    float *dweight;                          /* one gradient for each block; a single one for a dense layer */
    int64_t *taps;                           /* offset of the input of each weight, relative to the output */
    double *sums;                            /* (blocks, channels, 2) */
    channel *channels;
} stage;

typedef struct variant variant;

struct polybn_network {
    const variant *variant;
    int64_t depth, first; /* number of stages; the first one that has parameters */
    char *memory;
    int64_t size; /* of the memory, in bytes */
    float *gradient; /* gradient of the loss for the output of the last stage */
    double *losses;  /* the loss of each image */
    int64_t *right;  /* 1 for each image whose label has the largest score */
    /* the current call */
    polybn_batch batch;
    float *scores;
    float rate;
    int training;
    stage stages[];
};

/* The functions that are compiled for one instruction set. */
struct variant {
    char *(*lay_out)(polybn_network *net, int64_t batch, char *memory);
    void (*prepare)(polybn_network *net);
    double (*step)(polybn_network *net, int64_t *right);
    void (*score)(polybn_network *net);
};

extern const variant polybn_network_avx512, polybn_network_avx2, polybn_network_baseline;
