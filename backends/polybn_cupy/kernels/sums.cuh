// The backward passes: sums over each channel of terms of several arrays, then a formula for each value. The arrays
// stay in shared memory in between. The organisation is that of forward.cu.
#pragma once

#include "strays.cuh"

template <int N>
struct Sums {
    static constexpr int WORDS = N;
    double word[N];

    __device__ static Sums empty() { return {}; }
};

template <int N>
__device__ Sums<N> join(Sums<N> left, const Sums<N>& right) {
#pragma unroll
    for (int i = 0; i < N; ++i) left.word[i] += right.word[i];
    return left;
}

// The numbers that the forward pass saved for a channel, and gamma. The r of the unscaled values is r 2^(unit - exponent).
template <class Real>
struct Saved {
    Real m1, delta, r, gamma;
    int exponent, unit;

    __device__ Real xhat(Real x) const { return ((x - m1) - delta) * r; }  // times 2^-unit, where the exponent is 0
    __device__ Wide wide_r() const { return wide(r, unit - exponent); }
    __device__ Wide wide_xhat(Real x) const { return normalized(x, exponent, m1, delta, wide(r, unit)); }
};

template <class Real>
__device__ Saved<Real> saved(const void* normalizers, const Vector& gamma, Index c, Index channels) {
    const Real* value = static_cast<const Real*>(normalizers) + c;
    const int exponent = int(value[3 * channels]);
    return {value[0], value[channels], value[2 * channels], or_else<Real>(gamma, c, 1), exponent, 0};
}

// The arrays that a backward pass reads and writes. The first input is x.
template <int INPUTS, int OUTPUTS>
struct Operands {
    Geometry g;
    Array input[INPUTS], output[OUTPUTS], where;  // where may be null
    Group group;
    Vector gamma;       // may be null
    void* normalizers;  // (4, C), from the forward pass
    Vector counts;      // number of values that took part, by channel; null if all did
};

// The number by which sums are divided.
template <int INPUTS, int OUTPUTS>
__device__ double count_of(const Operands<INPUTS, OUTPUTS>& o, Index c) {
    const Index counted = or_else<Index>(o.counts, c, o.g.count);
    return counted > 0 ? double(counted) : 1;
}

template <class Stored, int INPUTS, int N, class Means>
struct SweepShared {
    using Real = RealOf<Stored>;

    Stored* tile[INPUTS];
    unsigned char* where;
    Sums<N>*nodes, *waiting;
    Means* means;
    Saved<Real>* saved;
    Place* at;

    template <int OUTPUTS>
    __device__ SweepShared(unsigned char* memory, const Operands<INPUTS, OUTPUTS>& o) {
        const int channels = int(o.g.tile_channels), values = channels * positions(o.g);
#pragma unroll
        for (int i = 0; i < INPUTS; ++i) tile[i] = reinterpret_cast<Stored*>(memory) + i * values;
        unsigned char* rest = memory + INPUTS * values * sizeof(Stored);
        where = o.where.data ? rest : nullptr;
        at = reinterpret_cast<Place*>(rest + (o.where.data ? values : 0));
        nodes = reinterpret_cast<Sums<N>*>(at + 1);
        waiting = nodes + channels * int(o.g.chunks);
        means = reinterpret_cast<Means*>(waiting + (level_of(o.g.rounds) + 1) * channels);
        saved = reinterpret_cast<Saved<Real>*>(means + channels);
    }
};

template <int WALK, int V, class Stored, int INPUTS, int OUTPUTS, int N, class Means>
__device__ void load_round(
    const Operands<INPUTS, OUTPUTS>& o, const SweepShared<Stored, INPUTS, N, Means>& s, Index first_channel, Index round) {
    const Index rank = blockIdx.x % o.g.members;
    __syncthreads();
    if (threadIdx.x == 0) place(*s.at, o.g, first_channel, (rank * o.g.rounds + round) * positions(o.g));
    __syncthreads();
    load_all<Stored, WALK, V>(o.g, o.input, o.where, *s.at, s.tile, s.where);
    __syncthreads();
}

