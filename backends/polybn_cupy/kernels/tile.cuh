// The part of a tensor that a block works on: some channels, and a range of the positions of each.
//
// A channel's values have the order of clause S1: positions 0 to m - 1. Positions are cut into chunks of CHUNK, and the
// number of chunks in a tile is a power of two. A block works on its range in one or more rounds of one tile each. In
// shared memory a tile has a row of positions for each channel, whatever the order in the tensor.
#pragma once

#include "types.cuh"

inline constexpr int MOST_AXES = 31;
inline constexpr int CHUNK = 512;

// Which values are neighbours in memory: positions (NCHW, in rows), channels (NHWC, one row of positions), or any
// others, also used with a mask. A kernel is compiled for each.
inline constexpr int ROWS = 0, CHANNELS = 1, ANY = 2;

// The axes that all arrays of a call are divided into: the channel axis, and the others, joined where possible.
struct Geometry {
    Index channels, count;        // C and m
    Index axes, size[MOST_AXES];  // the axes of the positions, slowest first
    Index wide;                   // whether an axis other than the first has 2^31 positions or more
    Index tile_channels, chunks;  // the size of a tile; powers of two
    Index rounds, members;        // tiles per block, a power of two; blocks that share a channel
    Index channels_inner;         // whether neighbours in memory are channels (NHWC) or positions (NCHW)
    Index row, magic, shift;      // last axis: n / row is n * magic >> 32 >> shift, for n < 2^31 and row > 1
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

template <class Real>
__device__ Real or_else(const Vector& vector, Index channel, Real other) {
    return vector.data ? read<Real>(vector, channel) : other;
}

__device__ inline int positions(const Geometry& g) { return int(g.chunks) * CHUNK; }

// The place of a tile, in shared memory; one thread writes it.
struct Place {
    Index first_channel, first_position;
    Index digit[MOST_AXES];  // of the first position, by axis
};

__device__ inline void place(Place& at, const Geometry& g, Index first_channel, Index first_position) {
    at.first_channel = first_channel;
    at.first_position = first_position;
    Index rest = first_position;
#pragma unroll 1
    for (int axis = int(g.axes) - 1; axis > 0; --axis) {
        at.digit[axis] = rest % g.size[axis];
        rest /= g.size[axis];
    }
    at.digit[0] = rest;
}

// The numbers of channels and positions of a tile that are inside the tensor.
__device__ inline int channels_here(const Geometry& g, const Place& at) {
    return int(g.channels - at.first_channel < g.tile_channels ? g.channels - at.first_channel : g.tile_channels);
}
__device__ inline int positions_here(const Geometry& g, const Place& at) {
    const Index left = g.count - at.first_position;
    return int(left <= 0 ? 0 : left < positions(g) ? left : positions(g));
}

// The offset of a tile's value (channel, position) in an array: the position is added to the digits, with carries.
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

__device__ __noinline__ Index offset(const Geometry& g, const Array& array, const Place& at, int channel, int position) {
    const Index along = g.wide ? offset_by<unsigned long long>(g, array, at, position)
                               : offset_by<unsigned>(g, array, at, position);
    return along + (at.first_channel + channel) * array.channel_stride;
}

// base + count * bytes, in one instruction instead of the compiler's four.
template <class Stored>
__device__ Stored* stepped(Stored* base, int count, int bytes) {
#ifdef __CUDACC_RTC__
    Stored* result;
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(count), "r"(bytes), "l"(base));
    __builtin_assume(__isGlobal(result));  // else loads would be generic, and slower
    return result;
#else
    return reinterpret_cast<Stored*>(reinterpret_cast<std::uintptr_t>(base) + Index(count) * bytes);
#endif
}

// The positions of a tile in an array of rows. From the end of one row to the start of the next there is a jump.
template <class Stored>
struct RowWalk {
    Stored* base;  // the tile's first value
    Index channel_stride;
    int jump;  // in bytes
    unsigned column, magic;
    int shift;

