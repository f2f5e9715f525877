/* Compute a channel's coefficients and results from its sums (S3, S4, S13). A channel that left the range of the passes'
   arithmetic is computed again, value by value, in a type whose range holds every product (S10): double for values of four
   bytes or fewer, and long double for float64. finish_double.c and finish_wide.c include this file, each with one type. */
#include <float.h>

#include "call.h"

typedef struct { wide m1, delta, v, r; } statistics;
typedef struct { wide g, gd; } cotangent_sums;

static wide both(double high, double low) {
    const wide sum = (wide)high + low;
    return sum == sum ? sum : high; /* if the sum is infinite, its remainder is NaN */
}

static wide inverse_root(wide v, double eps) {
    const wide square = v + eps;
    return square == 0 ? 0 : 1 / ROOT(square);
}

static pair add_spans(const call *k, int64_t c) {
    const int64_t spans = (kept(k, c) + SPAN - 1) / SPAN;
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

/* S4 */
static wide blend(double momentum, wide old, wide batch) {
    return momentum == 1 ? old : momentum == 0 ? batch : momentum * old + (1 - (wide)momentum) * batch;
}

static inline void set_parameter(int32_t stored, void *values, int64_t c, wide value) {
    if (!values) return;
    if (stored == FLOAT64) ((double *)values)[c] = (double)value;
    else ((float *)values)[c] = (float)value;
}

static void report_statistics(const call *k, int64_t c, const statistics *s, int stray) {
    const polybn_forward_call *f = k->forward;
    const int32_t stored = k->j.g->stored;
    const int64_t channels = k->j.g->channels, m = kept(k, c);
    const wide mean = s->v == s->v ? s->m1 + s->delta : s->v; /* S9: NaN, also where the mean is infinite */
    if (f->saved) {
        const double m1 = s->m1, saved[] = {m1, (s->m1 - m1) + s->delta, s->v, s->r, stray};
        for (int i = 0; i < 5; i++) ((double *)f->saved)[i * channels + c] = saved[i];
    }
    set_parameter(stored, f->mean, c, m ? mean : 0);
    set_parameter(stored, f->m2, c, s->v * m);
    if (!f->new_mean || !f->training) return;
    const wide old_mean = parameter(stored, f->running_mean, c), old_var = parameter(stored, f->running_var, c);
    const wide v = f->unbiased && m > 1 ? s->v * m / (m - 1) : s->v;
    set_parameter(stored, f->new_mean, c, m ? blend(f->momentum, old_mean, mean) : old_mean);
    set_parameter(stored, f->new_var, c, m ? blend(f->momentum, old_var, v) : old_var);
}

/* Whether a factor keeps its digits when it is rounded to the type of the passes. */
static int is_normal_or_zero(wide k) { return k == 0 || (k >= SMALLEST && k <= LARGEST) || (-k >= SMALLEST && -k <= LARGEST); }

/* Whether all values of a channel equal m1. If not, v = 0 means that squares have vanished. */
static int is_constant(const call *k, int64_t c, wide m1) {
    values v;
    for (begin(&v, k, c); step(&v);)
        if (value_x(&v) != m1) return 0;
    return 1;
}

static int spread_fits(const call *k, int64_t c, const statistics *s) {
    if (s->v == 0) return PASSES_IN_DOUBLE ? is_constant(k, c, s->m1) : 1;
    return s->v >= SMALLEST_SPREAD && s->v * kept(k, c) <= LARGEST_SPREAD;
}

static void set_forward(call *k, int64_t c, const statistics *s, double beta, wide slope) {
    k->of[c] = (coefficients){.m1 = s->m1, .delta = s->delta, .k = slope, .t = beta};
}

void NAME(finish_forward)(call *k, int64_t c) {
    const polybn_forward_call *f = k->forward;
    const int32_t stored = k->j.g->stored;
    const int64_t m = kept(k, c);
    const double gamma = gamma_of(k, c), beta = f->beta ? parameter(stored, f->beta, c) : -0.0; /* z + -0.0 is z */
    statistics s = {0, 0, 0, 0};
    int fits = 1;
    if (!f->training) {
        s.m1 = parameter(stored, f->running_mean, c);
        s.v = parameter(stored, f->running_var, c);
    } else if (m) {
        const pair sums = add_spans(k, c);
        const wide mean_d = both(sums.a, sums.a_low) / m, v = both(sums.b, sums.b_low) / m - mean_d * mean_d;
        s.m1 = (passes_real)(k->j.shift[c] + mean_d);
        s.delta = (k->j.shift[c] - s.m1) + mean_d;
        s.v = v < 0 ? 0 : v;
        fits = spread_fits(k, c, &s);
    }
    s.r = inverse_root(s.v, eps_of(k));
    const wide slope = gamma * s.r;
    fits &= is_normal_or_zero(slope);
    if (f->training) fits &= (gamma < 0 ? -gamma : gamma) * ROOT((wide)m) + (beta < 0 ? -beta : beta) <= LARGEST / 4;
    /* Sums of values of four bytes cannot overflow in double, so NaN comes from x, and computing again would not help. */
    k->j.stray[c] = m && !fits && (PASSES_IN_DOUBLE || s.v == s.v);
    set_forward(k, c, &s, beta, slope);
    report_statistics(k, c, &s, k->j.stray[c]);
}

/* S2, in the wide type. */
static statistics measure(const call *k, int64_t c) {
    const int64_t m = kept(k, c);
    statistics s = {0, 0, 0, 0};
    values v;
    wide first = 0, sum = 0, squares = 0;
    begin(&v, k, c);
    if (step(&v)) {
        first = value_x(&v);
        do sum += value_x(&v) - first;
        while (step(&v));
    }
    s.m1 = first + sum / m, sum = 0;
    for (begin(&v, k, c); step(&v);) {
        const wide d = value_x(&v) - s.m1;
        sum += d, squares += d * d;
    }
    s.delta = sum / m;
    s.v = squares / m - s.delta * s.delta;
    if (s.v < 0) s.v = 0;
    s.r = inverse_root(s.v, eps_of(k));
    return s;
}

static statistics statistics_of(const call *k, int64_t c) {
    if (of_training(k)) return measure(k, c);
    const double *saved = k->forward ? k->forward->saved : k->backward->saved;
    const int64_t channels = k->j.g->channels;
    return (statistics){saved[c], 0, saved[2 * channels + c], inverse_root(saved[2 * channels + c], eps_of(k))};
}

static void rescue_forward(call *k, int64_t c) {
    const polybn_forward_call *f = k->forward;
    const statistics s = statistics_of(k, c);
    const wide gamma = gamma_of(k, c), beta = f->beta ? parameter(k->j.g->stored, f->beta, c) : -0.0;
    values v;
    if (f->training) report_statistics(k, c, &s, 1);
    if (!f->y) return;
    for (begin(&v, k, c); step(&v);) put_result(&v, ((value_x(&v) - s.m1) - s.delta) * s.r * gamma + beta);
}

static void report_derivatives(const call *k, int64_t c, const cotangent_sums *sums, wide r) {
    const polybn_backward_call *b = k->backward;
    const int32_t stored = k->j.g->stored;
    const wide slope = gamma_of(k, c) * r;
    set_parameter(stored, b->dgamma, c, r * sums->gd);
    set_parameter(stored, b->dbeta, c, sums->g);
    if (b->training) return;
    set_parameter(stored, b->dmean, c, -slope * sums->g);
    set_parameter(stored, b->dvar, c, -slope * r * (r * sums->gd) / 2);
}

static wide magnitude(wide a) { return a < 0 ? -a : a; }

/* Whether no value of dy, and no product of one with d, is so small that it loses digits. Large sums prove it; small ones may
   come from cancellation, so then the largest values are looked for. */
static int cotangents_fit(const call *k, int64_t c, const cotangent_sums *sums, wide m1, wide r) {
    const wide least = SMALLEST_COTANGENT * kept(k, c), gd = magnitude(sums->gd);
    if (PASSES_IN_DOUBLE && !(gd <= LARGEST && magnitude(sums->g) <= LARGEST)) return 0;
    if (gd * r >= least && gd >= least) return 1;
    if (!PASSES_IN_DOUBLE && magnitude(sums->g) >= least) return 1;
    wide largest = 0, product = 0;
    values v;
    for (begin(&v, k, c); step(&v);) {
        const wide g = magnitude(value_g(&v)), gd_here = g * magnitude(value_x(&v) - m1);
        largest = g > largest ? g : largest, product = gd_here > product ? gd_here : product;
    }
    return (largest == 0 || largest >= SMALLEST_COTANGENT) && (product == 0 || product >= SMALLEST_COTANGENT);
}

void NAME(finish_backward)(call *k, int64_t c) {
    const double *saved = k->backward->saved;
    const int64_t channels = k->j.g->channels, m = kept(k, c);
    const wide m1 = saved[c], delta = saved[channels + c], r = saved[3 * channels + c], slope = gamma_of(k, c) * r;
    const pair total = m ? add_spans(k, c) : (pair){0, 0, 0, 0};
    cotangent_sums sums = {both(total.a, total.a_low), both(total.b, total.b_low)};
    if (!PASSES_IN_DOUBLE) sums.gd -= delta * sums.g; /* the passes of float64 subtract delta from each value */
    report_derivatives(k, c, &sums, r);
    const wide mean = m ? sums.g / m : 0, q = m ? r * (r * sums.gd) / m : 0, p = (passes_real)mean;
    k->of[c] = (coefficients){.m1 = m1, .delta = delta, .k = slope, .p = p, .q = q, .s = mean - p};
    int fits = is_normal_or_zero(slope) && cotangents_fit(k, c, &sums, m1, r);
    if (k->backward->training) fits &= !saved[4 * channels + c] && (is_normal_or_zero(q) || magnitude(q) > LARGEST);
    k->j.stray[c] = m && !fits && (PASSES_IN_DOUBLE || (slope == slope && sums.g - sums.g == 0));
}

static void rescue_backward(call *k, int64_t c) {
    const statistics s = statistics_of(k, c);
    const wide m = kept(k, c), slope = gamma_of(k, c) * s.r;
    cotangent_sums sums = {0, 0};
    values v;
    for (begin(&v, k, c); step(&v);) {
        sums.g += value_g(&v);
        sums.gd += value_g(&v) * ((value_x(&v) - s.m1) - s.delta);
    }
    report_derivatives(k, c, &sums, s.r);
    const wide mean = sums.g / m, along = s.r * sums.gd / m;
    for (begin(&v, k, c); step(&v);) {
        const wide g = value_g(&v), xhat = ((value_x(&v) - s.m1) - s.delta) * s.r;
        put_result(&v, k->backward->training ? (g - mean - xhat * along) * slope : g * slope);
    }
}

void NAME(rescue)(call *k, int64_t c) {
    if (k->forward) rescue_forward(k, c);
    else rescue_backward(k, c);
}
