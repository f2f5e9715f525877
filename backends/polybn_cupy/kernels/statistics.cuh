// Clauses S2, S3, S4 and S10: compute the numbers that normalize a channel from its values.
#pragma once

#include "strays.cuh"

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

// The statistics of S2: the mean is pivot + delta. The pivot has the digits of the arithmetic's type.
struct Measured {
    Wide pivot, delta, v;
    double count;
};

__device__ inline Measured measured(Wide pivot, Wide sum, Wide squares, double count) {
    const double n = count > 0 ? count : 1;
    const Wide delta = sum / n, v = squares / n - delta * delta;
    return {pivot, delta, v.part <= 0 ? Wide{0, 0} : v, count};  // NaN stays
}

// Whether sums may have left the range, or lost digits at its lower end. The squares of floats are doubles.
template <class Real>
__device__ bool lost(Deviations whole, double eps) {
    using R = Range<Real>;
    if (!is_finite(whole.sum()) || !is_finite(whole.squares())) return true;
    const bool small = whole.squares() < whole.count() * R::floor && magnitude(whole.pivot()) < R::near;
    return sizeof(Real) == 8 && small && (eps < R::floor || whole.sum() != 0 || whole.squares() != 0);
}

// The numbers that normalize a channel: y = ((x 2^-exponent - m1) - delta) r gamma + beta. The exponent is 0 unless one
// of them would leave the range, or lose digits; then the channel is a stray, as it is if gamma or beta is very large.
template <class Real>
struct Normalizer {
    Real m1, delta, r;
    int exponent;
    bool stray, again;  // `again` while it has yet to be measured
};

// 1 / sqrt(variance + eps), and 0 if both are 0.
__device__ inline Wide inverse_root(Wide variance, Wide eps) {
    const Wide square = variance + eps;
    if (!(square.part > 0) || !is_finite(square.part)) return wide(square.part == 0 ? 0 : 1 / root(square.part));
    const int odd = square.exponent & 1;
    return wide(1 / root(odd ? 2 * square.part : square.part), -((square.exponent - odd) / 2));
}

__device__ inline double inverse_root(double variance, double eps) {
    const double square = variance + eps;
    if (square == 0) return 0;
    if (!is_finite(square) && is_finite(variance)) return 0.5 / root(variance / 4 + eps / 4);
    return 1 / root(square);
}

template <class Real>
__device__ __noinline__ Normalizer<Real> normalizer(const Measured& of, double eps) {
    using R = Range<Real>;
    const Wide r = inverse_root(of.v, wide(eps));
    const bool varies = of.v.part > 0;
    const int spread = of.v.exponent / 2;
    int exponent = 0;
    if (magnitude(r.exponent) > R::flat || (varies && spread < -R::flat)) {
        // Between the size of the values and that of 1 / r: then all three keep their digits.
        const int size = varies && (of.pivot.part == 0 || spread > of.pivot.exponent) ? spread : of.pivot.exponent;
        exponent = (size - r.exponent) / 2;
        if (exponent == 0) exponent = 1;
    }
    const auto kept = [&](Wide value, int by) { return rounded<Real>(Wide{value.part, value.exponent + by}); };
    return {kept(of.pivot, -exponent), kept(of.delta, -exponent), kept(r, exponent), exponent, exponent != 0, false};
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
