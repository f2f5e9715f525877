/* Sums of one dtype; included by passes.h. A channel's i-th value is added to lane i mod 8, in order, in double. For float64
   the rounding error of each addition is summed, too. The lanes of a span are added in a fixed order. */

typedef struct { doubles a, a_low, b, b_low; } N(lanes);

/* Lanes in memory. They are loaded and stored one by one, so that the compiler keeps all of them in registers in between. */
typedef struct { __attribute__((aligned(64))) double a[LANES], a_low[LANES], b[LANES], b_low[LANES]; } N(kept_lanes);

INLINE N(lanes) N(take)(const N(kept_lanes) *from) {
    return (N(lanes)){doubles_at(from->a), doubles_at(from->a_low), doubles_at(from->b), doubles_at(from->b_low)};
}

INLINE void N(keep)(N(kept_lanes) *to, N(lanes) s) {
    doubles_to(to->a, s.a), doubles_to(to->a_low, s.a_low), doubles_to(to->b, s.b), doubles_to(to->b_low, s.b_low);
}

INLINE void N(add)(doubles *sum, doubles *low, doubles value) {
#if COMPENSATED
    const doubles total = doubles_add(*sum, value), of_value = doubles_subtract(total, *sum);
    const doubles lost = doubles_subtract(*sum, doubles_subtract(total, of_value));
    *low = doubles_add(*low, doubles_add(lost, doubles_subtract(value, of_value)));
    *sum = total;
#else
    *sum = doubles_add(*sum, value);
    (void)low;
#endif
}

INLINE void N(terms)(enum sums what, doubles x, doubles g, doubles shift, doubles low, doubles *a, doubles *b) {
    doubles d = doubles_subtract(x, shift);
    if (COMPENSATED && what == COTANGENTS) d = doubles_subtract(d, low);
    *a = what == TOTALS ? x : what == DEVIATIONS ? d : g;
    *b = what == TOTALS ? x : doubles_multiply(*a, d);
}

INLINE void N(add_terms)(enum sums what, N(lanes) *s, doubles x, doubles g, doubles shift, doubles low) {
    doubles a, b;
    N(terms)(what, x, g, shift, low, &a, &b);
    N(add)(&s->a, &s->a_low, a);
    if (what != TOTALS) N(add)(&s->b, &s->b_low, b);
}

/* Add the first n < 8 values at x and g. */
INLINE void N(add_rest)(
    enum sums what, N(lanes) *s, const stored *x, const stored *g, int64_t n, doubles shift, doubles low) {
    stored some_x[LANES] = {0}, some_g[LANES] = {0};
    double lanes[2][LANES];
    doubles a, b;
    memcpy(some_x, x, n * sizeof(stored));
    if (what == COTANGENTS) memcpy(some_g, g, n * sizeof(stored));
    N(terms)(what, N(widen_at)(some_x), N(widen_at)(some_g), shift, low, &a, &b);
    doubles_to(lanes[0], a), doubles_to(lanes[1], b);
    for (int64_t i = n; i < LANES; i++) lanes[0][i] = lanes[1][i] = 0;
    N(add)(&s->a, &s->a_low, doubles_at(lanes[0]));
    N(add)(&s->b, &s->b_low, doubles_at(lanes[1]));
}

/* Values that wait until there are eight. */
typedef struct { stored x[LANES], g[LANES]; int64_t n; } N(rest);

/* Add n adjacent values, after those that wait; the last ones may wait again. */
INLINE void N(add_piece)(
    enum sums what, N(kept_lanes) *sums, N(rest) *rest, const stored *x, const stored *g, int64_t n, double channel_shift,
    double channel_low) {
    const doubles shift = doubles_of(channel_shift), low = doubles_of(channel_low);
    N(lanes) s = N(take)(sums);
    int64_t i = 0;
    for (; rest->n && rest->n < LANES && i < n; i++, rest->n++) {
        rest->x[rest->n] = x[i];
        if (what == COTANGENTS) rest->g[rest->n] = g[i];
    }
    if (rest->n == LANES) {
        N(add_terms)(what, &s, N(widen_at)(rest->x), what == COTANGENTS ? N(widen_at)(rest->g) : shift, shift, low);
        rest->n = 0;
    }
    for (; i + LANES <= n; i += LANES)
        N(add_terms)(what, &s, N(widen_at)(x + i), what == COTANGENTS ? N(widen_at)(g + i) : shift, shift, low);
    for (; i < n; i++, rest->n++) {
        rest->x[rest->n] = x[i];
        if (what == COTANGENTS) rest->g[rest->n] = g[i];
    }
    N(keep)(sums, s);
}

