/* Run the passes of the two calls. Threads share each pass, which ends before the next begins, if the values fit into their
   caches: then each thread reads adjacent memory. If there are more, and enough channels, each thread works on whole channels,
   so that the values that were measured are still in the cache when they are mapped. */
#include <float.h>
#include <stdlib.h>

#include "call.h"
#include "instructions.h"
#include "pool.h"

enum {
    SMALL = 1 << 15,   /* number of values up to which one thread is faster than several */
    TOGETHER = 1 << 19 /* number of values of a task: they fit into a processor's cache */
};

typedef struct {
    call k;
    enum sums sums;
    enum map map;
    int64_t channels_each, spans_each, values_each; /* of a task */
} plan;

static int is_wide(const call *k) { return k->j.g->stored == FLOAT64; }
static int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t spans_of(const polybn_geometry *g) { return up(g->count, SPAN); }

/* Deviations of float32 values are exact in double for any shift that is not an extreme outlier; the mean of a few values will
   do. Float64 uses the mean of all values, as in S2. */
static void find_shift(call *k, int64_t c) {
    const polybn_geometry *g = k->j.g;
    double sum = 0;
    int64_t n = 0;
    if (!k->j.where) {
        const int64_t some = smaller(8, g->count);
        char copy[8 * sizeof(double)];
        const void *x = fetch(g, X, k->j.x, c, 0, some, copy);
        for (; n < some; n++) sum += read_value(g->stored, x, n);
    } else {
        values v;
        for (begin(&v, k, c); n < 8 && step(&v); n++) sum += value_x(&v);
    }
    k->shift[c] = n ? (float)(sum / n) : 0;
}

/* The same for channels whose values are evenly spaced: row by row, as adjacent channels are adjacent in memory. */
static void find_even_shifts(call *k, int64_t c0, int64_t c1) {
    const polybn_geometry *g = k->j.g;
    const int64_t some = smaller(8, g->count), apart = g->channel_stride[X];
    for (int64_t c = c0; c < c1; c++) k->shift[c] = 0;
    for (int64_t i = 0; i < some; i++) {
        const char *row = k->j.x + i * g->strides[X][0];
        if (g->stored == FLOAT32 && apart == sizeof(float))
            for (int64_t c = c0; c < c1; c++) k->shift[c] += ((const float *)row)[c];
        else
            for (int64_t c = c0; c < c1; c++) k->shift[c] += read_value(g->stored, row + c * apart, 0);
    }
    for (int64_t c = c0; c < c1; c++) k->shift[c] = (float)(k->shift[c] / some);
}

static void find_mean(call *k, int64_t c) {
    const int64_t spans = up(kept(k, c), SPAN);
    long double sum = 0;
    for (int64_t span = 0; span < spans; span++) {
        const pair *p = &k->j.pairs[span * k->j.g->channels + c];
        sum += (long double)p->a + p->a_low;
    }
    k->shift[c] = spans ? (double)(sum / kept(k, c)) : 0;
}

static void find_shifts(call *k, int64_t c0, int64_t c1) {
    if (!is_wide(k) && !k->j.where && k->j.g->rank == 1) find_even_shifts(k, c0, c1);
    else
        for (int64_t c = c0; c < c1; c++) (is_wide(k) ? find_mean : find_shift)(k, c);
}

static void finish(call *k, int64_t c0, int64_t c1) {
    if (k->forward) (is_wide(k) ? finish_forward_wide : finish_forward_double)(k, c0, c1);
    else (is_wide(k) ? finish_backward_wide : finish_backward_double)(k, c0, c1);
}

static void rescue(call *k, int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; c++) {
        if (!k->j.stray[c]) continue;
        if (is_wide(k)) rescue_wide(k, c);
        /* not for infinite cotangents: the results would be infinite again */
        else if (k->forward || k->of[c].p - k->of[c].p == 0) rescue_double(k, c);
    }
}

static int measures(const call *k) { return k->forward ? k->forward->training : 1; }

/* A task: all passes over some channels. */
static void do_channels(void *context, int64_t task) {
    plan *p = context;
    call *k = &p->k;
    const polybn_geometry *g = k->j.g;
    const int64_t c0 = task * p->channels_each, c1 = smaller(c0 + p->channels_each, g->channels), spans = spans_of(g);
    if (k->forward && measures(k)) {
        if (is_wide(k)) k->passes->sums(&k->j, TOTALS, c0, c1, 0, spans);
        find_shifts(k, c0, c1);
    }
    if (measures(k)) k->passes->sums(&k->j, p->sums, c0, c1, 0, spans);
    finish(k, c0, c1);
    if (k->j.result) k->passes->map(&k->j, p->map, c0, c1, 0, g->count);
    rescue(k, c0, c1);
}

/* Tasks of passes that all threads share: some spans of some channels, or some values of all channels. */
static void do_sums(plan *p, enum sums what, int64_t task) {
    const polybn_geometry *g = p->k.j.g;
    const int64_t across = up(g->channels, p->channels_each);
    const int64_t c = task % across * p->channels_each, span = task / across * p->spans_each;
    p->k.passes->sums(
        &p->k.j, what, c, smaller(c + p->channels_each, g->channels), span, smaller(span + p->spans_each, spans_of(g)));
}

