/* Elementwise results of one dtype; included by passes.h. The arithmetic is in float, or in double for float64. Channels that
   leave this range are recognized by their coefficients, or by a result that is not finite, and finish.h computes them
   again. */

typedef struct { reals m1, delta, k, t, p, q, s; } N(row);

INLINE N(row) N(row_of)(const coefficients *c) {
    const N(row) r = {
        R(of)((real)c->m1), R(of)((real)c->delta), R(of)((real)c->k), R(of)((real)c->t),
        R(of)((real)c->p),  R(of)((real)c->q),     R(of)((real)c->s),
    };
    return r;
}

/* The coefficients of eight positions; the table has a line of `positions` numbers for each coefficient. */
INLINE N(row) N(row_at)(const real *table, int64_t positions) {
    const N(row) r = {
        R(at)(table),                 R(at)(table + positions),     R(at)(table + 2 * positions), R(at)(table + 3 * positions),
        R(at)(table + 4 * positions), R(at)(table + 5 * positions), R(at)(table + 6 * positions),
    };
    return r;
}

INLINE reals N(value)(enum map what, reals x, reals g, const N(row) *r) {
    if (what == SCALE) return R(multiply)(g, r->k);
    const reals d = R(subtract)(R(subtract)(x, r->m1), r->delta);
    if (what == DIFFERENTIATE)
        return R(multiply)(R(subtract)(R(subtract)(g, r->p), R(add)(R(multiply)(d, r->q), r->s)), r->k);
    return R(add)(R(multiply)(d, r->k), r->t);
}

/* Zero, and NaN from the first value on that is not finite: bits stay set, and no addition waits for another. */
INLINE reals N(watch)(enum map what, reals seen, reals value) {
    return what == INFER || what == DIFFERENTIATE ? R(or)(seen, R(subtract)(value, value)) : seen;
}

INLINE int N(went_wrong)(reals seen) {
    real lanes[LANES];
    int wrong = 0;
    R(to)(lanes, seen);
    for (int i = 0; i < LANES; i++) wrong |= lanes[i] != lanes[i];
    return wrong;
}

INLINE reals N(map_one)(enum map what, stored *to, const stored *x, const stored *g, const N(row) *r, reals seen) {
    const reals value = N(value)(what, what == SCALE ? r->k : N(load)(x), what < DIFFERENTIATE ? r->k : N(load)(g), r);
    N(store)(to, value);
    return N(watch)(what, seen, value);
}

/* Like map_one, for the first n < 8 values. */
INLINE reals N(map_rest)(
    enum map what, stored *to, const stored *x, const stored *g, int64_t n, const N(row) *r, reals seen) {
    stored some_x[LANES] = {0}, some_g[LANES] = {0}, result[LANES];
    if (what != SCALE) memcpy(some_x, x, n * sizeof(stored));
    if (what >= DIFFERENTIATE) memcpy(some_g, g, n * sizeof(stored));
    /* missing values must not overflow, so they repeat the first one */
    for (int64_t i = n; i < LANES; i++) some_x[i] = some_x[0], some_g[i] = some_g[0];
    seen = N(map_one)(what, result, some_x, some_g, r, seen);
    memcpy(to, result, n * sizeof(stored));
    return seen;
}

/* Map n adjacent values. */
INLINE reals N(map_run)(
    enum map what, stored *to, const stored *x, const stored *g, int64_t n, const coefficients *c, reals seen) {
    const N(row) r = N(row_of)(c);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) seen = N(map_one)(what, to + i, x + i, g + i, &r, seen);
    if (i < n) {
        /* The result overlaps no input, so the last eight values can be mapped a second time. */
        if (n >= LANES) i = n - LANES, seen = N(map_one)(what, to + i, x + i, g + i, &r, seen);
        else seen = N(map_rest)(what, to + i, x + i, g + i, n - i, &r, seen);
    }
    return seen;
}

/* The same for channel c0 + k, if these are the places in channel c0. */
INLINE reals N(map_row)(
    const job *j, enum map what, int64_t c0, int64_t k, char *to, const char *x, const char *g, int64_t n, reals seen) {
    const int64_t *apart = j->g->channel_stride;
    return N(map_run)(
        what, (stored *)(to + k * apart[RESULT]), (const stored *)(x + k * apart[X]), (const stored *)(g + k * apart[DY]), n,
        &j->of[c0 + k], seen);
}

