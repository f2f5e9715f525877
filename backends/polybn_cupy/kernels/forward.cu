// The forward pass in training (S2, S3, S4, S10, S12), and moments (S15): x is read once if a group's blocks can hold
// it.
//
// Each group of blocks works on some channels at a time. Each block of the group copies its part into shared memory and
// measures it; the blocks exchange their results at one barrier; then each has the statistics of the whole channel, and
// writes y from shared memory. A part that does not fit is measured in rounds. The last round stays in shared memory;
// the others are read again, latest first, while the cache may still hold them. Several blocks run on a multiprocessor,
// so that one can work while another waits.
#include "statistics.cuh"

struct ForwardArguments {
    Geometry g;
    Array x[1], y, where;  // y and where may be null
    Group group;
    Vector gamma, beta, running_mean, running_var;
    void *new_mean, *new_var;  // may be null
    void* normalizers;         // (4, C): m1, delta, r and exponent, for the pullback; may be null
    void* count;               // (C,); may be null
    void *mean, *m2, *low;     // (C,): the moments; may be null
    double eps, momentum, share;  // share = 1 - momentum
    Index unbiased;
};

template <class Stored>
struct ForwardShared {
    using Real = RealOf<Stored>;
    using Node = DeviationsOf<Real>;

    Stored* x[1];
    unsigned char* where;
    Node *nodes, *waiting;  // of channels and chunks; of levels and channels
    Normalizer<Real>* channel;
    Place* at;

    __device__ ForwardShared(unsigned char* memory, const ForwardArguments& a) {
        const int channels = int(a.g.tile_channels), values = channels * positions(a.g);
        x[0] = reinterpret_cast<Stored*>(memory);
        unsigned char* rest = memory + values * sizeof(Stored);
        where = a.where.data ? rest : nullptr;
        at = reinterpret_cast<Place*>(rest + (a.where.data ? values : 0));
        nodes = reinterpret_cast<Node*>(at + 1);
        waiting = nodes + channels * int(a.g.chunks);
        channel = reinterpret_cast<Normalizer<Real>*>(waiting + (level_of(a.g.rounds) + 1) * channels);
    }
};

template <class Stored, int WALK, int V>
__device__ void load_round(const ForwardArguments& a, const ForwardShared<Stored>& s, Index first_channel, Index round) {
    const Index rank = blockIdx.x % a.g.members;
    __syncthreads();
    if (threadIdx.x == 0) place(*s.at, a.g, first_channel, (rank * a.g.rounds + round) * positions(a.g));
    __syncthreads();
    load_all<Stored, WALK, V>(a.g, a.x, a.where, *s.at, s.x, s.where);
    __syncthreads();
}

// Measure the tile in shared memory, and push its node per channel.
template <class Stored, int WALK>
__device__ void measure_round(const ForwardArguments& a, const ForwardShared<Stored>& s, Index round) {
    using Real = RealOf<Stored>;
    using Node = DeviationsOf<Real>;
    const int channels = int(a.g.tile_channels), chunks = int(a.g.chunks), pitch = positions(a.g);
    const int here = channels_here(a.g, *s.at), count = positions_here(a.g, *s.at);
    for_each_unit(a.g, *s.at, s.where, [&](int unit, int channel, int first, auto whole) {
        constexpr bool WHOLE = decltype(whole)::value;
        Stored stored[EACH];
        read_chunk<Stored, WALK>(s.x[0], pitch, channel, first, stored);
        const unsigned taken = WHOLE ? EVERY : read_mask<Stored, WALK>(s.where, pitch, channel, first, count);
        Real x[EACH];
#pragma unroll
        for (int k = 0; k < EACH; ++k) x[k] = WHOLE || (taken >> k & 1) ? widen(stored[k]) : Real(0);
        const Node node = measure<Real, WHOLE>(x, taken);
        if (lane() == 0) s.nodes[unit] = node;
    });
    __syncthreads();
    for (int channel = warp(); channel < here; channel += WARPS) {
        const Node* mine = s.nodes + channel * chunks;
        const Node node = tree<Node>(chunks, [mine](int chunk) { return mine[chunk]; });
        if (lane() == 0) push(s.waiting + channel, channels, round, node);
    }
}

