// The part of a tensor that a block works on: some channels, and a stretch of the positions of each.
//
// A channel's values stand in the order of clause S1: position 0 to m - 1. Positions are cut into chunks of CHUNK, and
// a tile has a power of two of them; a block takes its stretch in one or more rounds of a tile each.
#pragma once

#include "types.cuh"

inline constexpr int MOST_AXES = 31;
inline constexpr int CHUNK = 512;

// All arrays of a call, cut into axes alike: the channel axis, and the others with neighbours joined where possible.
struct Geometry {
    Index channels, count;        // C and m
    Index axes, size[MOST_AXES];  // of the positions, slowest first
    Index wide;                   // whether an axis but the first has 2^31 positions or more
    Index tile_channels, chunks;  // of a tile; powers of two
    Index rounds, members;        // tiles one after the other, a power of two; blocks that share a channel
    Index channels_inner;         // whether neighbours in memory are channels (NHWC) or positions (NCHW)
    Index channel_pitch, position_pitch;  // in the tile
    Index tile_bytes;             // of one array, a multiple of 16
};

// An array that is read or written position by position; strides count values.
struct Array {
    void* data;
    Index channel_stride, stride[MOST_AXES];
};

// One value per channel; data may be null.
struct Vector {
    void* data;
    Index stride;
};

template <class Real>
__device__ Real read(const Vector& vector, Index channel) {
    return static_cast<const Real*>(vector.data)[channel * vector.stride];
}

// Where a tile lies: kept in shared memory, written by one thread.
struct Place {
    Index first_channel, first_position;
    Index digit[MOST_AXES];  // of the first position, by axis
};

__device__ inline void place(Place& at, const Geometry& g, Index first_channel, Index first_position) {
    at.first_channel = first_channel;
    at.first_position = first_position;
    Index rest = first_position;
    for (int axis = int(g.axes) - 1; axis > 0; --axis) {
        at.digit[axis] = rest % g.size[axis];
        rest /= g.size[axis];
    }
    at.digit[0] = rest;
}

// Where in an array the tile's value (channel, position) is: an addition of the position to the digits, with carries.
template <class Unsigned>
__device__ Index offset_by(const Geometry& g, const Array& array, const Place& at, int position) {
    Index offset = 0;
    Unsigned carry = position;
    for (int axis = int(g.axes) - 1; axis > 0; --axis) {
        const Unsigned sum = Unsigned(at.digit[axis]) + carry;
        carry = sum / Unsigned(g.size[axis]);
        offset += Index(sum - carry * Unsigned(g.size[axis])) * array.stride[axis];
    }
    return offset + (at.digit[0] + Index(carry)) * array.stride[0];
}

__device__ inline Index offset(const Geometry& g, const Array& array, const Place& at, int channel, int position) {
    const Index along = g.wide ? offset_by<unsigned long long>(g, array, at, position)
                               : offset_by<unsigned>(g, array, at, position);
    return along + (at.first_channel + channel) * array.channel_stride;
}

__device__ inline int positions(const Geometry& g) { return int(g.chunks) * CHUNK; }

__device__ inline int slot(const Geometry& g, int channel, int position) {
    return channel * int(g.channel_pitch) + position * int(g.position_pitch);
}

__device__ inline bool inside(const Geometry& g, const Place& at, int channel, int position) {
    return at.first_channel + channel < g.channels && at.first_position + position < g.count;
}

// The n-th vector of V neighbours of a tile; both sides of a tile are powers of two.
template <int V>
__device__ void find(const Geometry& g, int n, int& channel, int& position) {
    const int first = n * V, inner = g.channels_inner ? int(g.tile_channels) : positions(g);
    const int low = first & (inner - 1), high = first / inner;
    channel = g.channels_inner ? low : high;
    position = g.channels_inner ? high : low;
}

// Copy an array's part into shared memory. Four loads of each thread are on their way at once.
template <class Stored, int V>
__device__ void load(const Geometry& g, const Array& array, const Place& at, Stored* tile) {
    constexpr int FLIGHT = 4;
    const int vectors = int(g.tile_channels) * positions(g) / V;
    for (int first = threadIdx.x; first < vectors; first += FLIGHT * THREADS) {
        Pack<Stored, V> pack[FLIGHT];
        int target[FLIGHT];
#pragma unroll
        for (int k = 0; k < FLIGHT; ++k) {
            int channel, position;
            find<V>(g, first + k * THREADS, channel, position);
            const bool there = first + k * THREADS < vectors && inside(g, at, channel, position);
            target[k] = there ? slot(g, channel, position) : -1;
            if (there) {
                const Stored* source = static_cast<const Stored*>(array.data) + offset(g, array, at, channel, position);
                pack[k] = *reinterpret_cast<const Pack<Stored, V>*>(source);
            }
        }
#pragma unroll
        for (int k = 0; k < FLIGHT; ++k) {
            if (target[k] >= 0) {
                if (g.channels_inner) {  // rows are padded: no vector is aligned
                    for (int v = 0; v < V; ++v) tile[target[k] + v * int(g.channel_pitch)] = pack[k].value[v];
                } else {
                    *reinterpret_cast<Pack<Stored, V>*>(tile + target[k]) = pack[k];
                }
            }
        }
    }
}

// Call compute(channel, position, slot) for every value of a tile and write what it returns.
template <class Stored, int V, class Compute>
__device__ void store(const Geometry& g, const Array& array, const Place& at, Compute compute) {
    const int vectors = int(g.tile_channels) * positions(g) / V;
    for (int n = threadIdx.x; n < vectors; n += THREADS) {
        int channel, position;
        find<V>(g, n, channel, position);
        if (!inside(g, at, channel, position)) continue;
        Pack<Stored, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const int c = g.channels_inner ? channel + v : channel, i = g.channels_inner ? position : position + v;
            narrow(compute(c, i, slot(g, c, i)), pack.value[v]);
        }
        Stored* target = static_cast<Stored*>(array.data) + offset(g, array, at, channel, position);
        *reinterpret_cast<Pack<Stored, V>*>(target) = pack;
    }
}