/* Map n adjacent values of each channel. One look at the end tells whether a result was not finite, as rows may be short; the
   channels are then found by mapping again. */
INLINE void N(map_channels)(
    const job *j, enum map what, int64_t c0, int64_t c1, char *to, const char *x, const char *g, int64_t n) {
    reals seen = R(of)(0);
    for (int64_t k = 0; k < c1 - c0; k++) seen = N(map_row)(j, what, c0, k, to, x, g, n, seen);
    if (!N(went_wrong)(seen)) return;
    for (int64_t k = 0; k < c1 - c0; k++)
        if (N(went_wrong)(N(map_row)(j, what, c0, k, to, x, g, n, R(of)(0)))) j->stray[c0 + k] = 1;
}

INLINE void N(map_rows)(const job *j, enum map what, int64_t c0, int64_t c1, int64_t i0, int64_t i1) {
    const polybn_geometry *g = j->g;
    place of_x, of_g, to;
    find(g, X, c0, i0, &of_x), find(g, DY, c0, i0, &of_g), find(g, RESULT, c0, i0, &to);
    while (i0 < i1) {
        const int64_t n = smaller(i1 - i0, stretch(g, &to));
        N(map_channels)(j, what, c0, c1, j->result + to.offset, j->x + of_x.offset, j->dy + of_g.offset, n);
        advance(g, X, &of_x, n), advance(g, DY, &of_g, n), advance(g, RESULT, &to, n);
        i0 += n;
    }
}

/* Deleted values must not overflow, so they are replaced by a value that takes part. */
INLINE void N(fill)(stored *to, const stored *from, const uint8_t *where, int64_t first, int64_t n) {
    for (int64_t k = 0; k < n; k++) to[k] = from[where[k] ? k : first];
}

INLINE void N(map_copies)(const job *j, enum map what, int64_t c0, int64_t c1, int64_t i0, int64_t i1) {
    const polybn_geometry *g = j->g;
    stored copy_x[SPAN], copy_g[SPAN], kept_x[SPAN], kept_g[SPAN], result[SPAN];
    uint8_t copy_where[SPAN];
    for (int64_t i = i0; i < i1; i += SPAN)
        for (int64_t c = c0; c < c1; c++) {
            const int64_t n = smaller(SPAN, i1 - i);
            const stored *x = what == SCALE ? 0 : fetch(g, X, j->x, c, i, n, copy_x);
            const stored *dy = what < DIFFERENTIATE ? 0 : fetch(g, DY, j->dy, c, i, n, copy_g);
            const uint8_t *where = j->where ? fetch(g, WHERE, j->where, c, i, n, copy_where) : 0;
            stored *direct = where ? 0 : target(g, j->result, c, i, n), *to = direct ? direct : result;
            int64_t first = 0;
            while (where && first < n && !where[first]) first++;
            if (where && x && first < n) N(fill)(kept_x, x, where, first, n), x = kept_x;
            if (where && dy && first < n) N(fill)(kept_g, dy, where, first, n), dy = kept_g;
            if (first < n && N(went_wrong)(N(map_run)(what, to, x, dy, n, &j->of[c], R(of)(0)))) j->stray[c] = 1;
            if (where)
                for (int64_t k = 0; k < n; k++)
                    if (!where[k]) to[k] = (stored){0};
            if (!direct) scatter(g, j->result, c, i, n, (const char *)to);
        }
}

/* The number of values in a row of columns, as they are in memory. */
static int64_t N(width)(const job *j) { return j->g->channels * columns_each(j, RESULT); }

/* The number of values in a row of columns as map walks. If there are no gaps, it joins several rows to whole vectors. */
static int64_t N(positions)(const job *j) {
    int64_t positions = N(width)(j);
    if (is_flat(j, RESULT))
        while (positions % LANES || positions < 32 * LANES) positions *= 2;
    return positions;
}

static int64_t N(line)(const job *j) { return (N(positions)(j) + LANES - 1) / LANES * LANES; }

