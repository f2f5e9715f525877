// Inference (S5): one pass over x, with the running statistics.
#include "statistics.cuh"

struct InferenceArguments {
    Geometry g;
    Array x[1], y, where;  // where may be null
    Vector gamma, beta, running_mean, running_var;
    void *new_mean, *new_var;  // copies of the running statistics; may be null
    void* normalizers;         // (4, C), for the pullback; may be null
    double eps;
};

// y = (x - mean) scale + beta. Where an intermediate result may leave the range and y may not, the channel is a stray,
// which `rescue` computes again.
template <class Real>
struct Slope {
    Real mean, scale, beta;
    bool stray;
};

// A variance that is not allowed makes its channel NaN: to raise an error, the host would have to wait.
template <class Real>
__device__ double root_of(const InferenceArguments& a, Index c) {
    const Real variance = read<Real>(a.running_var, c);
    return variance >= 0 && is_finite(variance) ? inverse_root(variance, a.eps) : not_a_number();
}

template <class Real>
__device__ Slope<Real> slope(const InferenceArguments& a, Index c, bool first) {
    const Real mean = read<Real>(a.running_mean, c);
    const double r = root_of<Real>(a, c);
    if (first && a.new_mean) {
        static_cast<Real*>(a.new_mean)[c] = mean;
        static_cast<Real*>(a.new_var)[c] = read<Real>(a.running_var, c);
    }
    if (first && a.normalizers) {
        const Real values[] = {mean, 0, Real(r), 0};
#pragma unroll
        for (int i = 0; i < 4; ++i) static_cast<Real*>(a.normalizers)[i * a.g.channels + c] = values[i];
    }
    const Real gamma = or_else<Real>(a.gamma, c, 1), beta = or_else<Real>(a.beta, c, -0.0);
    const Wide scale = wide(r) * wide(gamma);
    const bool usual = magnitude(scale.exponent) < Range<Real>::halfway && magnitude(mean) < Range<Real>::heavy &&
                       magnitude(beta) < Range<Real>::heavy;
    return {mean, rounded<Real>(scale), beta, !usual};
}

// Compute the values of a stray in this tile.
template <class Stored, int WALK>
__device__ void rescue(const InferenceArguments& a, const Place& at, int channel) {
    using Real = RealOf<Stored>;
    const Index c = at.first_channel + channel;
    const Wide scale = wide(root_of<Real>(a, c)) * wide(or_else<Real>(a.gamma, c, 1));
    const Wide mean = wide(read<Real>(a.running_mean, c)), beta = wide(or_else<Real>(a.beta, c, -0.0));
    __syncthreads();
    each_here<Stored, WALK>(a.g, a.x, a.where, at, channel, [&](int i, const Real(&x)[1]) {
        const Real y = rounded<Real>((wide(x[0]) - mean) * scale + beta);
        narrow(y, *address<Stored, WALK>(a.g, a.y, at, channel, i));
    });
}

template <class Stored, class Real>
__device__ void normalize(const Slope<Real>& s, Stored& value) {
    narrow((widen(value) - s.mean) * s.scale + s.beta, value);
}

// The number of loads that each thread has in flight while it steps along the positions of a channel.
inline constexpr int AHEAD = 4;

