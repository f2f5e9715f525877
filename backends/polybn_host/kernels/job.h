/* One call as the passes see it: the data that drive.c gives to the code of each instruction set. */
#pragma once
#include <stdint.h>

#include "interface.h"

/* Sums are taken over spans of this many values, and the sums of the spans are added in order. So threads can share a channel,
   and their number changes no bit. */
#define SPAN 4096

enum { X, DY, RESULT, WHERE }; /* the arrays of a geometry */
enum { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };

/* The terms of the two sums: (x, 0); (d, d^2) with d = x - shift; (g, g d). */
enum sums { TOTALS, DEVIATIONS, COTANGENTS };
/* The result: y in training; y in inference; dx in training; dx in inference. The second and the third also mark channels with
   results that are not finite. */
enum map { NORMALIZE, INFER, DIFFERENTIATE, SCALE };

/* Two sums, each as the unevaluated sum of two doubles. */
typedef struct { double a, a_low, b, b_low; } pair;

/* Of a channel: y = ((x - m1) - delta) k + t; dx = ((g - p) - (((x - m1) - delta) q + s)) k in training, g k in inference. */
typedef struct { double m1, delta, k, t, p, q, s; } coefficients;
#define COEFFICIENTS 7

typedef struct {
    const polybn_geometry *g;
    const char *x, *dy, *where;
    char *result;
    const double *shift, *low; /* per channel: d = x - shift, for cotangents of float64 also - low */
    pair *pairs;               /* (spans, channels) */
    const coefficients *of;    /* per channel */
    void *table;               /* the coefficients for a row of positions, see maps.h */
    uint8_t *stray;            /* per channel: set where a result is not finite */
} job;

/* The passes over the values, for one dtype on one instruction set. */
typedef struct {
    void (*sums)(const job *, enum sums, int64_t c0, int64_t c1, int64_t span0, int64_t span1);
    void (*map)(const job *, enum map, int64_t c0, int64_t c1, int64_t i0, int64_t i1);
    void (*tabulate)(job *); /* makes the table; before map if that walks over columns */
} passes;

/* Rows of fewer values, along the innermost axis of one channel, are not worth a loop of their own. */
#define SHORTEST_ROW 16

/* How a pass goes through memory: along rows in place, across adjacent columns, or through copies. */
enum walk { ROWS, COLUMNS, COPIES };
