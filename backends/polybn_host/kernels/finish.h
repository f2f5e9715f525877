/* Compute a channel's coefficients and results from its sums (S3, S4, S13). A channel that left the range of the passes'
   arithmetic is computed again, value by value, in a type whose range holds every product (S10): double for values of four
   bytes or fewer, and long double for float64. finish_double.c and finish_wide.c include this file, each with one type. */
#include <float.h>

#include "call.h"

typedef passes_real entry; /* of a vector of parameters or statistics */

/* Some adjacent channels, field by field, so that the compiler computes several at once. */
enum { BLOCK = 32 };
typedef struct {
    wide m[BLOCK];              /* number of values that take part */
    wide a[BLOCK], b[BLOCK];    /* the two sums */
    wide gamma[BLOCK], beta[BLOCK];
    wide m1[BLOCK], delta[BLOCK], v[BLOCK], r[BLOCK];
    wide slope[BLOCK];          /* gamma r */
    wide mean[BLOCK], q[BLOCK]; /* of the cotangents */
    /* 1 or 0, in the type of what decides it, which lets the compiler take several at once: whether the passes can compute the
       channel, and whether its sums show that its cotangents are large enough. */
    wide fits[BLOCK], proved[BLOCK];
} block;

static inline wide magnitude(wide a) { return a < 0 ? -a : a; }
static inline wide at_least_one(wide m) { return m > 1 ? m : 1; }

/* Whether a factor keeps its digits when it is rounded to the type of the passes. */
static inline int is_normal_or_zero(wide k) { return (k == 0) | ((magnitude(k) >= SMALLEST) & (magnitude(k) <= LARGEST)); }

static inline wide both(double high, double low) {
    const wide sum = (wide)high + low;
    return sum == sum ? sum : high; /* if the sum is infinite, its remainder is NaN */
}

static inline wide inverse_root(wide v, double eps) {
    const wide square = v + eps;
    return square == 0 ? 0 : 1 / ROOT(square);
}

static inline pair add_spans(const call *k, int64_t c) {
    const int64_t spans = (kept(k, c) + SPAN - 1) / SPAN;
    if (spans == 1) return k->j.pairs[c];
    pair total = {0, 0, 0, 0};
    for (int64_t span = 0; span < spans; span++) {
        const pair *p = &k->j.pairs[span * k->j.g->channels + c];
        const double a = total.a + p->a, of_a = a - total.a, b = total.b + p->b, of_b = b - total.b;
        total.a_low += ((total.a - (a - of_a)) + (p->a - of_a)) + p->a_low;
        total.b_low += ((total.b - (b - of_b)) + (p->b - of_b)) + p->b_low;
        total.a = a, total.b = b;
    }
    return total;
}

static void load_sums(const call *k, int64_t c0, int n, block *s) {
    for (int i = 0; i < n; i++) {
        const pair sums = add_spans(k, c0 + i);
        s->a[i] = both(sums.a, sums.a_low), s->b[i] = both(sums.b, sums.b_low);
    }
}

static void load_parameters(const call *k, int64_t c0, int n, block *s) {
    const entry *gamma = k->forward ? k->forward->gamma : k->backward->gamma;
    const entry *beta = k->forward ? k->forward->beta : 0;
    for (int i = 0; i < n; i++) s->m[i] = kept(k, c0 + i);
    for (int i = 0; i < n; i++) s->gamma[i] = gamma ? gamma[c0 + i] : 1;
    for (int i = 0; i < n; i++) s->beta[i] = beta ? beta[c0 + i] : -0.0; /* z + -0.0 is z */
}

/* S4 */
static void blend(double momentum, const entry *old, const wide *batch, const wide *m, int n, entry *to) {
    for (int i = 0; i < n; i++) {
        const wide before = old[i], mixed = momentum * before + (1 - (wide)momentum) * batch[i];
        to[i] = (entry)(m[i] == 0 || momentum == 1 ? before : momentum == 0 ? batch[i] : mixed);
    }
}

