// Dense layers, as products of matrices.
//
// Each element of a product is four sums, of every fourth term, which are added. The gradient of a weight is the sum of
// slices of the batch, which are added when the weights change. There are no atomics.
#include "maps.cuh"

struct Dense {
    Map in;
    Index n, features, slices, spread_blocks;
    const float *weight, *bias, *dy;  // weight: (features, inputs)
    float *y, *partials;              // partials: (slices, features, inputs + 1), the last column for the bias
};

inline constexpr int DEPTH = 128, ALONG = 4;
inline constexpr int PITCH = DEPTH + ALONG;  // so that lanes of a warp read different banks
using Four = Pack<float, ALONG>;

// The rows and columns of a tile of the result, and how many of both a thread computes. Forward, few images are worth more
// than few loads, because what is read goes through a pool and a sigmoid in each block.
template <int ROWS_, int COLUMNS_, int EACH_>
struct Tile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, EACH = EACH_;
    static_assert(ROWS * COLUMNS == THREADS * EACH * EACH);
};
using Forward = Tile<32, 8, 1>;
using Backward = Tile<32, 32, 2>;

// Which numbers of a factor are neighbours in memory: those of one sum, or those of different ones.
inline constexpr bool INSIDE = true, BESIDE = false;
// Whether the lanes of a warp are along the rows of the result or the columns: those that are neighbours in memory.
inline constexpr bool DOWN = true, ACROSS = false;

// The number of a factor's tile (SIDES, DEPTH) that comes n-th in memory.
template <int SIDES, bool NEIGHBOURS>
struct Spot {
    int side, k;

    __device__ explicit Spot(int n)
        : side(NEIGHBOURS == INSIDE ? n / DEPTH : n % SIDES), k(NEIGHBOURS == INSIDE ? n % DEPTH : n / SIDES) {}
};

// Start to copy the first numbers of a tile to shared memory; where(side, k) is the address of one. The rest is 0.
template <int SIDES, bool NEIGHBOURS, class Where>
__device__ void bring_tile(float* target, int sides, int depth, Where where) {
#pragma unroll
    for (int n = 0; n < SIDES * DEPTH; n += THREADS) {
        const Spot<SIDES, NEIGHBOURS> at(n + int(threadIdx.x));
        float* to = target + at.side * PITCH + at.k;
        if (at.side < sides && at.k < depth) copy_async<1>(to, where(at.side, at.k));
        else *to = 0;
    }
}

// Fill a tile with finish(side, k, load(side, k)). All loads come before the first store, and there is no branch around any.
template <int SIDES, class Load, class Finish>
__device__ void fill_tile(float* target, int sides, int depth, Load load, Finish finish) {
    constexpr int EACH = SIDES * DEPTH / THREADS;
    float value[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const Spot<SIDES, INSIDE> at(e * THREADS + int(threadIdx.x));
        value[e] = load(at.side < sides ? at.side : sides - 1, at.k < depth ? at.k : depth - 1);
    }
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const Spot<SIDES, INSIDE> at(e * THREADS + int(threadIdx.x));
        target[at.side * PITCH + at.k] = at.side < sides && at.k < depth ? finish(at.side, at.k, value[e]) : 0.0f;
    }
}

// put(row, column, sum of left(row, k) * right(column, k)) for a tile; k from `first` to `last`. left(target, row, rows, k,
// depth) and right(...) bring numbers to shared memory, and zeros where there are none. Tiles are small, because matrices
// are, and many blocks wait for memory at the same time.
template <class Size, bool LANES, class Left, class Right, class Put>
__device__ void product(int tile, int rows, int columns, int first, int last, Left left, Right right, Put put) {
    constexpr int EACH = Size::EACH, HIGH = Size::ROWS / EACH, WIDE = Size::COLUMNS / EACH;
    extern __shared__ uint4 memory[];
    float* l = reinterpret_cast<float*>(memory);  // (ROWS, PITCH)
    float* r = l + Size::ROWS * PITCH;            // (COLUMNS, PITCH)
    const int across = (columns + Size::COLUMNS - 1) / Size::COLUMNS;
    const int top = tile / across * Size::ROWS, side = tile % across * Size::COLUMNS, thread = int(threadIdx.x);
    const int row = LANES == DOWN ? thread % HIGH : thread / WIDE, column = LANES == DOWN ? thread / HIGH : thread % WIDE;
    float sum[EACH][EACH][ALONG] = {};
    for (int start = first; start < last; start += DEPTH) {
        const int depth = last - start < DEPTH ? last - start : DEPTH;
        __syncthreads();
        left(l, top, rows - top, start, depth);
        right(r, side, columns - side, start, depth);
        arrived();
        __syncthreads();
        const Four* mine = reinterpret_cast<const Four*>(l + row * PITCH);
        const Four* other = reinterpret_cast<const Four*>(r + column * PITCH);
#pragma unroll 4
        for (int k = 0; k < (depth + ALONG - 1) / ALONG; ++k) {
            Four x[EACH], y[EACH];
#pragma unroll
            for (int e = 0; e < EACH; ++e) {
                x[e] = mine[e * HIGH * PITCH / ALONG + k];
                y[e] = other[e * WIDE * PITCH / ALONG + k];
            }
#pragma unroll
            for (int i = 0; i < EACH * EACH * ALONG; ++i) {
                const int a = i / ALONG / EACH, b = i / ALONG % EACH, of = i % ALONG;
                sum[a][b][of] = fmaf(x[a].value[of], y[b].value[of], sum[a][b][of]);
            }
        }
    }
#pragma unroll
    for (int e = 0; e < EACH * EACH; ++e) {
        const float(&four)[ALONG] = sum[e / EACH][e % EACH];
        const int at = top + row + e / EACH * HIGH, to = side + column + e % EACH * WIDE;
        if (at < rows && to < columns) put(at, to, (four[0] + four[1]) + (four[2] + four[3]));
    }
}

