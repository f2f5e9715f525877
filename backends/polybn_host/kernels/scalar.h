/* Read and write single values of any dtype. */
#pragma once
#include <math.h>
#include <string.h>

#include "job.h"

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline double half_value(uint16_t half) {
    const uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    const double magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                                            : ldexp(exponent ? fraction | 1024 : fraction, (exponent ? exponent : 1) - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

static inline double read_value(int32_t stored, const void *values, int64_t i) {
    switch (stored) {
        case FLOAT16: return half_value(((const uint16_t *)values)[i]);
        case BFLOAT16: return float_of_bits((uint32_t)((const uint16_t *)values)[i] << 16);
        case FLOAT32: return ((const float *)values)[i];
        default: return ((const double *)values)[i];
    }
}

/* Round to a type with `fraction` bits of fraction and this exponent bias, ties to even; return the bits. */
static inline uint16_t rounded(double value, int fraction, int bias) {
    const uint16_t sign = signbit(value) ? 0x8000 : 0, special = (uint16_t)((2 * bias + 1) << fraction);
    if (isnan(value)) return sign | special | (uint16_t)(1 << (fraction - 1));
    int exponent;
    frexp(value, &exponent); /* |value| < 2^exponent */
    if (isinf(value) || exponent > bias + 1) return sign | special;
    if (exponent < 2 - bias || value == 0) exponent = 2 - bias;
    /* in units of the last place; a carry into the exponent gives the right result, also infinity */
    const double units = nearbyint(ldexp(fabs(value), fraction + 1 - exponent));
    return sign | (uint16_t)((uint16_t)units + ((exponent - 2 + bias) << fraction));
}

static inline void write_value(int32_t stored, void *values, int64_t i, long double value) {
    switch (stored) {
        case FLOAT16: ((uint16_t *)values)[i] = rounded((double)value, 10, 15); break;
        case BFLOAT16: ((uint16_t *)values)[i] = rounded((double)value, 7, 127); break;
        case FLOAT32: ((float *)values)[i] = (float)value; break;
        default: ((double *)values)[i] = (double)value;
    }
}

/* An entry of a vector of parameters or statistics, which is double if x is float64, else float. */
static inline double parameter(int32_t stored, const void *values, int64_t c) {
    return stored == FLOAT64 ? ((const double *)values)[c] : ((const float *)values)[c];
}
