/* Memory layouts: copies between any strides and contiguous memory, and the choice of a walk. */
#pragma once
#include <string.h>

#include "job.h"

static inline int64_t size_of(const polybn_geometry *g, int array) {
    return array == WHERE ? 1 : g->stored == FLOAT64 ? 8 : g->stored == FLOAT32 ? 4 : 2;
}

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* A place among the values of a channel. */
typedef struct {
    int64_t offset, index[64];
} place;

static inline void find(const polybn_geometry *g, int array, int64_t channel, int64_t i, place *at) {
    at->offset = channel * g->channel_stride[array];
    for (int k = g->rank - 1; k >= 0; k--) {
        at->index[k] = k ? i % g->sizes[k] : i;
        at->offset += at->index[k] * g->strides[array][k];
        if (k) i /= g->sizes[k];
    }
}

/* The number of values from here to the end of the innermost axis. */
static inline int64_t stretch(const polybn_geometry *g, const place *at) {
    return g->sizes[g->rank - 1] - at->index[g->rank - 1];
}

static inline void advance_along(const polybn_geometry *g, int array, place *at, int k, int64_t n) {
    at->index[k] += n;
    at->offset += n * g->strides[array][k];
    for (; k && at->index[k] == g->sizes[k]; k--) {
        at->offset += g->strides[array][k - 1] - at->index[k] * g->strides[array][k];
        at->index[k] = 0;
        at->index[k - 1]++;
    }
}

static inline void advance(const polybn_geometry *g, int array, place *at, int64_t n) {
    advance_along(g, array, at, g->rank - 1, n);
}

/* The number of whole rows of the innermost axis from here on, along the axis before it, of which at most n values are left. */
static inline int64_t whole_rows(const polybn_geometry *g, const place *at, int64_t n) {
    const int k = g->rank - 2;
    return k < 0 || at->index[k + 1] ? 0 : smaller(n / g->sizes[k + 1], g->sizes[k] - at->index[k]);
}

/* Copy a few bytes in words, of which the last may overlap the one before it: a call of memcpy takes longer than that. */
static inline void copy_few(char *to, const char *from, int64_t bytes) {
    if (bytes >= 8) {
        for (int64_t k = 0; k + 8 < bytes; k += 8) memcpy(to + k, from + k, 8);
        memcpy(to + bytes - 8, from + bytes - 8, 8);
    } else if (bytes >= 4) {
        memcpy(to, from, 4), memcpy(to + bytes - 4, from + bytes - 4, 4);
    } else {
        for (int64_t k = 0; k < bytes; k++) to[k] = from[k];
    }
}

#define COPY_AS(type) \
    for (int64_t k = 0; k < n; k++) memcpy(to + k * to_stride, from + k * from_stride, sizeof(type))

static inline void copy(char *to, int64_t to_stride, const char *from, int64_t from_stride, int64_t n, int64_t size) {
    if (to_stride == size && from_stride == size) memcpy(to, from, n * size);
    else if (size == 8) COPY_AS(double);
    else if (size == 4) COPY_AS(float);
    else if (size == 2) COPY_AS(int16_t);
    else COPY_AS(char);
}

/* Copy n values of a channel from a place on to contiguous memory, or from there. */
static inline __attribute__((always_inline)) void pack_or_unpack(
    const polybn_geometry *g, int array, char *data, place *at, int64_t n, char *packed, int into_data) {
    const int64_t size = size_of(g, array), inner = g->sizes[g->rank - 1], stride = g->strides[array][g->rank - 1];
    const int short_rows = stride == size && inner * size <= 64;
    while (n > 0) {
        char *there = data + at->offset;
        const int64_t rows = short_rows ? whole_rows(g, at, n) : 0;
        const int64_t part = rows ? rows * inner : smaller(n, stretch(g, at));
        if (rows) {
            const int64_t apart = g->strides[array][g->rank - 2], bytes = inner * size;
            for (int64_t k = 0; k < rows; k++)
                if (into_data) copy_few(there + k * apart, packed + k * bytes, bytes);
                else copy_few(packed + k * bytes, there + k * apart, bytes);
            advance_along(g, array, at, g->rank - 2, rows);
        } else {
            if (into_data) copy(there, stride, packed, size, part, size);
            else copy(packed, size, there, stride, part, size);
            advance(g, array, at, part);
        }
        packed += part * size, n -= part;
    }
}

