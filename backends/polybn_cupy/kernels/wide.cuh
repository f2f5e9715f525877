// Numbers with the digits of a double and an exponent that has no limits: the wider type of S10, for what is computed
// once per channel, and for all values of a channel that leaves the range of its arithmetic.
#pragma once

#include "types.cuh"

struct Wide {
    double part;  // in [1/2, 1), up to its sign; or 0, infinite, or NaN, and then the exponent is 0
    int exponent;
};

// value * 2^exponent
__device__ inline Wide wide(double value, int exponent = 0) {
    if (value == 0 || !is_finite(value)) return {value, 0};
    if (magnitude(value) < 0x1p-1000) value *= 0x1p100, exponent -= 100;  // it may be subnormal
    const long long bits = __double_as_longlong(value), own = (bits >> 52 & 0x7ff) - 1022;
    return {__longlong_as_double(bits - (own << 52)), exponent + int(own)};
}

// 2^exponent, for exponents of normal numbers.
__device__ inline double power_of_two(int exponent) { return __longlong_as_double((1023LL + exponent) << 52); }

__device__ inline Wide operator*(Wide a, Wide b) { return wide(a.part * b.part, a.exponent + b.exponent); }
__device__ inline Wide operator+(Wide a, Wide b) {
    if (a.part == 0) return b;
    if (b.part == 0) return a;
    const bool swap = a.exponent < b.exponent;
    const Wide large = swap ? b : a, small = swap ? a : b;
    const int apart = large.exponent - small.exponent;
    return wide(large.part + small.part * power_of_two(apart < 100 ? -apart : -100), large.exponent);
}
__device__ inline Wide operator-(Wide a) { return {-a.part, a.exponent}; }
__device__ inline Wide operator-(Wide a, Wide b) { return a + -b; }

__device__ inline Wide operator/(Wide a, double b) { return wide(a.part / b, a.exponent); }

// In two steps, of which only the second rounds.
template <class Real>
__device__ Real rounded(Wide a) {
    const int exponent = a.exponent > 2000 ? 2000 : a.exponent < -2000 ? -2000 : a.exponent, half = exponent / 2;
    return Real(a.part * power_of_two(half) * power_of_two(exponent - half));
}
template <class Real>
__device__ Real rounded(double value) {
    return Real(value);
}

// A number of a given type, for formulas that take several.
template <class Number>
__device__ Number number(double value) {
    if constexpr (sizeof(Number) == sizeof(Wide)) {
        return wide(value);
    } else {
        return value;
    }
}

// Find two factors whose product is `slope`. They are both large or both small, so that value * first * second leaves
// the range only where the result does. In the usual range the second is 1.
template <class Real>
__device__ void split(Wide slope, Real& first, Real& second) {
    const int whole = slope.exponent;
    const int part = whole > -Range<Real>::halfway && whole < Range<Real>::halfway ? whole : whole / 2;
    first = rounded<Real>({slope.part, part}), second = rounded<Real>({1, whole - part});
}
