/* Vectors of eight values, on any instruction set. The including file chooses it: WIDTH is the number of doubles in a register,
   HALF_CONVERSION says whether the processor can convert float16. Sums always have eight lanes of double, so every instruction
   set adds in the same order and gives the same bits. */
#pragma once
#include <stdint.h>
#include <string.h>
#if WIDTH > 2
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define DOUBLES (LANES / WIDTH)                    /* registers for eight doubles */
#define FLOAT_WIDTH (WIDTH > 4 ? LANES : 2 * WIDTH) /* floats per register, at most eight */
#define FLOATS (LANES / FLOAT_WIDTH)

typedef double double_register __attribute__((vector_size(8 * WIDTH)));
typedef int64_t double_mask __attribute__((vector_size(8 * WIDTH)));
typedef float narrow_register __attribute__((vector_size(4 * WIDTH))); /* as many floats as a register has doubles */
typedef float float_register __attribute__((vector_size(4 * FLOAT_WIDTH)));
typedef int32_t float_mask __attribute__((vector_size(4 * FLOAT_WIDTH)));
typedef uint32_t word_register __attribute__((vector_size(4 * FLOAT_WIDTH)));
typedef uint16_t half_register __attribute__((vector_size(2 * FLOAT_WIDTH)));

typedef struct { double_register part[DOUBLES]; } doubles;
typedef struct { float_register part[FLOATS]; } floats;

#define FOR_EACH(parts, i) _Pragma("GCC unroll 4") for (int i = 0; i < (parts); i++)

#define ARITHMETIC(vectors, parts, scalar, mask)                                                    \
    INLINE vectors vectors##_of(scalar value) {                                                     \
        vectors r;                                                                                  \
        FOR_EACH(parts, i) r.part[i] = value - (typeof(r.part[0])){0};                              \
        return r;                                                                                   \
    }                                                                                               \
    INLINE vectors vectors##_at(const scalar *from) {                                               \
        vectors r;                                                                                  \
        FOR_EACH(parts, i) memcpy(&r.part[i], from + i * (LANES / parts), sizeof r.part[i]);        \
        return r;                                                                                   \
    }                                                                                               \
    INLINE void vectors##_to(scalar *to, vectors a) {                                               \
        FOR_EACH(parts, i) memcpy(to + i * (LANES / parts), &a.part[i], sizeof a.part[i]);          \
    }                                                                                               \
    INLINE vectors vectors##_add(vectors a, vectors b) {                                            \
        FOR_EACH(parts, i) a.part[i] += b.part[i];                                                  \
        return a;                                                                                   \
    }                                                                                               \
    INLINE vectors vectors##_subtract(vectors a, vectors b) {                                       \
        FOR_EACH(parts, i) a.part[i] -= b.part[i];                                                  \
        return a;                                                                                   \
    }                                                                                               \
    INLINE vectors vectors##_multiply(vectors a, vectors b) {                                       \
        FOR_EACH(parts, i) a.part[i] *= b.part[i];                                                  \
        return a;                                                                                   \
    }                                                                                               \
    INLINE vectors vectors##_or(vectors a, vectors b) { /* of the bits */                           \
        FOR_EACH(parts, i) a.part[i] = (typeof(a.part[0]))((mask)a.part[i] | (mask)b.part[i]);      \
        return a;                                                                                   \
    }

ARITHMETIC(doubles, DOUBLES, double, double_mask)
ARITHMETIC(floats, FLOATS, float, float_mask)

/* The intrinsics are one instruction; for the general form the compiler makes several. */
INLINE double_register widened(narrow_register part) {
#if WIDTH == 8
    return (double_register)_mm512_cvtps_pd((__m256)part);
#elif WIDTH == 4
    return (double_register)_mm256_cvtps_pd((__m128)part);
#else
    return __builtin_convertvector(part, double_register);
#endif
}

INLINE doubles doubles_at_floats(const float *from) {
    doubles r;
    FOR_EACH(DOUBLES, i) {
        narrow_register part;
        memcpy(&part, from + i * WIDTH, sizeof part);
        r.part[i] = widened(part);
    }
    return r;
}

INLINE doubles doubles_from(floats a) {
    doubles r;
    FOR_EACH(DOUBLES, i) {
        narrow_register part;
        memcpy(&part, (const char *)&a + i * sizeof part, sizeof part);
        r.part[i] = widened(part);
    }
    return r;
}

#if HALF_CONVERSION

INLINE floats floats_at_halves(const uint16_t *from) {
    floats r;
    FOR_EACH(FLOATS, i) r.part[i] = (float_register)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i * LANES)));
    return r;
}

INLINE void floats_to_halves(uint16_t *to, floats a) {
    FOR_EACH(FLOATS, i) _mm_storeu_si128((__m128i *)(to + i * LANES), _mm256_cvtps_ph((__m256)a.part[i], 0));
}
#else

/* The bits of a float16, shifted into place, are those of the value times 2^-112. Infinity and NaN get the largest exponent. */
INLINE floats floats_at_halves(const uint16_t *from) {
    floats r;
    FOR_EACH(FLOATS, i) {
        half_register half;
        memcpy(&half, from + i * FLOAT_WIDTH, sizeof half);
        const word_register bits = __builtin_convertvector(half, word_register), sign = (bits & 0x8000) << 16;
        const word_register special = (word_register)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
        const float_register value = (float_register)((bits & 0x7fff) << 13) * 0x1p112f;
        r.part[i] = (float_register)((word_register)value | special | sign);
    }
    return r;
}

/* Normal halves are rounded to even by an integer addition to the bits. For subnormal halves, adding 0.5, whose last place is
   that of the half, rounds to even; subtracting the bits of 0.5 leaves those of the half. */
INLINE void floats_to_halves(uint16_t *to, floats a) {
    FOR_EACH(FLOATS, i) {
        const word_register bits = (word_register)a.part[i], magnitude = bits & 0x7fffffff;
        const word_register small = (word_register)(magnitude < 0x38800000);
        const word_register subnormal = (word_register)((float_register)magnitude + 0.5f) - 0x3f000000;
        const word_register normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        const word_register large = (word_register)(magnitude >= 0x47800000); /* 2^16, infinity and NaN */
        const word_register special = 0x7c00 | ((word_register)(magnitude > 0x7f800000) & 0x200);
        const word_register half = (subnormal & small) | (special & large) | (normal & ~small & ~large);
        const half_register narrow = __builtin_convertvector(half | ((bits >> 16) & 0x8000), half_register);
        memcpy(to + i * FLOAT_WIDTH, &narrow, sizeof narrow);
    }
}
#endif

INLINE floats floats_at_brains(const uint16_t *from) {
    floats r;
    FOR_EACH(FLOATS, i) {
        half_register half;
        memcpy(&half, from + i * FLOAT_WIDTH, sizeof half);
        r.part[i] = (float_register)(__builtin_convertvector(half, word_register) << 16);
    }
    return r;
}

INLINE void floats_to_brains(uint16_t *to, floats a) {
    FOR_EACH(FLOATS, i) {
        const word_register bits = (word_register)a.part[i], odd = (bits >> 16) & 1;
        const word_register nan = (word_register)((bits & 0x7fffffff) > 0x7f800000);
        const word_register rounded = (((bits + 0x7fff + odd) >> 16) & ~nan) | (((bits >> 16) | 0x40) & nan);
        const half_register narrow = __builtin_convertvector(rounded, half_register);
        memcpy(to + i * FLOAT_WIDTH, &narrow, sizeof narrow);
    }
}
