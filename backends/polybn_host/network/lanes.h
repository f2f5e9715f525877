/* Vectors over images: each lane belongs to one image.
 *
 * The values of a block of IMAGES images are next to each other in memory. A register holds WIDTH of them, so a block takes
 * PARTS registers in single and HALVES in double precision.
 */
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* ROWS sums of a convolution, or GRADIENT_ROWS times GRADIENT_TAPS sums of a gradient, fill the registers. */
#define GRADIENT_TAPS 5
#if WIDTH == 16
#define ROWS 8
#define GRADIENT_ROWS 4
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#elif WIDTH == 8
#define ROWS 6
#define GRADIENT_ROWS 2
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#elif defined(__aarch64__)
#define ROWS 6
#define GRADIENT_ROWS 4
#define FMA(a, b, c) vfmaq_f32(c, a, b)
#else
#define ROWS 3
#define GRADIENT_ROWS 2
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

#define IMAGES 16
#define PARTS (IMAGES / WIDTH)
#define HALVES (2 * PARTS)

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef float lanes __attribute__((vector_size(4 * WIDTH), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * WIDTH), may_alias));
typedef float half __attribute__((vector_size(2 * WIDTH), may_alias));
typedef double wide __attribute__((vector_size(4 * WIDTH), may_alias));
typedef float quad __attribute__((vector_size(16), may_alias));

INLINE lanes load(const float *p) { return *(const lanes *)p; }
INLINE void store(float *p, lanes v) { *(lanes *)p = v; }
INLINE wide load_wide(const float *p) { return __builtin_convertvector(*(const half *)p, wide); }
INLINE lanes all(float value) { return value - (lanes){0}; }
INLINE lanes keep(bits where, lanes v) { return (lanes)(where & (bits)v); }
INLINE lanes choose(bits where, lanes yes, lanes no) { return (lanes)((where & (bits)yes) | (~where & (bits)no)); }

/* Keep the value in a register: GCC would load it again for each use, and loads are the bottleneck. */
INLINE lanes load_once(const float *p) {
    lanes v = load(p);
#if defined(__x86_64__)
    __asm__("" : "+v"(v));
#endif
    return v;
}

/* A mask of the lanes of a part that belong to one of the `live` images of a block. */
INLINE bits alive(int64_t live, int part) {
    bits lane;
    UNROLL for (int i = 0; i < WIDTH; i++) lane[i] = part * WIDTH + i;
    return lane < (int32_t)live;
}

INLINE float total(lanes v) {
    union { lanes v; quad q[WIDTH / 4]; } u = {v};
    quad sum = u.q[0];
    UNROLL for (int i = 1; i < WIDTH / 4; i++) sum += u.q[i];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* exp(x), with an error of at most 1.1 units in the last place; x is first clipped to [-87.3, 88], and NaN stays.
 *
 * x = n ln 2 + f with |f| <= ln 2 / 2. exp(f) is a polynomial, and 2^n is made from its bits. */
INLINE lanes exponential(lanes x) {
    const float magic = 0x1.8p23f; /* adding it rounds to a whole number, which is then in the lowest bits */
    x = choose(x < -87.3f, all(-87.3f), x);
    x = choose(x > 88.0f, all(88.0f), x);
    lanes shifted = FMA(x, all(0x1.715476p+0f), all(magic));
    lanes n = shifted - magic;
    lanes f = FMA(n, all(-0x1.62e4p-1f), x);
    f = FMA(n, all(-0x1.7f7d1cp-20f), f);
    lanes p = FMA(f, all(0x1.6a23dp-10f), all(0x1.123a2p-7f));
    p = FMA(p, f, all(0x1.5558f2p-5f));
    p = FMA(p, f, all(0x1.555492p-3f));
    p = FMA(p, f, all(0x1.fffffcp-2f));
    p = FMA(p, f * f, f) + 1;
    return p * (lanes)(((bits)shifted << 23) + (127 << 23));
}

/* The error is at most 2.5 units in the last place, or 1e-38 below x = -87. */
INLINE lanes sigmoid(lanes x) { return 1 / (1 + exponential(-x)); }
