// The pullback (S13), of training and of inference: x and dy are read once where a group's blocks can hold both.
#include "sums.cuh"

struct BackwardArguments {
    Operands<2, 1> in;  // x, dy; dx
    void *dgamma, *dbeta, *dmean, *dvar;  // (C,); may be null
    Index training;
};

template <class Real>
struct BackwardMeans {
    Real g, gx;  // of dy, and of dy xhat
};

template <class Stored, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) backward(const __grid_constant__ BackwardArguments a) {
    using Real = RealOf<Stored>;
    using Means = BackwardMeans<Real>;
    extern __shared__ uint4 memory[];
    const auto terms = [](const Saved<Real>& saved, const Real(&value)[2], double(&sums)[2]) {
        sums[0] += value[1];
        sums[1] += double(value[1]) * saved.xhat(value[0]);
    };
    const auto conclude = [&](Index c, const Saved<Real>& saved, const Sums<2>& sums, double count, bool first) -> Means {
        const double g = sums.word[0], gx = sums.word[1], scale = double(saved.gamma) * saved.slope;
        if (first) {
            if (a.dgamma) static_cast<Real*>(a.dgamma)[c] = Real(gx);
            if (a.dbeta) static_cast<Real*>(a.dbeta)[c] = Real(g);
            if (a.dmean) static_cast<Real*>(a.dmean)[c] = Real(-scale * g);
            if (a.dvar) static_cast<Real*>(a.dvar)[c] = Real(-scale * saved.slope * gx / 2);
        }
        return {Real(g / count), Real(gx / count)};
    };
    const auto write = [&](auto put) {
        put(a.in.output[0], [&](const Saved<Real>& saved, const Means& mean, const Real(&value)[2]) -> Real {
            Real g = value[1];
            if (a.training) g = (g - saved.xhat(value[0]) * mean.gx) - mean.g;
            return g * saved.slope * saved.gamma;
        });
    };
    sweep<Means, 2, V, Stored>(reinterpret_cast<unsigned char*>(memory), a.in, terms, conclude, write);
}
