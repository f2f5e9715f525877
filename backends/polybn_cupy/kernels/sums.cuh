// The backward passes: sums over each channel of terms made from several arrays, then a formula for each value, with the
// arrays kept in shared memory in between. Organised as forward.cu is.
#pragma once

#include "reduce.cuh"

template <int N>
struct Sums {
    static constexpr int WORDS = N;
    double word[N];

    __device__ static Sums empty() { return {}; }
};

template <int N>
__device__ Sums<N> join(Sums<N> left, const Sums<N>& right) {
    for (int i = 0; i < N; ++i) left.word[i] += right.word[i];
    return left;
}

// The chunk of a channel that lies in a tile, added up by a warp. `takes_part(position)` says which positions count, and
// `add(position, sums)` adds the terms of one.
template <int N, class TakesPart, class Add>
__device__ Sums<N> add_up(int first, TakesPart takes_part, Add add) {
    double sums[N] = {};
    for (int k = 0; k < CHUNK / WARP; ++k) {
        const int position = first + lane() + k * WARP;
        if (takes_part(position)) add(position, sums);
    }
    Sums<N> node;
#pragma unroll
    for (int i = 0; i < N; ++i) node.word[i] = warp_sum(sums[i]);
    return node;
}

// A channel as the forward pass normalized it: what it saved, and gamma. For the backward passes.
template <class Real>
struct Saved {
    Real m1, delta, r, gamma, slope;  // slope: r of the unscaled values
    int exponent;

    __device__ Real xhat(Real x) const { return ((scaled(x, -exponent) - m1) - delta) * r; }
};

template <class Real>
__device__ Saved<Real> saved(const void* normalizers, const Vector& gamma, Index c, Index channels) {
    const Real* value = static_cast<const Real*>(normalizers) + c;
    const int exponent = int(value[3 * channels]);
    const Real r = value[2 * channels];
    return {value[0], value[channels], r, gamma.data ? read<Real>(gamma, c) : Real(1), scaled(r, -exponent), exponent};
}

// What a backward pass reads and writes. The first array is x.
template <int INPUTS, int OUTPUTS>
struct Operands {
    Geometry g;
    Array input[INPUTS], output[OUTPUTS], where;  // where may be null
    Group group;
    Vector gamma;       // may be null
    void* normalizers;  // (4, C), from the forward pass
    Vector counts;      // values that took part, by channel; null where all did
};

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
        const int channels = int(o.g.tile_channels), levels = level_of(o.g.rounds) + 1;
        for (int i = 0; i < INPUTS; ++i) tile[i] = reinterpret_cast<Stored*>(memory + i * o.g.tile_bytes);
        where = memory + INPUTS * o.g.tile_bytes;
        at = reinterpret_cast<Place*>(where + (o.where.data ? o.g.tile_bytes / Index(sizeof(Stored)) : 0));
        nodes = reinterpret_cast<Sums<N>*>(at + 1);
        waiting = nodes + channels * int(o.g.chunks);
        means = reinterpret_cast<Means*>(waiting + levels * channels);
        saved = reinterpret_cast<Saved<Real>*>(means + channels);
    }

    __device__ void values(int slot, RealOf<Stored> (&value)[INPUTS]) const {
        for (int i = 0; i < INPUTS; ++i) value[i] = widen(tile[i][slot]);
    }
};

template <int V, class Stored, int INPUTS, int OUTPUTS, int N, class Means>
__device__ void load_round(
    const Operands<INPUTS, OUTPUTS>& o, const SweepShared<Stored, INPUTS, N, Means>& s, Index first_channel, Index round) {
    const Index rank = blockIdx.x % o.g.members;
    __syncthreads();
    if (threadIdx.x == 0) place(*s.at, o.g, first_channel, (rank * o.g.rounds + round) * positions(o.g));
    __syncthreads();
    for (int i = 0; i < INPUTS; ++i) load<Stored, V>(o.g, o.input[i], *s.at, s.tile[i]);
    if (o.where.data) load<unsigned char, 1>(o.g, o.where, *s.at, s.where);
    __syncthreads();
}

template <class Stored, int INPUTS, int OUTPUTS, int N, class Means, class Terms>
__device__ void add_up_round(
    const Operands<INPUTS, OUTPUTS>& o, const SweepShared<Stored, INPUTS, N, Means>& s, Index round, Terms terms) {
    using Real = RealOf<Stored>;
    const int channels = int(o.g.tile_channels), chunks = int(o.g.chunks);
    for (int unit = warp(); unit < channels * chunks; unit += WARPS) {
        const int channel = unit / chunks;
        const Sums<N> node = add_up<N>(
            unit % chunks * CHUNK,
            [&](int i) {
                return inside(o.g, *s.at, channel, i) && (!o.where.data || s.where[slot(o.g, channel, i)]);
            },
            [&](int i, double(&sums)[N]) {
                Real value[INPUTS];
                s.values(slot(o.g, channel, i), value);
                terms(s.saved[channel], value, sums);
            });
        if (lane() == 0) s.nodes[unit] = node;
    }
    __syncthreads();
    for (int channel = warp(); channel < channels; channel += WARPS) {
        const Sums<N> node = tree<Sums<N>>(chunks, [&](int chunk) { return s.nodes[channel * chunks + chunk]; });
        if (lane() == 0) push(s.waiting + channel, channels, round, node);
    }
}

// terms(saved, values, sums)              adds the terms of one position
// conclude(c, saved, sums, count, first)  returns the means that `write` needs; the first of a group also reports
// write(put)                              calls put(array, formula(saved, means, values)) for each output
template <class Means, int N, int V, class Stored, int INPUTS, int OUTPUTS, class Terms, class Conclude, class Write>
__device__ void sweep(unsigned char* memory, const Operands<INPUTS, OUTPUTS>& o, Terms terms, Conclude conclude, Write write) {
    using Real = RealOf<Stored>;
    const SweepShared<Stored, INPUTS, N, Means> s(memory, o);
    Exchange<Sums<N>> exchange(o.group, o.g);
    const int top = level_of(o.g.rounds) * int(o.g.tile_channels), c = threadIdx.x;
    const Index step = gridDim.x / o.g.members * o.g.tile_channels;
    for (Index first = blockIdx.x / o.g.members * o.g.tile_channels; first < o.g.channels; first += step) {
        const bool mine = c < o.g.tile_channels && first + c < o.g.channels;
        __syncthreads();
        if (mine) s.saved[c] = saved<Real>(o.normalizers, o.gamma, first + c, o.g.channels);
        for (Index round = 0; round < o.g.rounds; ++round) {
            load_round<V>(o, s, first, round);
            add_up_round(o, s, round, terms);
        }
        __syncthreads();
        exchange.join_all(s.waiting + top);
        if (mine) {
            const Index counted = o.counts.data ? read<Index>(o.counts, first + c) : o.g.count;
            const double count = counted > 0 ? double(counted) : 1;
            s.means[c] = conclude(first + c, s.saved[c], s.waiting[top + c], count, exchange.rank == 0);
        }
        __syncthreads();
        for (Index round = o.g.rounds - 1; round >= 0; --round) {
            if (round < o.g.rounds - 1) load_round<V>(o, s, first, round);
            write([&](const Array& array, auto formula) {
                store<Stored, V>(o.g, array, *s.at, [&](int channel, int, int slot) -> Real {
                    if (o.where.data && !s.where[slot]) return 0;
                    Real value[INPUTS];
                    s.values(slot, value);
                    return formula(s.saved[channel], s.means[channel], value);
                });
            });
        }
    }
}