// S4 and S12: exact for the momenta 0 and 1, and unchanged where no value took part.
template <class Real>
__device__ Real blend(Real old, Wide batch, const ForwardArguments& a, double count) {
    if (count == 0 || a.momentum == 1) return old;
    return rounded<Real>(a.momentum == 0 ? batch : wide(a.momentum) * wide(old) + wide(a.share) * batch);
}

template <class Real>
__device__ __noinline__ void report(const ForwardArguments& a, Index c, const Measured& of, const Normalizer<Real>& n) {
    const Wide m1 = wide(n.m1, n.exponent), delta = wide(n.delta, n.exponent), mean = m1 + delta;
    if (a.new_mean) {
        // m / (m - 1) is not defined at m = 1. The result is NaN, because the host cannot see the count and raise.
        const double ratio = of.count > 1 ? of.count / (of.count - 1) : not_a_number();
        const Wide batch = a.unbiased && of.count > 0 ? of.v * wide(ratio) : of.v;
        static_cast<Real*>(a.new_mean)[c] = blend(read<Real>(a.running_mean, c), mean, a, of.count);
        static_cast<Real*>(a.new_var)[c] = blend(read<Real>(a.running_var, c), batch, a, of.count);
    }
    if (a.normalizers) {
        Real* saved = static_cast<Real*>(a.normalizers) + c;
        const Real values[] = {n.m1, n.delta, n.r, Real(n.exponent)};
#pragma unroll
        for (int i = 0; i < 4; ++i) saved[i * a.g.channels] = values[i];
    }
    if (a.count) static_cast<Index*>(a.count)[c] = Index(of.count);
    if (a.mean) {
        const Real high = rounded<Real>(mean);
        static_cast<Real*>(a.mean)[c] = high;
        static_cast<Real*>(a.m2)[c] = rounded<Real>(of.v * wide(of.count));
        static_cast<Real*>(a.low)[c] = rounded<Real>((m1 - wide(high)) + delta);
    }
}

// Measure a channel again, in numbers without limits; a block calls it. It needs memory for sums, and moves the place.
template <class Stored, int WALK>
__device__ __noinline__ Measured measure_again(
    const ForwardArguments& a, Place& at, int channel, double count, Wide* parts) {
    using Real = RealOf<Stored>;
    Wide total = {}, sum = {}, squares = {};
    each<Stored, WALK>(a.g, a.x, a.where, at, channel, 0, a.g.count, [&](int, const Real(&x)[1]) {
        total = total + wide(x[0]);
    });
    const Wide mean = block_sum(total, parts) / count, pivot = wide(Real(mean.part), mean.exponent);
    if (!is_finite(pivot.part)) return {pivot, pivot - pivot, pivot - pivot, count};  // NaN (S9), of infinities, too
    each<Stored, WALK>(a.g, a.x, a.where, at, channel, 0, a.g.count, [&](int, const Real(&x)[1]) {
        const Wide d = wide(x[0]) - pivot;
        sum = sum + d, squares = squares + d * d;
    });
    sum = block_sum(sum, parts), squares = block_sum(squares, parts);
    return measured(pivot, sum, squares, count);
}

// Find the normalizer of each channel of the tile. Returns whether the tile in shared memory was lost meanwhile.
template <class Stored, int WALK, int V, class Node>
__device__ bool normalize_channels(
    const ForwardArguments& a, const ForwardShared<Stored>& s, Exchange<Node>& exchange, Index first_channel) {
    using Real = RealOf<Stored>;
    const int channels = int(a.g.tile_channels), top = level_of(a.g.rounds) * channels, c = threadIdx.x;
    for (Index round = 0; round < a.g.rounds; ++round) {
        load_round<Stored, WALK, V>(a, s, first_channel, round);
        measure_round<Stored, WALK>(a, s, round);
    }
    __syncthreads();
    exchange.join_all(s.waiting + top);
    const auto conclude = [&](const Measured& of) {
        Normalizer<Real> n = normalizer<Real>(of, a.eps);
        if (exchange.rank == 0) report(a, first_channel + c, of, n);
        n.stray |= magnitude(or_else<Real>(a.gamma, first_channel + c, 1)) > Range<Real>::far ||
                   magnitude(or_else<Real>(a.beta, first_channel + c, 0)) > Range<Real>::heavy;
        s.channel[c] = n;
    };
    bool again = false;
    if (c < channels && first_channel + c < a.g.channels) {
        Node whole = s.waiting[top + c];
        again = lost<Real>(whole, a.eps);
        if (!again) conclude(measured(wide(whole.pivot()), wide(whole.sum()), wide(whole.squares()), whole.count()));
        s.channel[c].again = again;
    }
    // All blocks of the group see the same nodes, so either all of them measure again, or none.
    if (!__syncthreads_or(again)) return false;
    for (int channel = 0; channel < channels_here(a.g, *s.at); ++channel) {
        if (!s.channel[channel].again) continue;
        const double count = s.waiting[top + channel].count();
        const Measured of = measure_again<Stored, WALK>(a, *s.at, channel, count, reinterpret_cast<Wide*>(s.x[0]));
        if (c == channel) conclude(of);
    }
    return true;
}

