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
    int own;
    const double part = frexp(value, &own);
    return {part, own + exponent};
}

__device__ inline Wide operator*(Wide a, Wide b) { return wide(a.part * b.part, a.exponent + b.exponent); }
__device__ inline Wide operator+(Wide a, Wide b) {
    if (a.part == 0) return b;
    if (b.part == 0) return a;
    const int top = a.exponent > b.exponent ? a.exponent : b.exponent;
    return wide(scaled(a.part, a.exponent - top) + scaled(b.part, b.exponent - top), top);
}
__device__ inline Wide operator-(Wide a) { return {-a.part, a.exponent}; }
__device__ inline Wide operator-(Wide a, Wide b) { return a + -b; }

template <class Real>
__device__ Real rounded(Wide a) {
    return Real(scaled(a.part, a.exponent));
}

// Find two factors whose product is `slope`. They are both large or both small, so that value * first * second leaves
// the range only where the result does. In the usual range the second is 1.
template <class Real>
__device__ void split(Wide slope, Real& first, Real& second) {
    const int whole = slope.exponent;
    const int part = whole > -Range<Real>::halfway && whole < Range<Real>::halfway ? whole : whole / 2;
    first = scaled(Real(slope.part), part), second = scaled(Real(1), whole - part);
}