/* Add n adjacent values, of which the first belongs to lane 0. */
INLINE void N(add_run)(
    enum sums what, N(kept_lanes) *sums, const stored *x, const stored *g, int64_t n, double channel_shift, double channel_low) {
    const doubles shift = doubles_of(channel_shift), low = doubles_of(channel_low);
    N(lanes) s = N(take)(sums);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        N(add_terms)(what, &s, N(widen_at)(x + i), what == COTANGENTS ? N(widen_at)(g + i) : shift, shift, low);
    if (i < n) N(add_rest)(what, &s, x + i, g + i, n - i, shift, low);
    N(keep)(sums, s);
}

/* The results may take the place of the first lane. */
INLINE void N(fold_lanes)(const double *sum, const double *low, int64_t stride, double *total, double *total_low) {
#if COMPENSATED
    double so_far = 0, lost = 0;
    for (int64_t i = 0; i < LANES; i++) {
        const double value = sum[i * stride], next = so_far + value, of_value = next - so_far;
        lost += ((so_far - (next - of_value)) + (value - of_value)) + low[i * stride];
        so_far = next;
    }
    *total = so_far, *total_low = lost;
#else
    double s[LANES];
    for (int64_t i = 0; i < LANES; i++) s[i] = sum[i * stride];
    *total = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    *total_low = 0;
    (void)low;
#endif
}

static void N(close_span)(const N(kept_lanes) *s, pair *to) {
    N(fold_lanes)(s->a, s->a_low, 1, &to->a, &to->a_low);
    N(fold_lanes)(s->b, s->b_low, 1, &to->b, &to->b_low);
}

/* Rows in place, in memory order: a few channels side by side, so that each page is read once. */
INLINE void N(sum_rows)(const job *j, enum sums what, int64_t c0, int64_t c1, int64_t span0, int64_t span1) {
    enum { TOGETHER = 32 };
    const polybn_geometry *g = j->g;
    for (int64_t c = c0; c < c1; c += TOGETHER)
        for (int64_t span = span0; span < span1; span++) {
            const int64_t channels = smaller(TOGETHER, c1 - c), end = smaller((span + 1) * SPAN, g->count);
            N(kept_lanes) s[TOGETHER];
            N(rest) rest[TOGETHER];
            memset(s, 0, channels * sizeof *s);
            memset(rest, 0, channels * sizeof *rest);
            place at, of_dy;
            find(g, X, c, span * SPAN, &at);
            find(g, DY, c, span * SPAN, &of_dy);
            for (int64_t i = span * SPAN; i < end;) {
                const int64_t n = smaller(end - i, stretch(g, &at));
                for (int64_t k = 0; k < channels; k++)
                    N(add_piece)(
                        what, &s[k], &rest[k], (const stored *)(j->x + at.offset + k * g->channel_stride[X]),
                        (const stored *)(j->dy + of_dy.offset + k * g->channel_stride[DY]), n, j->shift[c + k],
                        j->low[c + k]);
                advance(g, X, &at, n);
                advance(g, DY, &of_dy, n);
                i += n;
            }
            for (int64_t k = 0; k < channels; k++) {
                const double shift = j->shift[c + k], low = j->low[c + k];
                if (rest[k].n) N(add_run)(what, &s[k], rest[k].x, rest[k].g, rest[k].n, shift, low);
                N(close_span)(&s[k], &j->pairs[span * g->channels + c + k]);
            }
        }
}

/* Copies of one span of one channel at a time. */
INLINE void N(sum_copies)(const job *j, enum sums what, int64_t c0, int64_t c1, int64_t span0, int64_t span1) {
    const polybn_geometry *g = j->g;
    stored copy_x[SPAN], copy_g[SPAN];
    for (int64_t span = span0; span < span1; span++)
        for (int64_t c = c0; c < c1; c++) {
            const int64_t i = span * SPAN, n = smaller(SPAN, g->count - i);
            N(kept_lanes) s = {0};
            const stored *x = fetch(g, X, j->x, c, i, n, copy_x);
            const stored *dy = what == COTANGENTS ? fetch(g, DY, j->dy, c, i, n, copy_g) : 0;
            N(add_run)(what, &s, x, dy, n, j->shift[c], j->low[c]);
            N(close_span)(&s, &j->pairs[span * g->channels + c]);
        }
}