static void do_totals(void *context, int64_t task) { do_sums(context, TOTALS, task); }
static void do_main_sums(void *context, int64_t task) { do_sums(context, ((plan *)context)->sums, task); }

static void do_map(void *context, int64_t task) {
    plan *p = context;
    const polybn_geometry *g = p->k.j.g;
    const int64_t i = task * p->values_each;
    p->k.passes->map(&p->k.j, p->map, 0, g->channels, i, smaller(i + p->values_each, g->count));
}

static void run(plan *p, void (*work)(void *, int64_t), int64_t tasks, int alone) {
    if (!alone) pool_run(work, p, tasks);
    else
        for (int64_t task = 0; task < tasks; task++) work(p, task);
}

/* The number of equal tasks: a multiple of the number of threads. */
static int64_t tasks_for(const polybn_geometry *g, int64_t threads) {
    return threads * up(g->channels * g->count, threads * (int64_t)TOGETHER);
}

static int share(plan *p, int alone) {
    call *k = &p->k;
    const polybn_geometry *g = k->j.g;
    const int64_t parts = alone ? 1 : tasks_for(g, pool_threads()), spans = spans_of(g);
    p->spans_each = up(spans, parts);
    p->channels_each = spans >= parts || alone ? g->channels : smaller(g->channels, up(up(g->channels, parts), 64) * 64);
    const int columns = k->j.result && map_walk(&k->j) == COLUMNS;
    const int64_t unit = 64 * (columns ? columns_each(&k->j, RESULT) : 1); /* whole rows of columns */
    p->values_each = up(up(g->count, parts), unit) * unit;
    const int64_t tasks = up(spans, p->spans_each) * up(g->channels, p->channels_each);
    if (k->forward && measures(k)) {
        if (is_wide(k)) run(p, do_totals, tasks, alone);
        find_shifts(k, 0, g->channels);
    }
    if (measures(k)) run(p, do_main_sums, tasks, alone);
    finish(k, 0, g->channels);
    if (k->j.result) {
        if (columns) {
            k->passes->tabulate(&k->j);
            if (!k->j.table) return 1;
        }
        run(p, do_map, up(g->count, p->values_each), alone);
        free(k->j.table);
    }
    rescue(k, 0, g->channels);
    return 0;
}

static int carry_out(plan *p) {
    call *k = &p->k;
    const polybn_geometry *g = k->j.g;
    const int threads = pool_threads(), alone = g->channels * g->count <= SMALL || threads == 1;
    const int columns = sums_walk(&k->j, p->sums) == COLUMNS || (k->j.result && map_walk(&k->j) == COLUMNS);
    const int shared = g->channels < threads || (!alone && g->channels * g->count <= threads * (int64_t)TOGETHER);
    if (!measures(k) || columns || (shared && !k->j.where)) return share(p, alone);
    p->channels_each = up(g->channels, smaller(g->channels, tasks_for(g, alone ? 1 : threads)));
    run(p, do_channels, up(g->channels, p->channels_each), alone);
    return 0;
}

/* Allocate the memory of a call, and run it. */
static int start(plan *p) {
    call *k = &p->k;
    const polybn_geometry *g = k->j.g;
    const int64_t channels = g->channels, spans = spans_of(g);
    if (!channels || !g->count) return 0;
    const size_t sizes[] = {spans * channels * sizeof(pair), channels * sizeof *k->of, 2 * channels * sizeof(double), channels};
    char *memory = malloc(sizes[0] + sizes[1] + sizes[2] + sizes[3]);
    if (!memory) return 1;
    k->j.pairs = (pair *)memory;
    k->j.of = k->of = (coefficients *)(memory + sizes[0]);
    k->j.shift = k->shift = (double *)(memory + sizes[0] + sizes[1]);
    k->j.low = k->low = k->shift + channels;
    k->j.stray = (uint8_t *)(k->shift + 2 * channels);
    memset(k->j.stray, 0, channels);
    const double *saved = k->backward ? k->backward->saved : 0;
    for (int64_t c = 0; c < channels; c++) {
        k->shift[c] = saved ? saved[c] : 0;
        k->low[c] = saved ? saved[channels + c] : 0;
    }
    const int failed = carry_out(p);
    free(memory);
    return failed;
}

int polybn_forward(const polybn_forward_call *f) {
    plan p = {.sums = DEVIATIONS, .map = f->training ? NORMALIZE : INFER};
    p.k.forward = f;
    p.k.passes = &current_passes()[f->geometry->stored];
    p.k.j.g = f->geometry, p.k.j.x = f->x, p.k.j.where = f->where, p.k.j.result = f->y;
    return start(&p);
}

int polybn_backward(const polybn_backward_call *b) {
    plan p = {.sums = COTANGENTS, .map = b->training ? DIFFERENTIATE : SCALE};
    p.k.backward = b;
    p.k.passes = &current_passes()[b->geometry->stored];
    p.k.j.g = b->geometry, p.k.j.x = b->x, p.k.j.dy = b->dy, p.k.j.where = b->where, p.k.j.result = b->dx;
    return start(&p);
}

int polybn_bad_variances(const void *variance, int64_t channels, int32_t stored) {
    for (int64_t c = 0; c < channels; c++) {
        const double v = parameter(stored, variance, c);
        if (!(v >= 0 && v <= DBL_MAX)) return 1;
    }
    return 0;
}