// The numbers that normalize a channel. Where there is no gamma or beta, the product with 1 and the sum with -0 change
// nothing, not even the sign of a zero.
template <class Real>
struct Line {
    Real m1, delta, r, gamma, beta;
};

template <class Stored>
__device__ Line<RealOf<Stored>> line(const ForwardArguments& a, const ForwardShared<Stored>& s, int channel) {
    using Real = RealOf<Stored>;
    const Normalizer<Real> n = s.channel[channel];
    const Index c = s.at->first_channel + channel;
    return {n.m1, n.delta, n.r, or_else<Real>(a.gamma, c, 1), or_else<Real>(a.beta, c, -0.0)};
}

template <class Stored, int WALK, int V>
__device__ void write_y(const ForwardArguments& a, const ForwardShared<Stored>& s) {
    using Real = RealOf<Stored>;
    const auto formula = [](const Line<Real>& n, const Real(&x)[1]) {
        return ((x[0] - n.m1) - n.delta) * n.r * n.gamma + n.beta;
    };
    store<Stored, WALK, V>(a.g, a.y, *s.at, s.x, s.where, [&](int channel) { return line(a, s, channel); }, formula);
}

// Compute the values of a stray in this tile.
template <class Stored, int WALK>
__device__ __noinline__ void rescue(
    const ForwardArguments& a, const Place& at, int channel, Line<RealOf<Stored>> n, int exponent) {
    using Real = RealOf<Stored>;
    const Wide r = wide(n.r), gamma = wide(n.gamma), beta = wide(n.beta);
    __syncthreads();
    each_here<Stored, WALK>(a.g, a.x, a.where, at, channel, [&](int i, const Real(&x)[1]) {
        const Real y = rounded<Real>(normalized(x[0], exponent, n.m1, n.delta, r) * gamma + beta);
        narrow(y, *address<Stored, WALK>(a.g, a.y, at, channel, i));
    });
}

template <class Stored, int WALK, int V>
__global__ void __launch_bounds__(THREADS, BLOCKS) forward(const __grid_constant__ ForwardArguments a) {
    using Real = RealOf<Stored>;
    extern __shared__ uint4 memory[];
    const ForwardShared<Stored> s(reinterpret_cast<unsigned char*>(memory), a);
    Exchange<DeviationsOf<Real>> exchange(a.group, a.g);
    const Index step = gridDim.x / a.g.members * a.g.tile_channels;
    for (Index first = blockIdx.x / a.g.members * a.g.tile_channels; first < a.g.channels; first += step) {
        __syncthreads();
        const bool lost_tile = normalize_channels<Stored, WALK, V>(a, s, exchange, first);
        if (!a.y.data) continue;
        __syncthreads();
        for (Index round = a.g.rounds - 1; round >= 0; --round) {
            if (lost_tile || round < a.g.rounds - 1) load_round<Stored, WALK, V>(a, s, first, round);
            write_y<Stored, WALK, V>(a, s);
            for (int channel = 0; channel < channels_here(a.g, *s.at); ++channel) {
                if (!s.channel[channel].stray) continue;
                rescue<Stored, WALK>(a, *s.at, channel, line(a, s, channel), s.channel[channel].exponent);
            }
        }
    }
}