/* Whole channels with a mask: to the bit as if the other values were deleted (S12). */
INLINE void N(sum_kept)(const job *j, enum sums what, int64_t c0, int64_t c1) {
    const polybn_geometry *g = j->g;
    stored copy_x[SPAN], copy_g[SPAN], kept_x[SPAN], kept_g[SPAN];
    uint8_t copy_where[SPAN];
    for (int64_t c = c0; c < c1; c++) {
        int64_t kept = 0, span = 0;
        N(kept_lanes) s = {0};
        for (int64_t i = 0; i < g->count; i += SPAN) {
            const int64_t n = smaller(SPAN, g->count - i);
            const uint8_t *where = fetch(g, WHERE, j->where, c, i, n, copy_where);
            const stored *x = fetch(g, X, j->x, c, i, n, copy_x);
            const stored *dy = what == COTANGENTS ? fetch(g, DY, j->dy, c, i, n, copy_g) : x;
            for (int64_t k = 0; k < n; k++) {
                if (!where[k]) continue;
                kept_x[kept] = x[k], kept_g[kept] = dy[k];
                if (++kept < SPAN) continue;
                N(add_run)(what, &s, kept_x, kept_g, SPAN, j->shift[c], j->low[c]);
                N(close_span)(&s, &j->pairs[span++ * g->channels + c]);
                kept = 0;
                memset(&s, 0, sizeof s);
            }
        }
        N(add_run)(what, &s, kept_x, kept_g, kept, j->shift[c], j->low[c]);
        if (kept) N(close_span)(&s, &j->pairs[span * g->channels + c]);
    }
}

/* Columns: a row of values is added to a row of sums, elementwise. If there are no gaps, the channels of eight positions make
   one row; otherwise each lane has its own rows. */
enum { N(WIDEST) = 128 };

/* Eight positions or, where they are the last, the first n of them, down the rows. */
INLINE void N(add_column)(
    enum sums what, const stored *x, int64_t x_stride, const stored *g, int64_t g_stride, int64_t rows, int64_t n, doubles shift,
    doubles low, double *a, double *a_low, double *b, double *b_low) {
    const doubles none = doubles_of(0); /* what each addition rounds off is kept for float64 alone */
    N(lanes) s = {doubles_at(a), COMPENSATED ? doubles_at(a_low) : none, doubles_at(b), COMPENSATED ? doubles_at(b_low) : none};
    for (int64_t row = 0; row < rows; row++) {
        if (n < LANES) N(add_rest)(what, &s, x, g, n, shift, low);
        else N(add_terms)(what, &s, N(widen_at)(x), what == COTANGENTS ? N(widen_at)(g) : shift, shift, low);
        x = (const stored *)((const char *)x + x_stride), g = (const stored *)((const char *)g + g_stride);
    }
    doubles_to(a, s.a), doubles_to(b, s.b);
    if (COMPENSATED) doubles_to(a_low, s.a_low), doubles_to(b_low, s.b_low);
}

INLINE void N(add_columns)(
    enum sums what, const char *x, int64_t x_stride, const char *g, int64_t g_stride, int64_t rows, int64_t width,
    const double *shift, const double *low, double (*sums)[LANES * N(WIDEST)]) {
    const stored *from_x = (const stored *)x, *from_g = (const stored *)g;
    int64_t k = 0;
    for (; k + LANES <= width; k += LANES)
        N(add_column)(
            what, from_x + k, x_stride, from_g + k, g_stride, rows, LANES, doubles_at(shift + k), doubles_at(low + k),
            sums[0] + k, sums[1] + k, sums[2] + k, sums[3] + k);
    if (k < width)
        N(add_column)(
            what, from_x + k, x_stride, from_g + k, g_stride, rows, width - k, doubles_at(shift + k), doubles_at(low + k),
            sums[0] + k, sums[1] + k, sums[2] + k, sums[3] + k);
}