    __device__ RowWalk(const Geometry& g, const Array& array, const Place& at) {
        base = static_cast<Stored*>(array.data) + at.first_channel * array.channel_stride +
               at.digit[0] * array.stride[0] + at.digit[1];
        channel_stride = array.channel_stride;
        jump = (int(array.stride[0]) - int(g.row)) * int(sizeof(Stored));
        column = unsigned(at.digit[1]), magic = unsigned(g.magic), shift = int(g.shift);
    }

    __device__ Stored* channel(int channel) const { return base + channel * channel_stride; }

    // The value at a position of the channel that begins at `first`.
    __device__ Stored* operator()(Stored* first, int position) const {
        const int rows = int(__umulhi(column + unsigned(position), magic) >> shift);
        return stepped(stepped(first, position, int(sizeof(Stored))), rows, jump);
    }
};

// The address of one value of a tile; slower than stepping along.
template <class Stored, int WALK>
__device__ Stored* address(const Geometry& g, const Array& array, const Place& at, int channel, int position) {
    if constexpr (WALK == ROWS) {
        const RowWalk<Stored> walk(g, array, at);
        return walk(walk.channel(channel), position);
    } else if constexpr (WALK == CHANNELS) {
        return static_cast<Stored*>(array.data) + at.first_channel + channel + (at.first_position + position) * array.stride[1];
    } else {
        return static_cast<Stored*>(array.data) + offset(g, array, at, channel, position);
    }
}

// The values of a tile that a thread moves: vectors of V neighbours; neighbouring threads have neighbouring vectors.
template <int V>
struct RowShare {
    int across, first_channel, channel_step, first, step;

    __device__ explicit RowShare(const Geometry& g) {
        across = positions(g) / V < THREADS ? positions(g) / V : THREADS;  // both are powers of two
        first_channel = int(threadIdx.x) / across, channel_step = THREADS / across;
        first = int(threadIdx.x) % across * V, step = across * V;
    }
};
template <int V>
struct ChannelShare {
    int channel, first, step;

    __device__ explicit ChannelShare(const Geometry& g) {
        const int across = int(g.tile_channels) / V;  // powers of two, and no more than there are threads
        channel = int(threadIdx.x) % across * V;
        first = int(threadIdx.x) / across, step = THREADS / across;
    }
};

// The place of a value in shared memory. With CHANNELS, rows are permuted in units of 16 bytes, so that neighbours in
// both directions are in different banks.
template <class Stored, int WALK>
__device__ int slot(int pitch, int channel, int position) {
    constexpr int W = WIDTH<Stored>, V = W < 4 ? W : 4;
    if constexpr (WALK != CHANNELS) return channel * pitch + position;
    return channel * pitch + (position ^ (channel / V % 8 * W));
}

// Copy a tile of an array into shared memory. Asynchronous copies are complete after arrived().
template <class Stored, int WALK, int V>
__device__ void load(const Geometry& g, const Array& array, const Place& at, Stored* tile) {
    const int pitch = positions(g), channels = channels_here(g, at), count = positions_here(g, at);
    if constexpr (WALK == ROWS) {
        const RowWalk<const Stored> walk(g, array, at);
        const RowShare<V> mine(g);
        for (int channel = mine.first_channel; channel < channels; channel += mine.channel_step) {
            const Stored* source = walk.channel(channel);
            Stored* target = tile + channel * pitch;
#pragma unroll 4
            for (int i = mine.first; i < count; i += mine.step) copy_async<V>(target + i, walk(source, i));
        }
    } else {
        constexpr int FLIGHT = V * sizeof(Stored) < 16 ? 8 : 4;  // loads in flight per thread
        const ChannelShare<V> mine(g);
        if (mine.channel >= channels) return;
        const Index step = mine.step * array.stride[1];
        const Stored* source = static_cast<const Stored*>(array.data) + at.first_channel + mine.channel +
                               (at.first_position + mine.first) * array.stride[1];
        const auto move = [&](int first, auto many) {
            Pack<Stored, V> pack[many.value];
#pragma unroll
            for (int k = 0; k < many.value; ++k, source += step) pack[k] = *reinterpret_cast<const Pack<Stored, V>*>(source);
#pragma unroll
            for (int k = 0; k < many.value; ++k) {
                Stored* target = tile + slot<Stored, WALK>(pitch, mine.channel, first + k * mine.step);
#pragma unroll
                for (int v = 0; v < V; ++v) target[v * pitch] = pack[k].value[v];
            }
        };
        int i = mine.first;
        for (; i + (FLIGHT - 1) * mine.step < count; i += FLIGHT * mine.step) move(i, Int<FLIGHT>());
        for (; i < count; i += mine.step) move(i, Int<1>());
    }
}

