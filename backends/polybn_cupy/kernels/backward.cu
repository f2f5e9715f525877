// The pullback (S13), in training and in inference: x and dy are read once if a group's blocks can hold both.
#include "sums.cuh"

struct BackwardArguments {
    Operands<2, 1> in;  // x, dy; dx
    void *dgamma, *dbeta, *dmean, *dvar;  // (C,); may be null
    Index training;
};

// dx = (g near - xhat gx - mean) first second. The last two factors are either both large or both small, so if dx is in
// the range, no intermediate result leaves it.
template <class Real>
struct BackwardMeans {
    Real near;    // 1, or a power of two that keeps products of large means in range
    Real g, gx;   // means of dy and of dy xhat, times near; 0 in inference
    Real first, second;  // their product is gamma r / near
};

template <class Real>
__device__ void factors(const Saved<Real>& saved, int exponent, Real& first, Real& second) {
    int of_gamma, of_r;
    const Real product = Real(frexp(saved.gamma, &of_gamma) * frexp(saved.r, &of_r));
    const int whole = of_gamma + of_r - saved.exponent + exponent;
    const int part = whole > -Range<Real>::halfway && whole < Range<Real>::halfway ? whole : whole / 2;
    first = scaled(product, part), second = scaled(Real(1), whole - part);
}

template <class Stored, int WALK, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) backward(const __grid_constant__ BackwardArguments a) {
    using Real = RealOf<Stored>;
    using Means = BackwardMeans<Real>;
    extern __shared__ uint4 memory[];
    const auto terms = [](const Saved<Real>& saved, const Real(&value)[2], double(&sums)[2]) {
        const double g = value[1];
        sums[0] += g;
        sums[1] = fma(g, double(saved.xhat(value[0])), sums[1]);
    };
    const auto conclude = [&](Index c, const Saved<Real>& saved, const Sums<2>& sums, double count, bool first) -> Means {
        const double g = sums.word[0], gx = sums.word[1], slope = double(saved.r) * saved.power;
        const double scale = saved.gamma * slope;
        if (first) {
            if (a.dgamma) static_cast<Real*>(a.dgamma)[c] = Real(gx);
            if (a.dbeta) static_cast<Real*>(a.dbeta)[c] = Real(g);
            if (a.dmean) static_cast<Real*>(a.dmean)[c] = Real(-scale * g);
            if (a.dvar) static_cast<Real*>(a.dvar)[c] = Real(-scale * slope * gx / 2);
        }
        const double far = Range<Real>::far;
        const bool large = a.training && (magnitude(g) > far * count || magnitude(gx) > far * count);
        Means means = {large ? Real(1 / far) : Real(1), 0, 0, 0, 0};
        if (a.training) means.g = Real(g / count * means.near), means.gx = Real(gx / count * means.near);
        factors(saved, large ? Range<Real>::far_exponent : 0, means.first, means.second);
        return means;
    };
    const auto write = [&](auto put) {
        put(a.in.output[0], [&](const Saved<Real>& saved, const Means& mean, const Real(&value)[2]) -> Real {
            const Real xhat = a.training ? saved.xhat(value[0]) : Real(0);  // in inference, it may be infinite
            return ((value[1] * mean.near - xhat * mean.gx) - mean.g) * mean.first * mean.second;
        });
    };
    sweep<Means, 2, WALK, V, Stored>(reinterpret_cast<unsigned char*>(memory), a.in, terms, conclude, write);
}
