// Sums whose order depends only on the number of values.
//
// The values of a channel are the leaves of one binary tree: within a chunk, each lane of a warp adds up the values of
// read_chunk, and the lanes are joined in pairs; then neighbouring chunks are joined, then pairs of them, and so on.
// Tiles, rounds and blocks cut a channel only at powers of two, along the branches of this tree. So neither memory
// layout, nor tile size, nor the number of multiprocessors changes a bit. There are no floating-point atomics.
#pragma once

#include "tile.cuh"

inline constexpr unsigned ALL = 0xffffffffu;

template <class Real>
__device__ Real warp_sum(Real value) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) value += __shfl_xor_sync(ALL, value, step);
    return value;
}

// A node is a struct with Node::WORDS doubles in `word`, join(left, right), and empty() as the neutral element.

template <class Node>
__device__ Node shuffled(const Node& node, int step) {
    Node other;
#pragma unroll
    for (int i = 0; i < Node::WORDS; ++i) other.word[i] = __shfl_xor_sync(ALL, node.word[i], step);
    return other;
}

// Join leaf(0) to leaf(width - 1), reading each once; width is a power of two. All lanes of a warp take part, and lane
// 0 gets the result. It is not inlined, because it is long and runs once per channel. `leaf` must capture values, not
// references, or the variables would have to live in memory.
template <class Node, class Leaf>
__device__ __noinline__ Node tree(int width, Leaf leaf) {
    constexpr int LEVELS = 16;
    const int each = width > WARP ? width / WARP : 1, lanes = width < WARP ? width : WARP;
    Node waiting[LEVELS], node = Node::empty();
    for (int k = 0; k < each; ++k) {
        node = lane() < lanes ? leaf(lane() * each + k) : Node::empty();
        int level = 0;
        for (int rest = k; rest & 1; rest >>= 1) node = join(waiting[level++], node);
        waiting[level] = node;
    }
    for (int step = 1; step < lanes; step *= 2) node = join(node, shuffled(node, step));
    return node;
}

// Add the node of one more round to a binary counter of nodes in shared memory, one for each level. One thread calls
// it.
template <class Node>
__device__ void push(Node* waiting, int pitch, Index round, Node node) {
    int level = 0;
    for (Index rest = round; rest & 1; rest >>= 1) node = join(waiting[pitch * level++], node);
    waiting[pitch * level] = node;
}

__device__ inline int level_of(Index rounds) {
    int level = 0;
    while (rounds > 1) {
        rounds /= 2;
        ++level;
    }
    return level;
}

// Synchronization between blocks, with the ordering that the memory model demands: a block that sees another arrive
// also sees everything that the other wrote before.
#ifdef __CUDACC_RTC__
__device__ inline unsigned arrive(unsigned* counter) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}
__device__ inline unsigned look(const unsigned* counter) {
    unsigned value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}
__device__ inline void open(unsigned* counter, unsigned value) {
    asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
#else  // in the emulation, every write is visible at once
inline unsigned arrive(unsigned* counter) { return atomicAdd(counter, 1u); }
inline unsigned look(const unsigned* counter) { return *counter; }
inline void open(unsigned* counter, unsigned value) { *counter = value; }
#endif

// A barrier for the blocks of a group. The state is a count, 0 between uses, and a generation. The last block to arrive
// resets the count and only then opens the next generation, so that a fast block cannot disturb the one in progress.
__device__ inline void meet(unsigned* state, unsigned members) {
    __syncthreads();
    if (threadIdx.x == 0) {
        volatile unsigned* count = state;
        const unsigned generation = count[1];
        if (arrive(state) == members - 1) {
            *count = 0;
            open(state + 1, generation + 1);
        } else {
            while (look(state + 1) == generation) __nanosleep(20);
        }
    }
    __syncthreads();
}

// The memory through which the blocks of a group exchange their nodes.
struct Group {
    double* mail;        // (groups, 2, members, tile_channels, words)
    unsigned* barriers;  // (groups, 2)
};

template <class Node>
struct Exchange {
    double* mail;
    unsigned* barrier;
    int members, rank, channels, turn;

    __device__ Exchange(const Group& group, const Geometry& g)
        : members(int(g.members)), rank(int(blockIdx.x % g.members)), channels(int(g.tile_channels)), turn(0) {
        const Index number = blockIdx.x / g.members;
        mail = group.mail + number * 2 * members * channels * Node::WORDS;
        barrier = group.barriers + 2 * number;
    }

    // Join nodes[channel] of all members, in place. Two boxes are used in turn: a member that is one barrier ahead
    // writes into the other box, and no member can be two ahead.
    __device__ void join_all(Node* nodes) {
        if (members == 1) return;
        const Index box = Index(turn) * members * channels;
        turn ^= 1;
        for (int n = threadIdx.x; n < channels * Node::WORDS; n += THREADS) {
            const int channel = n / Node::WORDS, word = n % Node::WORDS;
            mail[(box + Index(rank) * channels) * Node::WORDS + n] = nodes[channel].word[word];
        }
        meet(barrier, members);
        int width = 1;
        while (width < members) width *= 2;
        for (int channel = warp(); channel < channels; channel += WARPS) {
            const double* first = mail + (box + channel) * Node::WORDS;
            const int count = members, pitch = channels * Node::WORDS;
            const Node node = tree<Node>(width, [first, count, pitch](int member) {
                if (member >= count) return Node::empty();
                Node from;
                const double* source = first + Index(member) * pitch;
                // Bypass the first-level cache, which may hold old contents of this box.
#pragma unroll
                for (int i = 0; i < Node::WORDS; ++i) from.word[i] = __ldcg(source + i);
                return from;
            });
            if (lane() == 0) nodes[channel] = node;
        }
        __syncthreads();
    }
};
