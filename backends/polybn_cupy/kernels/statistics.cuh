// Clauses S2, S3, S4 and S10: from the values of a channel to the numbers that normalize it.
#pragma once

#include "reduce.cuh"

// Some values of a channel, measured from a pivot near their mean. The pivot is a number of the arithmetic, known
// exactly, so nothing here grows with the distance from zero. The sums are kept in double.
struct Deviations {
    static constexpr int WORDS = 5;
    double word[WORDS];

    __device__ double& count() { return word[0]; }
    __device__ double& pivot() { return word[1]; }
    __device__ double& sum() { return word[2]; }      // of x - pivot
    __device__ double& squares() { return word[3]; }  // of (x - pivot)^2
    __device__ double& largest() { return word[4]; }  // |x|

    __device__ static Deviations empty() { return {{0, 0, 0, 0, 0}}; }
};

// Joined with a pivot of the arithmetic's type, so that the equal values of a constant channel stay whole multiples of
// their last place, and cancel exactly (S8).
template <class Real>
__device__ __noinline__ Deviations joined(Deviations left, Deviations right) {
    if (right.count() == 0) return left;
    if (left.count() == 0) return right;
    const double n = left.count() + right.count(), apart = right.pivot() - left.pivot();
    const double pivot = Real(left.pivot() + apart * (right.count() / n));
    Deviations whole = {{n, pivot, 0, 0, left.largest() > right.largest() ? left.largest() : right.largest()}};
    for (Deviations* part : {&left, &right}) {
        const double moved = part->pivot() - pivot, shift = part->count() * moved;
        whole.sum() += part->sum() + shift;
        whole.squares() += part->squares() + moved * (2 * part->sum() + shift);
    }
    return whole;
}

// The two types of arithmetic, as types: `join` is found by them.
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

// What normalizes a channel: y = ((x 2^-exponent - m1) - delta) * r * gamma + beta. The exponent is 0 but for the
// channels that S10 rescues; v belongs to the scaled values.
template <class Real>
struct Normalizer {
    Real m1, delta, v, r;
    int exponent;
    double count;

    __device__ Real centered(Real x) const { return (scaled(x, -exponent) - m1) - delta; }
    __device__ Real slope() const { return scaled(r, -exponent); }  // r of the unscaled values
};

// 1 / sqrt(variance + eps), and 0 where both are 0. Where the sum overflows, a quarter of each does not.
template <class Real>
__device__ Real inverse_root(Real variance, Real eps) {
    const Real square = variance + eps;
    if (square == 0) return 0;
    if (!is_finite(square) && is_finite(variance)) return Real(0.5) / root(variance / 4 + eps / 4);
    return 1 / root(square);
}

template <class Real>
__device__ Normalizer<Real> normalizer(Deviations whole, Real eps, int exponent) {
    const double n = whole.count() > 0 ? whole.count() : 1;
    const double delta = whole.sum() / n, v = whole.squares() / n - delta * delta;
    const Real variance = v <= 0 ? Real(0) : Real(v);  // NaN stays
    return {Real(whole.pivot()), Real(delta), variance, inverse_root(variance, scaled(eps, -2 * exponent)), exponent,
            whole.count()};
}

// Whether v + eps overflowed or came near underflow (S10).
template <class Real>
__device__ bool strayed(const Normalizer<Real>& channel, Real eps) {
    const Real square = channel.v + eps;
    return !is_finite(square) || square < Range<Real>::floor;
}

// The exponent of the larger of max|x| and sqrt(eps): both fit the range times its inverse. 0 if that is not finite.
template <class Real>
__device__ int rescue_exponent(Deviations whole, Real eps) {
    const double other = root(double(eps)), largest = whole.largest() > other ? whole.largest() : other;
    int exponent = 0;
    if (is_finite(largest)) frexp(largest, &exponent);
    return exponent;
}

// The chunk of a channel that lies in a tile, measured by a warp. `takes_part(position)` and `value(position)` look it up.
template <class Real, class TakesPart, class Value>
__device__ DeviationsOf<Real> measure(int first, TakesPart takes_part, Value value) {
    constexpr int EACH = CHUNK / WARP;
    Real x[EACH], total = 0, largest = 0;
    unsigned taken = 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        const int position = first + lane() + k * WARP;
        x[k] = 0;
        if (takes_part(position)) {
            taken |= 1u << k;
            x[k] = value(position);
            total += x[k];
            largest = magnitude(x[k]) > largest ? magnitude(x[k]) : largest;
        }
    }
    const int count = warp_sum(__popc(taken));
    const Real pivot = count ? warp_sum(total) / Real(count) : Real(0);
    double sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < EACH; ++k) {
        const Real rounded = taken >> k & 1 ? x[k] - pivot : Real(0);
        const double d = rounded;
        sum += d;
        squares += d * d;
    }
    DeviationsOf<Real> node = DeviationsOf<Real>::empty();
    node.count() = count;
    node.pivot() = pivot;
    node.sum() = warp_sum(sum);
    node.squares() = warp_sum(squares);
    node.largest() = warp_max(largest);
    return node;
}