__global__ void __launch_bounds__(THREADS, BLOCKS) multiply(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features);
    const bool keep = d.in.kept && blockIdx.x < (d.n + Forward::COLUMNS - 1) / Forward::COLUMNS;  // the blocks of the first features
    product<Forward, DOWN>(
        blockIdx.x, features, int(d.n), 0, inputs,
        [&](float* target, int feature, int count, int k, int depth) {
            const float* from = d.weight + Index(feature) * inputs + k;
            bring_tile<Forward::ROWS, INSIDE>(target, count, depth, [&](int side, int at) { return from + side * inputs + at; });
        },
        [&](float* target, int image, int count, int k, int depth) {
            const auto finish = [&](int side, int at, float value) {
                const float result = d.in.activated(value);
                if (keep) d.in.kept[(image + side) * Index(inputs) + k + at] = result;
                return result;
            };
            d.in.with_loads([&](auto load) {
                fill_tile<Forward::COLUMNS>(
                    target, count, depth, [&](int side, int at) { return load(image + side, k + at); }, finish);
            });
        },
        [&](int feature, int image, float sum) { d.y[Index(image) * features + feature] = sum + d.bias[feature]; });
}

// The gradients of the input, which the first blocks compute, and of weights and bias.
__global__ void __launch_bounds__(THREADS, BLOCKS) multiply_back(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features), n = int(d.n), slices = int(d.slices);
    if (blockIdx.x < d.spread_blocks) {
        product<Backward, DOWN>(
            blockIdx.x, inputs, n, 0, features,
            [&](float* target, int input, int count, int feature, int depth) {
                const float* from = d.weight + Index(feature) * inputs + input;
                bring_tile<Backward::ROWS, BESIDE>(
                    target, count, depth, [&](int side, int at) { return from + at * inputs + side; });
            },
            [&](float* target, int image, int count, int feature, int depth) {
                const float* from = d.dy + Index(image) * features + feature;
                bring_tile<Backward::COLUMNS, INSIDE>(
                    target, count, depth, [&](int side, int at) { return from + side * features + at; });
            },
            [&](int input, int image, float sum) { d.in.give<1>(image, input, 1, {sum}); });
        return;
    }
    const int block = int(blockIdx.x - d.spread_blocks), slice = block % slices, tile = block / slices;
    const int length = (n + slices - 1) / slices, first = slice * length;  // at most DEPTH
    float* partials = d.partials + Index(slice) * features * (inputs + 1);
    product<Backward, ACROSS>(
        tile, features, inputs, first, first + length < n ? first + length : n,
        [&](float* target, int feature, int count, int image, int depth) {
            const float* from = d.dy + Index(image) * features + feature;
            bring_tile<Backward::ROWS, BESIDE>(
                target, count, depth, [&](int side, int at) { return from + at * features + side; });
        },
        [&](float* target, int input, int count, int image, int depth) {
            const float* from = d.in.kept + Index(image) * inputs + input;
            bring_tile<Backward::COLUMNS, BESIDE>(
                target, count, depth, [&](int side, int at) { return from + at * inputs + side; });
        },
        [&](int feature, int input, float sum) { partials[feature * (inputs + 1) + input] = sum; });
    // The blocks of the first inputs still have the gradients of the outputs, which they add up for the bias.
    const int across = (inputs + Backward::COLUMNS - 1) / Backward::COLUMNS, row = int(threadIdx.x);
    const int feature = tile / across * Backward::ROWS + row;
    if (tile % across || row >= Backward::ROWS || feature >= features) return;
    extern __shared__ uint4 memory[];
    const Four* mine = reinterpret_cast<const Four*>(memory) + row * (PITCH / ALONG);
    float sum[ALONG] = {};
#pragma unroll 8
    for (int k = 0; k < DEPTH / ALONG; ++k) {
        const Four four = mine[k];
#pragma unroll
        for (int i = 0; i < ALONG; ++i) sum[i] += four.value[i];
    }
    partials[feature * (inputs + 1) + inputs] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
