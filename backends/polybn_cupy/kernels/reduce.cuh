// Sums whose order depends on nothing but the number of values.
//
// The values of a channel are the leaves of one binary tree: within a chunk, lane l of a warp adds up positions l, l + 32,
// l + 64 ... and the lanes are joined in pairs; then neighbouring chunks are joined, then pairs of them, and so on.
// However tiles, rounds and blocks cut the channel, they cut it at powers of two, along the branches of this tree: neither
// memory layout, nor tile size, nor the number of multiprocessors changes a bit. No floating-point atomics.
#pragma once

#include "tile.cuh"

inline constexpr unsigned ALL = 0xffffffffu;

__device__ inline int lane() { return threadIdx.x % WARP; }
__device__ inline int warp() { return threadIdx.x / WARP; }

template <class Real>
__device__ Real warp_sum(Real value) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) value += __shfl_xor_sync(ALL, value, step);
    return value;
}

template <class Real>
__device__ Real warp_max(Real value) {
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
        const Real other = __shfl_xor_sync(ALL, value, step);
        value = other > value ? other : value;
    }
    return value;
}

// What is joined is a struct of Node::WORDS doubles in `word`, with join(left, right), and empty() as neutral element.

template <class Node>
__device__ Node shuffled(const Node& node, int step) {
    Node other;
#pragma unroll
    for (int i = 0; i < Node::WORDS; ++i) other.word[i] = __shfl_xor_sync(ALL, node.word[i], step);
    return other;
}

// Join leaf(0) to leaf(width - 1), each of them read once; width is a power of two. All lanes of a warp take part, and
// lane 0, left of all others, holds the result.
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

// Rounds come one by one: a binary counter of nodes in shared memory, one for each level. One thread calls it.
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

// Where the blocks of a group meet. The state is a count, 0 between meetings, and a generation: the last to arrive sets
// the count back and only then opens the next generation, so that no size of group and no early bird can confuse it.
__device__ inline void meet(unsigned* state, unsigned members) {
    __syncthreads();
    if (threadIdx.x == 0) {
        volatile unsigned* generation = state + 1;
        const unsigned before = *generation;
        __threadfence();
        if (atomicAdd(state, 1u) == members - 1) {
            *static_cast<volatile unsigned*>(state) = 0;
            __threadfence();
            atomicAdd(state + 1, 1u);
        } else {
            while (*generation == before) __nanosleep(32);
        }
        __threadfence();
    }
    __syncthreads();
}

// A group of blocks, and the memory through which its members tell each other their nodes.
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

    // Join nodes[channel] of all members, in place. Two boxes in turn: a member that is one meeting ahead writes into the
    // other one, and it cannot be two ahead.
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
            const Node node = tree<Node>(width, [&](int member) {
                if (member >= members) return Node::empty();
                Node from;
                const double* source = mail + (box + Index(member) * channels + channel) * Node::WORDS;
                // Past the first-level cache, which may hold what this box held two meetings ago.
                for (int i = 0; i < Node::WORDS; ++i) from.word[i] = __ldcg(source + i);
                return from;
            });
            if (lane() == 0) nodes[channel] = node;
        }
        __syncthreads();
    }
};