static void report_statistics(const call *k, int64_t c0, int n, const block *s) {
    const polybn_forward_call *f = k->forward;
    const int64_t channels = k->j.g->channels;
    entry *to_mean = f->mean, *to_m2 = f->m2, *new_mean = f->new_mean, *new_var = f->new_var;
    const entry *old_mean = f->running_mean, *old_var = f->running_var;
    double *saved = f->saved;
    wide mean[BLOCK], v[BLOCK];
    for (int i = 0; i < n; i++) {
        mean[i] = s->v[i] == s->v[i] ? s->m1[i] + s->delta[i] : s->v[i]; /* S9: NaN, also where the mean is infinite */
        v[i] = f->unbiased ? s->v[i] * at_least_one(s->m[i]) / at_least_one(s->m[i] - 1) : s->v[i];
    }
    for (int i = 0; saved && i < n; i++) {
        double *to = saved + c0 + i;
        to[0] = (double)s->m1[i];
        to[channels] = (double)((s->m1[i] - to[0]) + s->delta[i]);
        to[2 * channels] = (double)s->v[i];
        to[3 * channels] = (double)s->r[i];
        to[4 * channels] = k->j.stray[c0 + i];
    }
    for (int i = 0; to_mean && i < n; i++) to_mean[c0 + i] = s->m[i] == 0 ? 0 : (entry)mean[i];
    for (int i = 0; to_m2 && i < n; i++) to_m2[c0 + i] = (entry)(s->v[i] * s->m[i]);
    if (!new_mean || !f->training) return;
    blend(f->momentum, old_mean + c0, mean, s->m, n, new_mean + c0);
    blend(f->momentum, old_var + c0, v, s->m, n, new_var + c0);
}

/* Whether all values of a channel equal m1. If not, v = 0 means that squares have vanished. */
static int is_constant(const call *k, int64_t c, wide m1) {
    values v;
    for (begin(&v, k, c); step(&v);)
        if (value_x(&v) != m1) return 0;
    return 1;
}

static void find_statistics(const call *k, int64_t c0, int n, block *s) {
    const double *shift = k->j.shift + c0;
    load_sums(k, c0, n, s);
    for (int i = 0; i < n; i++) {
        const wide m = at_least_one(s->m[i]), mean_d = s->a[i] / m, v = s->b[i] / m - mean_d * mean_d;
        s->m1[i] = (passes_real)(shift[i] + mean_d);
        s->delta[i] = (shift[i] - s->m1[i]) + mean_d;
        s->v[i] = v < 0 ? 0 : v;
    }
    for (int i = 0; i < n; i++)
        s->fits[i] = (s->v[i] == 0) | ((s->v[i] >= SMALLEST_SPREAD) & (s->v[i] * s->m[i] <= LARGEST_SPREAD)) ? 1 : 0;
    for (int i = 0; PASSES_IN_DOUBLE && i < n; i++)
        if (s->v[i] == 0) s->fits[i] = is_constant(k, c0 + i, s->m1[i]);
}

static void load_statistics(const call *k, int64_t c0, int n, block *s) {
    const entry *mean = k->forward->running_mean, *v = k->forward->running_var;
    for (int i = 0; i < n; i++) s->m1[i] = mean[c0 + i], s->delta[i] = 0, s->v[i] = v[c0 + i], s->fits[i] = 1;
}