/* Return a pointer to n values of a channel from index i on: in place if they are adjacent, else copied to scratch memory. */
static inline const void *fetch(
    const polybn_geometry *g, int array, const char *data, int64_t channel, int64_t i, int64_t n, void *scratch) {
    place at;
    find(g, array, channel, i, &at);
    if (g->strides[array][g->rank - 1] == size_of(g, array) && n <= stretch(g, &at)) return data + at.offset;
    pack_or_unpack(g, array, (char *)data, &at, n, scratch, 0);
    return scratch;
}

/* Return where to write n results if their places are adjacent, else null; scatter then writes them. */
static inline void *target(const polybn_geometry *g, char *data, int64_t channel, int64_t i, int64_t n) {
    place at;
    find(g, RESULT, channel, i, &at);
    const int adjacent = g->strides[RESULT][g->rank - 1] == size_of(g, RESULT) && n <= stretch(g, &at);
    return adjacent ? data + at.offset : 0;
}

static inline void scatter(
    const polybn_geometry *g, char *data, int64_t channel, int64_t i, int64_t n, const char *from) {
    place at;
    find(g, RESULT, channel, i, &at);
    pack_or_unpack(g, RESULT, data, &at, n, (char *)from, 1);
}

static inline int present(const job *j, int array) {
    return array == X ? j->x != 0 : array == DY ? j->dy != 0 : array == RESULT;
}

/* The number of columns of each channel, if all columns of all channels are adjacent in the arrays up to `last`: 1 where channels
   are last, or the length of rows, such as 4 for images of 2 x 2; else 0. */
static inline int64_t columns_each(const job *j, int last) {
    const polybn_geometry *g = j->g;
    const int64_t size = size_of(g, X), each = g->rank == 1 ? 1 : g->rank == 2 ? g->sizes[1] : 0;
    for (int array = X; array <= last; array++) {
        if (!present(j, array)) continue;
        if (g->channel_stride[array] != each * size || (g->rank == 2 && g->strides[array][1] != size)) return 0;
    }
    return each;
}

/* Choose the walk over the arrays up to `last` that a call has; rows in place must be long enough. */
static inline enum walk walk_of(const job *j, int last, int64_t most_columns) {
    const polybn_geometry *g = j->g;
    int rows = g->sizes[g->rank - 1] >= SHORTEST_ROW;
    if (j->where) return COPIES;
    for (int array = X; array <= last; array++)
        if (present(j, array)) rows &= g->strides[array][g->rank - 1] == size_of(g, X);
    if (rows) return ROWS;
    const int64_t each = g->channels > 1 ? columns_each(j, last) : 0;
    return each && each <= most_columns ? COLUMNS : COPIES;
}

/* Whether there are no gaps between rows of columns in any array up to `last`. */
static inline int is_flat(const job *j, int last) {
    const int64_t bytes = j->g->channels * columns_each(j, last) * size_of(j->g, X);
    for (int array = X; array <= last; array++)
        if (present(j, array) && j->g->strides[array][0] != bytes) return 0;
    return 1;
}

/* The walks of the two kinds of passes. Sums over several columns of a channel would not add in the order of its values. */
static inline enum walk sums_walk(const job *j, enum sums what) { return walk_of(j, what == COTANGENTS ? DY : X, 1); }

static inline enum walk map_walk(const job *j) { return walk_of(j, RESULT, SHORTEST_ROW - 1); }
