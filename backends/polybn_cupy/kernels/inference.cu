// Inference (S5): one pass over x, with the running statistics.
#include "statistics.cuh"

struct InferenceArguments {
    Geometry g;
    Array x, y, where;  // where may be null
    Vector gamma, beta, running_mean, running_var;
    void *new_mean, *new_var;  // copies of the running statistics; may be null
    void* normalizers;         // (4, C), for the pullback; may be null
    double eps;
    Index sigmoid;
};

template <class Real>
struct Slope {
    Real mean, r, gamma, beta;
};

// A running variance that no batch can give spoils its channel, for all to see: the host cannot look without waiting.
template <class Real>
__device__ Real checked_root(Real variance, Real eps) {
    return variance >= 0 && is_finite(variance) ? inverse_root(variance, eps) : Real(not_a_number());
}

template <class Real>
__device__ Slope<Real> slope(const InferenceArguments& a, Index c, bool first) {
    const Real mean = read<Real>(a.running_mean, c), variance = read<Real>(a.running_var, c);
    const Real r = checked_root(variance, Real(a.eps));
    if (first && a.new_mean) {
        static_cast<Real*>(a.new_mean)[c] = mean;
        static_cast<Real*>(a.new_var)[c] = variance;
    }
    if (first && a.normalizers) {
        const Real values[] = {mean, 0, r, 0};
        for (int i = 0; i < 4; ++i) static_cast<Real*>(a.normalizers)[i * a.g.channels + c] = values[i];
    }
    return {mean, r, a.gamma.data ? read<Real>(a.gamma, c) : Real(1), a.beta.data ? read<Real>(a.beta, c) : Real(0)};
}

template <class Stored, int V>
__global__ void __launch_bounds__(THREADS) inference(const __grid_constant__ InferenceArguments a) {
    using Real = RealOf<Stored>;
    extern __shared__ uint4 memory[];
    Place& at = *reinterpret_cast<Place*>(memory);
    Slope<Real>* slopes = reinterpret_cast<Slope<Real>*>(&at + 1);
    const Index stretches = a.g.members, rank = blockIdx.x % stretches;
    const Index first = blockIdx.x / stretches * a.g.tile_channels;
    const int c = threadIdx.x;
    if (c == 0) place(at, a.g, first, rank * positions(a.g));
    if (c < a.g.tile_channels && first + c < a.g.channels) slopes[c] = slope<Real>(a, first + c, rank == 0);
    __syncthreads();
    const Stored* x = static_cast<const Stored*>(a.x.data);
    const int vectors = int(a.g.tile_channels) * positions(a.g) / V;
    for (int n = threadIdx.x; n < vectors; n += THREADS) {
        int channel, position;
        find<V>(a.g, n, channel, position);
        if (!inside(a.g, at, channel, position)) continue;
        Pack<Stored, V> pack = *reinterpret_cast<const Pack<Stored, V>*>(x + offset(a.g, a.x, at, channel, position));
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int k = a.g.channels_inner ? channel + v : channel, i = a.g.channels_inner ? position : position + v;
            const Slope<Real>& s = slopes[k];
            Real y = (widen(pack.value[v]) - s.mean) * s.r;
            if (a.gamma.data) y *= s.gamma;
            if (a.beta.data) y += s.beta;
            if (a.sigmoid) y = 1 / (1 + Real(exp(-y)));
            if (a.where.data && !static_cast<const bool*>(a.where.data)[offset(a.g, a.where, at, k, i)]) y = 0;
            narrow(y, pack.value[v]);
        }
        Stored* y = static_cast<Stored*>(a.y.data);
        *reinterpret_cast<Pack<Stored, V>*>(y + offset(a.g, a.y, at, channel, position)) = pack;
    }
}
