/* One call on its way through the passes: what the drivers hand to the code of each instruction set. */
#pragma once
#include <stdint.h>

#include "interface.h"

/* Sums are taken over spans of so many values; the spans' results are added in order. So threads may share a channel,
   and how many they are changes no bit. */
#define SPAN 4096

enum { X, DY, RESULT, WHERE }; /* the arrays of a geometry */
enum { FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };

/* What is summed: (x, 0); (d, d^2) with d = x - shift; (g, g d). */
enum sums { TOTALS, DEVIATIONS, COTANGENTS };
/* What is written: y; y, and a note where it is not finite; dx in training, with such a note; dx in inference. */
enum map { NORMALIZE, INFER, DIFFERENTIATE, SCALE };

/* Two sums, each as the unevaluated sum of two doubles. */
typedef struct { double a, a_low, b, b_low; } pair;

/* Of a channel: y = ((x - m1) - delta) k + t and dx = ((g - p) - (((x - m1) - delta) q + s)) k, or g k. */
typedef struct { double m1, delta, k, t, p, q, s; } coefficients;
#define COEFFICIENTS 7

typedef struct {
    const polybn_geometry *g;
    const char *x, *dy, *where;
    char *result;
    const double *shift, *low; /* per channel: d = x - shift, and - low in float64 */
    pair *pairs;               /* (spans, channels) */
    const coefficients *of;    /* per channel */
    void *table;               /* the coefficients repeated for a row of columns, see passes.h */
    uint8_t *stray;            /* per channel: set where a result is not finite */
} job;

/* The passes over the values, for one dtype on one instruction set. */
typedef struct {
    void (*sums)(const job *, enum sums, int64_t c0, int64_t c1, int64_t span0, int64_t span1);
    void (*map)(const job *, enum map, int64_t c0, int64_t c1, int64_t i0, int64_t i1);
    void (*tabulate)(job *); /* before map, where columns(g, ...) */
} passes;

/* How a pass walks: along rows in place, across adjacent channels, or through copies. */
enum walk { ROWS, COLUMNS, COPIES };