static void finish_forward_block(call *k, int64_t c0, int n) {
    const int training = k->forward->training;
    const double eps = eps_of(k);
    block s;
    load_parameters(k, c0, n, &s);
    (training ? find_statistics : load_statistics)(k, c0, n, &s);
    for (int i = 0; i < n; i++) s.r[i] = inverse_root(s.v[i], eps), s.slope[i] = s.gamma[i] * s.r[i];
    for (int i = 0; i < n; i++) s.fits[i] = is_normal_or_zero(s.slope[i]) ? s.fits[i] : 0;
    for (int i = 0; training && i < n; i++)
        s.fits[i] = magnitude(s.gamma[i]) * ROOT(s.m[i]) + magnitude(s.beta[i]) <= LARGEST / 4 ? s.fits[i] : 0;
    for (int i = 0; i < n; i++)
        /* Sums of values of four bytes cannot overflow in double, so NaN comes from x, and computing again would not help. */
        k->j.stray[c0 + i] = s.m[i] != 0 && !s.fits[i] && (PASSES_IN_DOUBLE || s.v[i] == s.v[i]);
    for (int i = 0; i < n; i++)
        k->of[c0 + i] = (coefficients){.m1 = s.m1[i], .delta = s.delta[i], .k = s.slope[i], .t = s.beta[i]};
    report_statistics(k, c0, n, &s);
}

void NAME(finish_forward)(call *k, int64_t c0, int64_t c1) {
    for (; c0 < c1; c0 += BLOCK) finish_forward_block(k, c0, (int)smaller(BLOCK, c1 - c0));
}

/* S2, in the wide type. */
static void measure(const call *k, int64_t c, block *s) {
    const wide m = s->m[0];
    values v;
    wide first = 0, sum = 0, squares = 0;
    begin(&v, k, c);
    if (step(&v)) {
        first = value_x(&v);
        do sum += value_x(&v) - first;
        while (step(&v));
    }
    const wide m1 = first + sum / m;
    sum = 0;
    for (begin(&v, k, c); step(&v);) {
        const wide d = value_x(&v) - m1;
        sum += d, squares += d * d;
    }
    const wide delta = sum / m, variance = squares / m - delta * delta;
    s->m1[0] = m1, s->delta[0] = delta, s->v[0] = variance < 0 ? 0 : variance;
}

/* A block of one channel, in the wide type. */
static void measure_again(const call *k, int64_t c, block *s) {
    load_parameters(k, c, 1, s);
    if (of_training(k)) measure(k, c, s);
    else if (k->forward) load_statistics(k, c, 1, s);
    else {
        const double *saved = k->backward->saved;
        s->m1[0] = saved[c], s->delta[0] = 0, s->v[0] = saved[2 * k->j.g->channels + c];
    }
    s->r[0] = inverse_root(s->v[0], eps_of(k)), s->slope[0] = s->gamma[0] * s->r[0];
}

static inline wide centred(const values *v, const block *s) { return (value_x(v) - s->m1[0]) - s->delta[0]; }

static void rescue_forward(call *k, int64_t c) {
    block s;
    values v;
    measure_again(k, c, &s);
    if (k->forward->training) report_statistics(k, c, 1, &s);
    if (!k->forward->y) return;
    for (begin(&v, k, c); step(&v);) put_result(&v, centred(&v, &s) * s.r[0] * s.gamma[0] + s.beta[0]);
}

static void report_derivatives(const call *k, int64_t c0, int n, const block *s) {
    const polybn_backward_call *b = k->backward;
    entry *dgamma = b->dgamma, *dbeta = b->dbeta, *dmean = b->dmean, *dvar = b->dvar;
    for (int i = 0; dgamma && i < n; i++) dgamma[c0 + i] = (entry)(s->r[i] * s->b[i]);
    for (int i = 0; dbeta && i < n; i++) dbeta[c0 + i] = (entry)s->a[i];
    if (b->training) return;
    for (int i = 0; dmean && i < n; i++) dmean[c0 + i] = (entry)(-s->slope[i] * s->a[i]);
    for (int i = 0; dvar && i < n; i++) dvar[c0 + i] = (entry)(-s->slope[i] * s->r[i] * (s->r[i] * s->b[i]) / 2);
}

/* Whether no value of dy, and no product of one with d, is so small that it loses digits. Large sums prove it; small ones may
   come from cancellation, so then this looks for the largest values. */