template <int WALK, class Stored, int INPUTS, int OUTPUTS, int N, class Means, class Terms>
__device__ void add_up_round(
    const Operands<INPUTS, OUTPUTS>& o, const SweepShared<Stored, INPUTS, N, Means>& s, Index round, Terms terms) {
    using Real = RealOf<Stored>;
    const int channels = int(o.g.tile_channels), chunks = int(o.g.chunks), pitch = positions(o.g);
    const int here = channels_here(o.g, *s.at), count = positions_here(o.g, *s.at);
    for_each_unit(o.g, *s.at, s.where, [&](int unit, int channel, int first, auto whole) {
        constexpr bool WHOLE = decltype(whole)::value;
        const Saved<Real> of_channel = s.saved[channel];
        Stored stored[INPUTS][EACH];
#pragma unroll
        for (int i = 0; i < INPUTS; ++i) read_chunk<Stored, WALK>(s.tile[i], pitch, channel, first, stored[i]);
        const unsigned taken = WHOLE ? EVERY : read_mask<Stored, WALK>(s.where, pitch, channel, first, count);
        double sums[N] = {};
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            Real value[INPUTS];
#pragma unroll
            for (int i = 0; i < INPUTS; ++i) value[i] = widen(stored[i][k]);
            if (WHOLE || (taken >> k & 1)) terms(of_channel, value, sums);
        }
        Sums<N> node;
#pragma unroll
        for (int i = 0; i < N; ++i) node.word[i] = warp_sum(sums[i]);
        if (lane() == 0) s.nodes[unit] = node;
    });
    __syncthreads();
    for (int channel = warp(); channel < here; channel += WARPS) {
        const Sums<N>* mine = s.nodes + channel * chunks;
        const Sums<N> node = tree<Sums<N>>(chunks, [mine](int chunk) { return mine[chunk]; });
        if (lane() == 0) push(s.waiting + channel, channels, round, node);
    }
}

// prepare(saved)                          may change what a channel's other functions get
// terms(saved, values, sums)              adds the terms of one position
// conclude(c, saved, sums, count, first)  returns the means that `write` needs; the first block of a group also writes
//                                         the results of the channel
// write(put)                              calls put(array, formula(saved, means, values)) for each output
// finish(channel, saved, means, at)       comes when a block has written all of its part
template <
    class Means, int N, int WALK, int V, class Stored, int INPUTS, int OUTPUTS, class Prepare, class Terms, class Conclude,
    class Write, class Finish>
__device__ void sweep(
    unsigned char* memory, const Operands<INPUTS, OUTPUTS>& o, Prepare prepare, Terms terms, Conclude conclude, Write write,
    Finish finish) {
    using Real = RealOf<Stored>;
    const SweepShared<Stored, INPUTS, N, Means> s(memory, o);
    Exchange<Sums<N>> exchange(o.group, o.g);
    const int top = level_of(o.g.rounds) * int(o.g.tile_channels), c = threadIdx.x;
    const Index step = gridDim.x / o.g.members * o.g.tile_channels;
    for (Index first = blockIdx.x / o.g.members * o.g.tile_channels; first < o.g.channels; first += step) {
        const bool mine = c < o.g.tile_channels && first + c < o.g.channels;
        __syncthreads();
        if (mine) s.saved[c] = prepare(saved<Real>(o.normalizers, o.gamma, first + c, o.g.channels));
        for (Index round = 0; round < o.g.rounds; ++round) {
            load_round<WALK, V>(o, s, first, round);
            add_up_round<WALK>(o, s, round, terms);
        }
        __syncthreads();
        exchange.join_all(s.waiting + top);
        if (mine) {
            s.means[c] = conclude(first + c, s.saved[c], s.waiting[top + c], count_of(o, first + c), exchange.rank == 0);
        }
        __syncthreads();
        struct Channel {
            Saved<Real> saved;
            Means means;
        };
        for (Index round = o.g.rounds - 1; round >= 0; --round) {
            if (round < o.g.rounds - 1) load_round<WALK, V>(o, s, first, round);
            write([&](const Array& array, auto formula) {
                store<Stored, WALK, V>(
                    o.g, array, *s.at, s.tile, s.where,
                    [&](int channel) -> Channel { return {s.saved[channel], s.means[channel]}; },
                    [&](const Channel& of, const Real(&value)[INPUTS]) { return formula(of.saved, of.means, value); });
            });
        }
        for (int channel = 0; channel < channels_here(o.g, *s.at); ++channel) {
            finish(channel, s.saved[channel], s.means[channel], *s.at);
        }
    }
}
