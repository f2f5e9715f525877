// The pullback (S13), in training and in inference: x and dy are read once if a group's blocks can hold both.
#include "sums.cuh"

struct BackwardArguments {
    Operands<2, 1> in;  // x, dy; dx
    void *dgamma, *dbeta, *dmean, *dvar;  // (C,); may be null
    Index training;
};

// dx = (dy - xhat gx - g) first second
template <class Real>
struct BackwardMeans {
    Real g, gx;          // means of dy and of dy xhat; 0 in inference
    Real first, second;  // their product is gamma r
    bool stray;          // whether the channel left the range, so that `rescue` has to compute it again
};

// In inference normalized values can have any size. Without the exponent of r they are as large as x - mean, times
// 2^digits: so even the smallest difference keeps its digits in the product.
template <class Real>
__device__ Saved<Real> without_exponent(Saved<Real> saved) {
    const Wide r = wide(saved.r);
    saved.unit = r.exponent - Range<Real>::digits, saved.r = rounded<Real>({r.part, Range<Real>::digits});
    return saved;
}

// Whether sums, or products with their means, may have left the range. NaN that comes from x or dy is no reason.
template <class Real>
__device__ bool strays(const Saved<Real>& saved, const Sums<2>& sums, int slope, double count, bool training) {
    constexpr bool DOUBLE = sizeof(Real) == 8;
    using R = Range<Real>;
    if (saved.exponent) return true;
    const double g = magnitude(sums.word[0]), gx = magnitude(sums.word[1]);
    // Only a normalized value in inference can be too large for a sum of floats.
    if (!is_finite(g + gx)) return DOUBLE ? is_finite(saved.r) : !training && is_finite(g);
    if (!training) return DOUBLE && gx < R::least * count;
    const double larger = g > gx ? g : gx;
    return (larger < R::least * count && (DOUBLE || larger > 0)) || larger > R::far * count || slope > R::steep;
}

// Write the gradients of the vectors.
template <class Real>
__device__ __noinline__ void report(const BackwardArguments& a, Index c, const Saved<Real>& saved, Wide g, Wide gx) {
    const Wide r = saved.wide_r(), scale = wide(saved.gamma) * r;
    if (a.dgamma) static_cast<Real*>(a.dgamma)[c] = rounded<Real>(gx);
    if (a.dbeta) static_cast<Real*>(a.dbeta)[c] = rounded<Real>(g);
    if (a.dmean) static_cast<Real*>(a.dmean)[c] = rounded<Real>(-(scale * g));
    if (a.dvar) static_cast<Real*>(a.dvar)[c] = rounded<Real>(-(scale * r * gx * wide(0.5)));
}

// Compute a stray again (S10). Each block of the group adds up the whole channel, in an order that depends on nothing
// else, and writes its part of dx.
template <class Stored, int WALK>
__device__ __noinline__ void rescue(
    const BackwardArguments& a, Place& at, int channel, const Saved<RealOf<Stored>>& saved, Wide* parts) {
    using Real = RealOf<Stored>;
    const Operands<2, 1>& o = a.in;
    const Index c = at.first_channel + channel, rank = blockIdx.x % o.g.members, mine = o.g.rounds * positions(o.g);
    Wide g = {}, gx = {};
    each<Stored, WALK>(o.g, o.input, o.where, at, channel, 0, o.g.count, [&](int, const Real(&value)[2]) {
        g = g + wide(value[1]);
        gx = gx + wide(value[1]) * saved.wide_xhat(value[0]);
    });
    g = block_sum(g, parts), gx = block_sum(gx, parts);
    if (rank == 0 && threadIdx.x == 0) report(a, c, saved, g, gx);
    if (!a.training) return;
    const double count = count_of(o, c);
    const Wide slope = wide(saved.gamma) * saved.wide_r();
    const Wide mean = wide(g.part / count, g.exponent), product = wide(gx.part / count, gx.exponent);
    const auto write = [&](int i, const Real(&value)[2]) {
        const Wide dx = (wide(value[1]) - mean - saved.wide_xhat(value[0]) * product) * slope;
        narrow(rounded<Real>(dx), *address<Stored, WALK>(o.g, o.output[0], at, channel, i));
    };
    each<Stored, WALK>(o.g, o.input, o.where, at, channel, rank * mine, (rank + 1) * mine, write);
}

template <class Stored, int WALK, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) backward(const __grid_constant__ BackwardArguments a) {
    using Real = RealOf<Stored>;
    using Means = BackwardMeans<Real>;
    extern __shared__ uint4 memory[];
    const auto prepare = [&](const Saved<Real>& saved) { return a.training ? saved : without_exponent(saved); };
    const auto terms = [](const Saved<Real>& saved, const Real(&value)[2], double(&sums)[2]) {
        const double g = value[1];
        sums[0] += g;
        sums[1] = fma(g, double(saved.xhat(value[0])), sums[1]);
    };
    const auto conclude = [&](Index c, const Saved<Real>& saved, const Sums<2>& sums, double count, bool first) -> Means {
        const double g = sums.word[0], gx = sums.word[1];
        if (first) report(a, c, saved, wide(g), wide(gx, saved.unit));
        const Wide slope = wide(saved.gamma) * saved.wide_r();
        Means means = {0, 0, 0, 0, strays(saved, sums, slope.exponent, count, a.training)};
        if (a.training) means.g = Real(g / count), means.gx = Real(gx / count);
        split(slope, means.first, means.second);
        return means;
    };
    const auto write = [&](auto put) {
        put(a.in.output[0], [&](const Saved<Real>& saved, const Means& mean, const Real(&value)[2]) -> Real {
            const Real xhat = a.training ? saved.xhat(value[0]) : Real(0);  // in inference, it may be infinite
            return ((value[1] - xhat * mean.gx) - mean.g) * mean.first * mean.second;
        });
    };
    const auto finish = [&](int channel, const Saved<Real>& saved, const Means& means, Place& at) {
        if (means.stray) rescue<Stored, WALK>(a, at, channel, saved, reinterpret_cast<Wide*>(memory));
    };
    sweep<Means, 2, WALK, V, Stored>(reinterpret_cast<unsigned char*>(memory), a.in, prepare, terms, conclude, write, finish);
}