// The same for arrays with any layout, and for masks: value by value. `at_slot(channel, position)` is the target.
template <class Item, class Slot>
__device__ void load_any(const Geometry& g, const Array& array, const Place& at, Item* tile, Slot at_slot) {
    const int channels = channels_here(g, at), count = positions_here(g, at);
    for (int n = threadIdx.x; n < channels * count; n += THREADS) {
        const int channel = g.channels_inner ? n % channels : n / count;
        const int position = g.channels_inner ? n / channels : n % count;
        tile[at_slot(channel, position)] = static_cast<const Item*>(array.data)[offset(g, array, at, channel, position)];
    }
}

// Write formula(state, values) for each position of a tile. make(channel) returns the state that a channel's values
// share, which is kept in registers. With ANY, the result is 0 where the mask `where` deletes the value.
template <class Stored, int WALK, int V, int INPUTS, class Make, class Formula>
__device__ void store(
    const Geometry& g, const Array& array, const Place& at, Stored* const (&tile)[INPUTS], const unsigned char* where,
    Make make, Formula formula) {
    using Real = RealOf<Stored>;
    const int pitch = positions(g), channels = channels_here(g, at), count = positions_here(g, at);
    if constexpr (WALK == ROWS) {
        const RowWalk<Stored> walk(g, array, at);
        const RowShare<V> mine(g);
        for (int channel = mine.first_channel; channel < channels; channel += mine.channel_step) {
            const auto state = make(channel);
            Stored* target = walk.channel(channel);
            const int row = channel * pitch;
#pragma unroll 2
            for (int i = mine.first; i < count; i += mine.step) {
                Pack<Stored, V> in[INPUTS], out;
#pragma unroll
                for (int k = 0; k < INPUTS; ++k) in[k] = *reinterpret_cast<const Pack<Stored, V>*>(tile[k] + row + i);
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    Real value[INPUTS];
#pragma unroll
                    for (int k = 0; k < INPUTS; ++k) value[k] = widen(in[k].value[v]);
                    narrow(formula(state, value), out.value[v]);
                }
                *reinterpret_cast<Pack<Stored, V>*>(walk(target, i)) = out;
            }
        }
    } else if constexpr (WALK == CHANNELS) {
        const ChannelShare<V> mine(g);
        if (mine.channel >= channels) return;
        decltype(make(0)) state[V];
#pragma unroll
        for (int v = 0; v < V; ++v) state[v] = make(mine.channel + v);
        const Index step = mine.step * array.stride[1];
        Stored* target = static_cast<Stored*>(array.data) + at.first_channel + mine.channel +
                         (at.first_position + mine.first) * array.stride[1];
#pragma unroll 2
        for (int i = mine.first; i < count; i += mine.step, target += step) {
            const int first = slot<Stored, WALK>(pitch, mine.channel, i);
            Pack<Stored, V> out;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                Real value[INPUTS];
#pragma unroll
                for (int k = 0; k < INPUTS; ++k) value[k] = widen(tile[k][first + v * pitch]);
                narrow(formula(state[v], value), out.value[v]);
            }
            *reinterpret_cast<Pack<Stored, V>*>(target) = out;
        }
    } else {
        for (int n = threadIdx.x; n < channels * count; n += THREADS) {
            const int channel = g.channels_inner ? n % channels : n / count;
            const int position = g.channels_inner ? n / channels : n % count;
            const int from = slot<Stored, WALK>(pitch, channel, position);
            Real value[INPUTS];
#pragma unroll
            for (int k = 0; k < INPUTS; ++k) value[k] = widen(tile[k][from]);
            const Real result = where && !where[from] ? Real(0) : Real(formula(make(channel), value));
            narrow(result, static_cast<Stored*>(array.data)[offset(g, array, at, channel, position)]);
        }
    }
}