static int cotangents_are_large(const call *k, int64_t c, wide m1) {
    wide largest = 0, product = 0;
    values v;
    for (begin(&v, k, c); step(&v);) {
        const wide g = magnitude(value_g(&v)), gd = g * magnitude(value_x(&v) - m1);
        largest = g > largest ? g : largest, product = gd > product ? gd : product;
    }
    return (largest == 0 || largest >= SMALLEST_COTANGENT) && (product == 0 || product >= SMALLEST_COTANGENT);
}

static void finish_backward_block(call *k, int64_t c0, int n) {
    const int64_t channels = k->j.g->channels;
    const double *m1 = (const double *)k->backward->saved + c0, *delta = m1 + channels, *r = m1 + 3 * channels;
    const double *strayed = m1 + 4 * channels;
    block s;
    load_parameters(k, c0, n, &s);
    load_sums(k, c0, n, &s);
    for (int i = 0; i < n; i++) {
        const wide m = at_least_one(s.m[i]);
        if (!PASSES_IN_DOUBLE) s.b[i] -= delta[i] * s.a[i]; /* the passes of float64 subtract delta from each value */
        s.r[i] = r[i], s.slope[i] = s.gamma[i] * s.r[i];
        s.mean[i] = s.a[i] / m, s.q[i] = s.r[i] * (s.r[i] * s.b[i]) / m;
    }
    report_derivatives(k, c0, n, &s);
    for (int i = 0; i < n; i++) {
        const wide g = magnitude(s.a[i]), gd = magnitude(s.b[i]), least = SMALLEST_COTANGENT * s.m[i];
        s.proved[i] = ((gd * s.r[i] >= least) & (gd >= least)) | (!PASSES_IN_DOUBLE & (g >= least)) ? 1 : 0;
    }
    for (int i = 0; i < n; i++) s.fits[i] = is_normal_or_zero(s.slope[i]) ? 1 : 0;
    for (int i = 0; PASSES_IN_DOUBLE && i < n; i++)
        s.fits[i] = (magnitude(s.a[i]) <= LARGEST) & (magnitude(s.b[i]) <= LARGEST) ? s.fits[i] : 0;
    for (int i = 0; k->backward->training && i < n; i++)
        s.fits[i] = (strayed[i] == 0) & (is_normal_or_zero(s.q[i]) | (magnitude(s.q[i]) > LARGEST)) ? s.fits[i] : 0;
    for (int i = 0; i < n; i++) {
        const wide p = (passes_real)s.mean[i];
        const int fits = s.fits[i] && (s.proved[i] || cotangents_are_large(k, c0 + i, m1[i]));
        k->of[c0 + i] = (coefficients){
            .m1 = m1[i], .delta = delta[i], .k = s.slope[i], .p = p, .q = s.q[i], .s = s.mean[i] - p};
        k->j.stray[c0 + i] = s.m[i] != 0 && !fits && (PASSES_IN_DOUBLE || (s.slope[i] == s.slope[i] && s.a[i] - s.a[i] == 0));
    }
}

void NAME(finish_backward)(call *k, int64_t c0, int64_t c1) {
    for (; c0 < c1; c0 += BLOCK) finish_backward_block(k, c0, (int)smaller(BLOCK, c1 - c0));
}

static void rescue_backward(call *k, int64_t c) {
    block s;
    values v;
    wide sum_g = 0, sum_gd = 0;
    measure_again(k, c, &s);
    for (begin(&v, k, c); step(&v);) sum_g += value_g(&v), sum_gd += value_g(&v) * centred(&v, &s);
    s.a[0] = sum_g, s.b[0] = sum_gd;
    report_derivatives(k, c, 1, &s);
    const wide mean = sum_g / s.m[0], along = s.r[0] * sum_gd / s.m[0];
    for (begin(&v, k, c); step(&v);) {
        const wide g = value_g(&v), xhat = centred(&v, &s) * s.r[0];
        put_result(&v, k->backward->training ? (g - mean - xhat * along) * s.slope[0] : g * s.slope[0]);
    }
}

void NAME(rescue)(call *k, int64_t c) {
    if (k->forward) rescue_forward(k, c);
    else rescue_backward(k, c);
}
