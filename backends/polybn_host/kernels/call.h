/* A forward or a backward call in progress. */
#pragma once
#include "job.h"
#include "layout.h"
#include "scalar.h"

typedef struct {
    job j;
    const polybn_forward_call *forward;   /* one of these two is null */
    const polybn_backward_call *backward;
    const passes *passes;
    double *shift, *low;
    coefficients *of;
} call;

static inline int64_t kept(const call *k, int64_t c) {
    const int64_t *counts = k->forward ? k->forward->counts : k->backward->counts;
    return counts ? counts[c] : k->j.g->count;
}

static inline int of_training(const call *k) { return k->forward ? k->forward->training : k->backward->training; }

/* eps in the type of the statistics (S3) */
static inline double eps_of(const call *k) {
    const double eps = k->forward ? k->forward->eps : k->backward->eps;
    return k->j.g->stored == FLOAT64 ? eps : (float)eps;
}

/* An iterator over the values of one channel that the mask keeps. */
typedef struct {
    const call *k;
    int64_t channel, next, filled, at;
    const void *x, *g;
    const uint8_t *where;
    double copy_x[SPAN], copy_g[SPAN];
    uint8_t copy_where[SPAN];
} values;

static inline void begin(values *v, const call *k, int64_t channel) {
    v->k = k, v->channel = channel, v->next = v->filled = 0, v->at = -1;
}

/* Step to the next value that takes part; return 0 at the end. */
static inline int step(values *v) {
    const job *j = &v->k->j;
    const polybn_geometry *g = j->g;
    for (;;) {
        if (++v->at >= v->filled) {
            v->filled = smaller(SPAN, g->count - v->next), v->at = 0;
            if (v->filled <= 0) return 0;
            v->x = fetch(g, X, j->x, v->channel, v->next, v->filled, v->copy_x);
            if (j->dy) v->g = fetch(g, DY, j->dy, v->channel, v->next, v->filled, v->copy_g);
            if (j->where) v->where = fetch(g, WHERE, j->where, v->channel, v->next, v->filled, v->copy_where);
            v->next += v->filled;
        }
        if (!j->where || v->where[v->at]) return 1;
    }
}

static inline double value_x(const values *v) { return read_value(v->k->j.g->stored, v->x, v->at); }
static inline double value_g(const values *v) { return read_value(v->k->j.g->stored, v->g, v->at); }

static inline void put_result(const values *v, long double value) {
    const job *j = &v->k->j;
    double copy;
    write_value(j->g->stored, &copy, 0, value);
    scatter(j->g, j->result, v->channel, v->next - v->filled + v->at, 1, (const char *)&copy);
}

/* For both types of arithmetic: compute results from a channel's sums, and compute a channel again that left the range. */
void finish_forward_double(call *, int64_t c0, int64_t c1);
void finish_forward_wide(call *, int64_t c0, int64_t c1);
void finish_backward_double(call *, int64_t c0, int64_t c1);
void finish_backward_wide(call *, int64_t c0, int64_t c1);
void rescue_double(call *, int64_t c);
void rescue_wide(call *, int64_t c);