// Copy a tile of each array, and of the mask, into shared memory.
template <class Stored, int WALK, int V, int INPUTS>
__device__ void load_all(
    const Geometry& g, const Array (&array)[INPUTS], const Array& mask, const Place& at, Stored* const (&tile)[INPUTS],
    unsigned char* where) {
    const auto to = [&](int channel, int position) { return slot<Stored, WALK>(positions(g), channel, position); };
#pragma unroll
    for (int i = 0; i < INPUTS; ++i) {
        if constexpr (WALK == ANY) {
            load_any(g, array[i], at, tile[i], to);
        } else {
            load<Stored, WALK, V>(g, array[i], at, tile[i]);
        }
    }
    if (WALK == ANY && where) load_any(g, mask, at, where, to);
    arrived();
}

// The values of a chunk that one lane adds up, in this order: W neighbours, then W more that are WARP * W further on.
inline constexpr int EACH = CHUNK / WARP;

__device__ inline int lane() { return threadIdx.x % WARP; }
__device__ inline int warp() { return threadIdx.x / WARP; }

template <class Stored, int WALK>
__device__ void read_chunk(const Stored* tile, int pitch, int channel, int first, Stored (&value)[EACH]) {
    constexpr int W = WIDTH<Stored>;
    const Stored* source = tile + slot<Stored, WALK>(pitch, channel, first + lane() * W);
#pragma unroll
    for (int k = 0; k < EACH; k += W) {
        const auto pack = *reinterpret_cast<const Pack<Stored, W>*>(source + k * WARP);
#pragma unroll
        for (int v = 0; v < W; ++v) value[k + v] = pack.value[v];
    }
}

// A bit for each of these values: whether it is inside the tensor and not deleted by the mask.
template <class Stored, int WALK>
__device__ unsigned read_mask(const unsigned char* where, int pitch, int channel, int first, int count) {
    constexpr int W = WIDTH<Stored>;
    unsigned taken = 0;
    for (int k = 0; k < EACH; ++k) {
        const int position = first + lane() * W + k / W * (WARP * W) + k % W;
        bool takes_part = position < count;
        if (WALK == ANY && where && takes_part) takes_part = where[slot<Stored, WALK>(pitch, channel, position)];
        taken |= unsigned(takes_part) << k;
    }
    return taken;
}
inline constexpr unsigned EVERY = (1u << EACH) - 1;

// Share out the chunks of a tile among the warps: first the chunks in which all values take part, then the others.
// unit(number, channel, first, whole) processes one.
template <class Unit>
__device__ void for_each_unit(const Geometry& g, const Place& at, bool masked, Unit unit) {
    const int channels = channels_here(g, at), chunks = int(g.chunks), count = positions_here(g, at);
    const int whole = masked ? 0 : count / CHUNK;
    int shift = 0;
    while (1 << shift < chunks) ++shift;
    for (int n = warp(); n < channels << shift; n += WARPS) {
        const int chunk = n & (chunks - 1);
        if (chunk < whole) unit(n, n >> shift, chunk * CHUNK, Bool<true>());
    }
    if (whole == chunks) return;
#pragma unroll 1
    for (int n = warp(); n < channels << shift; n += WARPS) {
        const int chunk = n & (chunks - 1);
        if (chunk >= whole) unit(n, n >> shift, chunk * CHUNK, Bool<false>());
    }
}