/* Repeat a value per channel for each of the lanes, which lie so far apart. */
INLINE void N(repeat)(double *to, const double *from, int64_t channels, int64_t apart) {
    for (int64_t lane = 0; lane < LANES; lane++) {
        for (int64_t k = 0; k < channels; k++) to[lane * apart + k] = from[k];
        for (int64_t k = channels; k < apart; k++) to[lane * apart + k] = 0;
    }
}

INLINE void N(sum_columns)(const job *j, enum sums what, int64_t c0, int64_t c1, int64_t span0, int64_t span1) {
    const polybn_geometry *g = j->g;
    const int64_t xs = g->strides[X][0], gs = g->strides[DY][0];
    const int flat = c1 - c0 == g->channels && g->channels <= N(WIDEST) && is_flat(j, what == COTANGENTS ? DY : X);
    /* Rows that are far apart may share a set of the first cache, so fewer of them are read at a time. */
    const int64_t together = (flat ? 8 : 4) * LANES;
    __attribute__((aligned(64))) double sums[4][LANES * N(WIDEST)], shift[LANES * N(WIDEST)], low[LANES * N(WIDEST)];
    for (int64_t c = c0; c < c1; c += N(WIDEST)) {
        /* apart: the distance of lanes in `sums`; width: the number of values in a row */
        const int64_t channels = smaller(N(WIDEST), c1 - c), apart = flat ? channels : N(WIDEST);
        const int64_t lanes = flat ? 1 : LANES, width = flat ? LANES * channels : channels;
        N(repeat)(shift, j->shift + c, channels, apart);
        if (COMPENSATED) N(repeat)(low, j->low + c, channels, apart);
        for (int64_t span = span0; span < span1; span++) {
            const int64_t end = smaller((span + 1) * SPAN, g->count);
            for (int t = 0; t < 4; t += COMPENSATED ? 1 : 2) memset(sums[t], 0, LANES * apart * sizeof(double));
            for (int64_t i = span * SPAN; i < end; i += together) {
                const int64_t rows = smaller(together, end - i);
                const char *x = j->x + i * xs + c * (int64_t)sizeof(stored), *dy = j->dy + i * gs + c * (int64_t)sizeof(stored);
                for (int64_t lane = 0; lane < lanes; lane++)
                    N(add_columns)(
                        what, x + lane * xs, LANES * xs, dy + lane * gs, LANES * gs, flat ? rows / LANES : (rows - lane + LANES - 1) / LANES,
                        width, shift, low, (double(*)[LANES * N(WIDEST)])(sums[0] + lane * apart));
                if (flat && rows % LANES) {
                    const int64_t done = rows - rows % LANES;
                    N(add_columns)(what, x + done * xs, xs, dy + done * gs, gs, 1, rows % LANES * channels, shift, low, sums);
                }
            }
            for (int t = 0; t < 4; t += 2)
                for (int64_t k = 0; k < channels; k++) N(fold_lanes)(sums[t] + k, sums[t + 1] + k, apart, &sums[t][k], &sums[t + 1][k]);
            for (int64_t k = 0; k < channels; k++)
                j->pairs[span * g->channels + c + k] = (pair){sums[0][k], sums[1][k], sums[2][k], sums[3][k]};
        }
    }
}

INLINE void N(sum)(const job *j, enum sums what, int64_t c0, int64_t c1, int64_t span0, int64_t span1) {
    const enum walk walk = sums_walk(j, what);
    if (j->where) N(sum_kept)(j, what, c0, c1);
    else if (walk == ROWS) N(sum_rows)(j, what, c0, c1, span0, span1);
    else if (walk == COLUMNS) N(sum_columns)(j, what, c0, c1, span0, span1);
    else N(sum_copies)(j, what, c0, c1, span0, span1);
}

static void N(sums)(const job *j, enum sums what, int64_t c0, int64_t c1, int64_t span0, int64_t span1) {
    if (what == DEVIATIONS) N(sum)(j, DEVIATIONS, c0, c1, span0, span1);
    else if (what == COTANGENTS) N(sum)(j, COTANGENTS, c0, c1, span0, span1);
#if COMPENSATED
    else N(sum)(j, TOTALS, c0, c1, span0, span1);
#endif
}
