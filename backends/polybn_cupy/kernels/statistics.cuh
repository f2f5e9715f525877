// Clauses S2, S3, S4 and S10: compute the numbers that normalize a channel from its values.
#pragma once

#include "reduce.cuh"

// Sums over some values of a channel, relative to a pivot near their mean. The pivot is a floating-point number of the
// arithmetic's type and known exactly, so no error grows with the distance from zero. The sums are double.
struct Deviations {
    static constexpr int WORDS = 4;
    double word[WORDS];

    __device__ double& count() { return word[0]; }
    __device__ double& pivot() { return word[1]; }
    __device__ double& sum() { return word[2]; }      // of x - pivot
    __device__ double& squares() { return word[3]; }  // of (x - pivot)^2

    __device__ static Deviations empty() { return {{0, 0, 0, 0}}; }
};

// Join two parts. The new pivot has the arithmetic's type, so that in a constant channel the differences from it are
// multiples of the last place, and cancel exactly (S8).
template <class Real>
__device__ __noinline__ Deviations joined(Deviations left, Deviations right) {
    if (right.count() == 0) return left;
    if (left.count() == 0) return right;
    const double n = left.count() + right.count(), apart = right.pivot() - left.pivot();
    const double pivot = Real(left.pivot() + apart * (right.count() / n));
    Deviations whole = {{n, pivot, 0, 0}};
#pragma unroll
    for (Deviations* part : {&left, &right}) {
        const double moved = part->pivot() - pivot, shift = part->count() * moved;
        whole.sum() += part->sum() + shift;
        whole.squares() += part->squares() + moved * (2 * part->sum() + shift);
    }
    return whole;
}

// A type for each arithmetic, so that overloads of `join` can tell them apart.
struct SingleDeviations : Deviations {
    __device__ static SingleDeviations empty() { return {Deviations::empty()}; }
};
struct DoubleDeviations : Deviations {
    __device__ static DoubleDeviations empty() { return {Deviations::empty()}; }
};
__device__ inline SingleDeviations join(const SingleDeviations& left, const SingleDeviations& right) {
    return {joined<float>(left, right)};
}
__device__ inline DoubleDeviations join(const DoubleDeviations& left, const DoubleDeviations& right) {
    return {joined<double>(left, right)};
}

template <class Real>
struct DeviationsFor {
    using Type = SingleDeviations;
};
template <>
struct DeviationsFor<double> {
    using Type = DoubleDeviations;
};
template <class Real>
using DeviationsOf = typename DeviationsFor<Real>::Type;

// The numbers that normalize a channel: y = ((x 2^-exponent - m1) - delta) * r * gamma + beta. The exponent is 0 except
// in channels that S10 rescues.
template <class Real>
struct Normalizer {
    Real power, m1, delta, r;  // power = 2^-exponent
    int exponent;
    double v, count;  // v is the variance of the unscaled values
};

// 1 / sqrt(variance + eps), and 0 if both are 0; in double, where the sum of two floats cannot overflow.
__device__ inline double inverse_root(double variance, double eps) {
    const double square = variance + eps;
    if (square == 0) return 0;
    if (!is_finite(square) && is_finite(variance)) return 0.5 / root(variance / 4 + eps / 4);
    return 1 / root(square);
}

// The exponent with which a channel must be measured again, or 0. Large values are never scaled up: their differences
// are 0, or not small.
template <class Real>
__device__ int rescue_exponent(Deviations whole, double eps) {
    using R = Range<Real>;
    if (!is_finite(whole.sum()) || !is_finite(whole.squares())) return R::lower;
    const bool small = whole.squares() < whole.count() * R::floor && eps < R::floor && magnitude(whole.pivot()) < R::near;
    return small ? -R::raise : 0;
}

// The normalizer of a channel that was measured as x 2^-exponent.
template <class Real>
__device__ Normalizer<Real> normalizer(Deviations whole, double eps, int exponent) {
    const double n = whole.count() > 0 ? whole.count() : 1;
    const double delta = whole.sum() / n, difference = whole.squares() / n - delta * delta;
    const double v = difference <= 0 ? 0 : difference;  // NaN stays
    double r = v == 0 ? inverse_root(0, eps) : inverse_root(v, scaled(eps, -2 * exponent));
    int kept = v == 0 ? 0 : exponent;  // a constant channel needs no scaling, which could make eps vanish
    if (sizeof(Real) == 4 && r < 0x1p-96 && r > 0) kept += Range<Real>::lower;  // else r would lose digits
    if (v != 0) r = scaled(r, kept - exponent);
    return {scaled(Real(1), -kept), Real(scaled(whole.pivot(), exponent - kept)), Real(scaled(delta, exponent - kept)), Real(r), kept,
            scaled(v, 2 * exponent), whole.count()};
}

// Measure the values of a chunk, which the lanes of a warp hold. A value that does not take part is 0.
template <class Real, bool WHOLE>
__device__ DeviationsOf<Real> measure(const Real (&x)[EACH], unsigned taken) {
    Real total[EACH];
#pragma unroll
    for (int k = 0; k < EACH; ++k) total[k] = x[k];
#pragma unroll
    for (int step = 1; step < EACH; step *= 2) {
#pragma unroll
        for (int k = 0; k < EACH; k += 2 * step) total[k] += total[k + step];
    }
    const int count = WHOLE ? CHUNK : warp_sum(__popc(taken));
    const Real all = warp_sum(total[0]);
    const Real pivot = WHOLE ? all * (Real(1) / CHUNK) : count ? all / Real(count) : Real(0);
    double sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        const Real rounded = WHOLE || (taken >> k & 1) ? x[k] - pivot : Real(0);
        const double d = rounded;
        sum += d;
        squares = fma(d, d, squares);
    }
    DeviationsOf<Real> node = DeviationsOf<Real>::empty();
    node.count() = count;
    node.pivot() = pivot;
    node.sum() = warp_sum(sum);
    node.squares() = warp_sum(squares);
    return node;
}