static void N(tabulate)(job *j) {
    const int64_t line = N(line)(j), width = N(width)(j), each = columns_each(j, RESULT);
    /* Aligned, because a vector that crosses a line of the cache is loaded in two steps. */
    real *table = j->table = aligned_alloc(64, (COEFFICIENTS * line * sizeof(real) + 63) / 64 * 64);
    if (!table) return;
    for (int64_t k = 0; k < width; k++) {
        const coefficients *from = &j->of[each == 1 ? k : k / each];
        const double values[COEFFICIENTS] = {from->m1, from->delta, from->k, from->t, from->p, from->q, from->s};
        for (int i = 0; i < COEFFICIENTS; i++) table[i * line + k] = (real)values[i];
    }
    for (int i = 0; i < COEFFICIENTS; i++) /* repeat what is there, which doubles it */
        for (int64_t n = width; n < line; n *= 2)
            memcpy(table + i * line + n, table + i * line, smaller(n, line - n) * sizeof(real));
}

INLINE reals N(map_positions)(
    const job *j, enum map what, char *to, const char *x, const char *g, int64_t positions, int64_t line, reals seen) {
    const real *table = j->table;
    const stored *from_x = (const stored *)x, *from_g = (const stored *)g;
    stored *at = (stored *)to;
    int64_t k = 0;
    for (; k + LANES <= positions; k += LANES) {
        const N(row) r = N(row_at)(table + k, line);
        seen = N(map_one)(what, at + k, from_x + k, from_g + k, &r, seen);
    }
    if (k < positions) {
        const N(row) r = N(row_at)(table + k, line);
        seen = N(map_rest)(what, at + k, from_x + k, from_g + k, positions - k, &r, seen);
    }
    return seen;
}

/* Map again, and mark the channels with results that are not finite. Those in memory would not do: a half that overflowed as it
   was stored needs no rescue, and may not get one because of other channels. */
INLINE void N(mark)(const job *j, enum map what, char *to, const char *x, const char *g, int64_t positions, int64_t line) {
    const int64_t width = N(width)(j), each = columns_each(j, RESULT);
    for (int64_t k = 0; k < positions; k += LANES) {
        const int64_t n = smaller(LANES, positions - k);
        const N(row) r = N(row_at)((const real *)j->table + k, line);
        real lanes[LANES];
        R(to)(lanes, N(map_rest)(what, (stored *)to + k, (const stored *)x + k, (const stored *)g + k, n, &r, R(of)(0)));
        for (int64_t i = 0; i < n; i++)
            if (lanes[i] != lanes[i]) j->stray[(k + i) % width / each] = 1;
    }
}

INLINE void N(map_columns)(const job *j, enum map what, int64_t i0, int64_t i1) {
    enum { ROWS_TOGETHER = 16 };
    const polybn_geometry *g = j->g;
    const int64_t width = N(width)(j), line = N(line)(j), step = N(positions)(j) / width;
    i0 /= columns_each(j, RESULT), i1 /= columns_each(j, RESULT); /* from values of a channel to rows */
    for (int64_t first = i0; first < i1; first += ROWS_TOGETHER * step) {
        const int64_t end = smaller(first + ROWS_TOGETHER * step, i1);
        reals seen = R(of)(0);
        for (int64_t i = first; i < end; i += step)
            seen = N(map_positions)(
                j, what, j->result + i * g->strides[RESULT][0], j->x + i * g->strides[X][0], j->dy + i * g->strides[DY][0],
                smaller(step, end - i) * width, line, seen);
        if (!N(went_wrong)(seen)) continue;
        for (int64_t i = first; i < end; i += step)
            N(mark)(
                j, what, j->result + i * g->strides[RESULT][0], j->x + i * g->strides[X][0], j->dy + i * g->strides[DY][0],
                smaller(step, end - i) * width, line);
    }
}

INLINE void N(map_all)(const job *j, enum map what, int64_t c0, int64_t c1, int64_t i0, int64_t i1) {
    const enum walk walk = map_walk(j);
    if (walk == ROWS) N(map_rows)(j, what, c0, c1, i0, i1);
    else if (walk == COLUMNS) N(map_columns)(j, what, i0, i1);
    else N(map_copies)(j, what, c0, c1, i0, i1);
}

static void N(map)(const job *j, enum map what, int64_t c0, int64_t c1, int64_t i0, int64_t i1) {
    if (what == NORMALIZE) N(map_all)(j, NORMALIZE, c0, c1, i0, i1);
    else if (what == INFER) N(map_all)(j, INFER, c0, c1, i0, i1);
    else if (what == DIFFERENTIATE) N(map_all)(j, DIFFERENTIATE, c0, c1, i0, i1);
    else N(map_all)(j, SCALE, c0, c1, i0, i1);
}

static const passes N(passes) = {N(sums), N(map), N(tabulate)};