template <class Stored, int V>
__device__ void infer_rows(const InferenceArguments& a, const Place& at, const Slope<RealOf<Stored>>* slopes) {
    const int channels = channels_here(a.g, at), count = positions_here(a.g, at);
    const RowWalk<const Stored> from(a.g, a.x[0], at);
    const RowWalk<Stored> to(a.g, a.y, at);
    const RowShare<V> mine(a.g);
    for (int channel = mine.first_channel; channel < channels; channel += mine.channel_step) {
        const Slope<RealOf<Stored>> s = slopes[channel];
        const Stored* x = from.channel(channel);
        Stored* y = to.channel(channel);
        const auto move = [&](int first, auto many) {
            Pack<Stored, V> pack[many.value];
#pragma unroll
            for (int k = 0; k < many.value; ++k) {
                pack[k] = *reinterpret_cast<const Pack<Stored, V>*>(from(x, first + k * mine.step));
            }
#pragma unroll
            for (int k = 0; k < many.value; ++k) {
#pragma unroll
                for (int v = 0; v < V; ++v) normalize(s, pack[k].value[v]);
                *reinterpret_cast<Pack<Stored, V>*>(to(y, first + k * mine.step)) = pack[k];
            }
        };
        int i = mine.first;
        for (; i + (AHEAD - 1) * mine.step < count; i += AHEAD * mine.step) move(i, Int<AHEAD>());
        for (; i < count; i += mine.step) move(i, Int<1>());
    }
}

template <class Stored, int V>
__device__ void infer_channels(const InferenceArguments& a, const Place& at, const Slope<RealOf<Stored>>* slopes) {
    const int count = positions_here(a.g, at);
    const ChannelShare<V> mine(a.g);
    if (mine.channel >= channels_here(a.g, at)) return;
    Slope<RealOf<Stored>> s[V];
#pragma unroll
    for (int v = 0; v < V; ++v) s[v] = slopes[mine.channel + v];
    const Index first = at.first_channel + mine.channel, from = at.first_position + mine.first;
    const Stored* x = static_cast<const Stored*>(a.x[0].data) + first + from * a.x[0].stride[1];
    Stored* y = static_cast<Stored*>(a.y.data) + first + from * a.y.stride[1];
    const Index x_step = mine.step * a.x[0].stride[1], y_step = mine.step * a.y.stride[1];
    const auto move = [&](auto many) {
        Pack<Stored, V> pack[many.value];
#pragma unroll
        for (int k = 0; k < many.value; ++k, x += x_step) pack[k] = *reinterpret_cast<const Pack<Stored, V>*>(x);
#pragma unroll
        for (int k = 0; k < many.value; ++k, y += y_step) {
#pragma unroll
            for (int v = 0; v < V; ++v) normalize(s[v], pack[k].value[v]);
            *reinterpret_cast<Pack<Stored, V>*>(y) = pack[k];
        }
    };
    int i = mine.first;
    for (; i + (AHEAD - 1) * mine.step < count; i += AHEAD * mine.step) move(Int<AHEAD>());
    for (; i < count; i += mine.step) move(Int<1>());
}

// Arrays with any memory layout, and masks.
template <class Stored>
__device__ void infer_any(const InferenceArguments& a, const Place& at, const Slope<RealOf<Stored>>* slopes) {
    const int channels = channels_here(a.g, at), count = positions_here(a.g, at);
    for (int n = threadIdx.x; n < channels * count; n += THREADS) {
        const int channel = a.g.channels_inner ? n % channels : n / count;
        const int position = a.g.channels_inner ? n / channels : n % count;
        Stored value = static_cast<const Stored*>(a.x[0].data)[offset(a.g, a.x[0], at, channel, position)];
        const auto kept = [&] { return static_cast<const bool*>(a.where.data)[offset(a.g, a.where, at, channel, position)]; };
        if (!a.where.data || kept()) {
            normalize(slopes[channel], value);
        } else {
            narrow(RealOf<Stored>(0), value);
        }
        static_cast<Stored*>(a.y.data)[offset(a.g, a.y, at, channel, position)] = value;
    }
}

template <class Stored, int WALK, int V>
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
    if constexpr (WALK == ROWS) {
        infer_rows<Stored, V>(a, at, slopes);
    } else if constexpr (WALK == CHANNELS) {
        infer_channels<Stored, V>(a, at, slopes);
    } else {
        infer_any<Stored>(a, at, slopes);
    }
    for (int channel = 0; channel < channels_here(a.g, at); ++channel) {
        if (slopes[channel].stray) rescue<Stored, WALK>(a, at, channel);
    }
}
