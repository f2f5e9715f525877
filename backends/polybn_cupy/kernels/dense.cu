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

inline constexpr int SIDE = 16, DEPTH = 128, ALONG = 4;
inline constexpr int PITCH = DEPTH + ALONG;  // so that lanes of a warp read different banks
inline constexpr int EACH = SIDE * DEPTH / THREADS;
using Four = Pack<float, ALONG>;
static_assert(SIDE * SIDE == THREADS);

// The input that the bias is the weight of.
__device__ const float one = 1;

// Which numbers of a factor are neighbours in memory: those of one sum, or those of different ones.
inline constexpr bool INSIDE = true, BESIDE = false;

// Whether the lanes of a warp are along the rows of the result or the columns: those that are neighbours in memory.
inline constexpr bool DOWN = true, ACROSS = false;

// The number of a tile (SIDE, DEPTH) that comes n-th in memory.
template <bool NEIGHBOURS>
struct Spot {
    int side, k;

    __device__ explicit Spot(int n)
        : side(NEIGHBOURS == INSIDE ? n / DEPTH : n % SIDE), k(NEIGHBOURS == INSIDE ? n % DEPTH : n / SIDE) {}
};

// Start to copy the first numbers of a tile to shared memory; where(side, k) is the address of one. The rest is 0.
template <bool NEIGHBOURS, class Where>
__device__ void bring_tile(float* target, int sides, int depth, Where where) {
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const Spot<NEIGHBOURS> at(e * THREADS + int(threadIdx.x));
        float* to = target + at.side * PITCH + at.k;
        if (at.side < sides && at.k < depth) copy_async<1>(to, where(at.side, at.k));
        else *to = 0;
    }
}

// Fill a tile with finish(side, k, load(side, k)). All loads come before the first store, and there is no branch around any.
template <bool NEIGHBOURS, class Load, class Finish>
__device__ void fill_tile(float* target, int sides, int depth, Load load, Finish finish) {
    float value[EACH];
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const Spot<NEIGHBOURS> at(e * THREADS + int(threadIdx.x));
        value[e] = load(at.side < sides ? at.side : sides - 1, at.k < depth ? at.k : depth - 1);
    }
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const Spot<NEIGHBOURS> at(e * THREADS + int(threadIdx.x));
        target[at.side * PITCH + at.k] = at.side < sides && at.k < depth ? finish(at.side, at.k, value[e]) : 0.0f;
    }
}

// put(row, column, sum of left(row, k) * right(column, k)) for a tile of SIDE x SIDE; k from `first` to `last`.
// left(tile, row, rows, k, depth) and right(...) bring a tile to shared memory, and zeros where there are fewer numbers.
// Tiles are small, because matrices are, and many blocks wait for memory at the same time.
template <bool LANES, class Left, class Right, class Put>
__device__ void product(int tile, int rows, int columns, int first, int last, Left left, Right right, Put put) {
    extern __shared__ uint4 memory[];
    float* l = reinterpret_cast<float*>(memory);  // (SIDE, PITCH)
    float* r = l + SIDE * PITCH;                  // (SIDE, PITCH)
    const int across = (columns + SIDE - 1) / SIDE;
    const int top = tile / across * SIDE, side = tile % across * SIDE;
    const int fast = threadIdx.x % SIDE, slow = threadIdx.x / SIDE;
    const int row = LANES == DOWN ? fast : slow, column = LANES == DOWN ? slow : fast;
    float sum[ALONG] = {};
    for (int start = first; start < last; start += DEPTH) {
        const int depth = last - start < DEPTH ? last - start : DEPTH;
        __syncthreads();
        left(l, top, rows - top, start, depth);
        right(r, side, columns - side, start, depth);
        arrived();
        __syncthreads();
        const Four* mine = reinterpret_cast<const Four*>(l + row * PITCH);
        const Four* other = reinterpret_cast<const Four*>(r + column * PITCH);
#pragma unroll 8
        for (int k = 0; k < (depth + ALONG - 1) / ALONG; ++k) {
            const Four x = mine[k], y = other[k];
#pragma unroll
            for (int i = 0; i < ALONG; ++i) sum[i] = fmaf(x.value[i], y.value[i], sum[i]);
        }
    }
    if (top + row < rows && side + column < columns) put(top + row, side + column, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

__global__ void __launch_bounds__(THREADS, BLOCKS) multiply(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features);
    const bool keep = d.in.kept && blockIdx.x < (d.n + SIDE - 1) / SIDE;  // the blocks of the first features
    product<DOWN>(
        blockIdx.x, features, int(d.n), 0, inputs,
        [&](float* target, int feature, int count, int k, int depth) {
            const float* from = d.weight + Index(feature) * inputs + k;
            bring_tile<INSIDE>(target, count, depth, [&](int side, int at) { return from + side * inputs + at; });
        },
        [&](float* target, int image, int count, int k, int depth) {
            const auto finish = [&](int side, int at, float value) {
                const float result = d.in.activated(value);
                if (keep) d.in.kept[(image + side) * Index(inputs) + k + at] = result;
                return result;
            };
            d.in.with_loads([&](auto load) {
                fill_tile<INSIDE>(
                    target, count, depth, [&](int side, int at) { return load(image + side, k + at); }, finish);
            });
        },
        [&](int feature, int image, float sum) { d.y[Index(image) * features + feature] = sum + d.bias[feature]; });
}

// The gradients of the input, which the first blocks compute, and of weights and bias.
__global__ void __launch_bounds__(THREADS, BLOCKS) multiply_back(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features), n = int(d.n), slices = int(d.slices);
    if (blockIdx.x < d.spread_blocks) {
        product<DOWN>(
            blockIdx.x, inputs, n, 0, features,
            [&](float* target, int input, int count, int feature, int depth) {
                const float* from = d.weight + Index(feature) * inputs + input;
                bring_tile<BESIDE>(target, count, depth, [&](int side, int at) { return from + at * inputs + side; });
            },
            [&](float* target, int image, int count, int feature, int depth) {
                const float* from = d.dy + Index(image) * features + feature;
                bring_tile<INSIDE>(target, count, depth, [&](int side, int at) { return from + side * features + at; });
            },
            [&](int input, int image, float sum) { d.in.give<1>(image, input, 1, {sum}); });
        return;
    }
    const int block = int(blockIdx.x - d.spread_blocks), slice = block % slices;
    const int length = (n + slices - 1) / slices, first = slice * length;
    product<ACROSS>(
        block / slices, features, inputs + 1, first, first + length < n ? first + length : n,
        [&](float* target, int feature, int count, int image, int depth) {
            const float* from = d.dy + Index(image) * features + feature;
            bring_tile<BESIDE>(target, count, depth, [&](int side, int at) { return from + at * features + side; });
        },
        [&](float* target, int input, int count, int image, int depth) {
            const float* from = d.in.kept + Index(image) * inputs + input;
            bring_tile<BESIDE>(target, count, depth, [&](int side, int at) {
                return input + side < inputs ? from + at * inputs + side : &one;
            });
        },
        [&](int feature, int input, float sum) {
            d.partials[(Index(slice) * features + feature) * (inputs + 1) + input] = sum;
        });
}
