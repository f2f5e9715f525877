// Dense layers, as products of matrices.
//
// Each element of a product is one sum, in order. The gradient of a weight is the sum of slices of the batch, which are
// added when the weights change. There are no atomics.
#include "maps.cuh"

struct Dense {
    Map in;
    Index n, features, slices, spread_blocks;
    const float *weight, *bias, *dy;  // weight: (features, inputs)
    float *y, *partials;              // partials: (slices, features, inputs + 1), the last column for the bias
};

inline constexpr int SIDE = 16, DEPTH = 64;
static_assert(SIDE * SIDE == THREADS);

// put(row, column, sum of left(row, k) * right(k, column)) for a tile of SIDE x SIDE; k from `first` to `last`.
// fill_right(target, cut) fills a tile in shared memory with cut(right). Tiles are small, because matrices are,
// and many blocks wait for memory at the same time.
template <class Left, class Right, class Put>
__device__ void product(int tile, int rows, int columns, int first, int last, Left left, Right fill_right, Put put) {
    extern __shared__ uint4 memory[];
    float* l = reinterpret_cast<float*>(memory);  // (SIDE, DEPTH)
    float* r = l + SIDE * DEPTH;                  // (DEPTH, SIDE)
    const int across = (columns + SIDE - 1) / SIDE;
    const int top = tile / across * SIDE, side = tile % across * SIDE;
    const int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    float sum = 0;
    for (int start = first; start < last; start += DEPTH) {
        __syncthreads();
        const auto load_left = [&](int n) {
            const int i = top + n / DEPTH, k = start + n % DEPTH;
            return i < rows && k < last ? left(i, k) : 0.0f;
        };
        fill(l, SIDE * DEPTH, load_left, unchanged);
        fill_right(r, [&](auto load) {
            return [&, load](int n) {
                const int k = start + n / SIDE, j = side + n % SIDE;
                return k < last && j < columns ? load(k, j) : 0.0f;
            };
        });
        __syncthreads();
        const int here = last - start < DEPTH ? last - start : DEPTH;
#pragma unroll 16
        for (int k = 0; k < here; ++k) sum = fmaf(l[row * DEPTH + k], r[k * SIDE + column], sum);
    }
    if (top + row < rows && side + column < columns) put(top + row, side + column, sum);
}

__global__ void __launch_bounds__(THREADS) multiply(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features);
    product(
        blockIdx.x, features, int(d.n), 0, inputs,
        [&](int feature, int k) { return d.weight[Index(feature) * inputs + k]; },
        [&](float* target, auto cut) {
            d.in.with_loads([&](auto load) {
                const auto right = cut([&](int k, int image) { return load(image, k); });
                fill(target, SIDE * DEPTH, right, [&](float value) { return d.in.activated(value); });
            });
        },
        [&](int feature, int image, float sum) { d.y[Index(image) * features + feature] = sum + d.bias[feature]; });
}

// The gradients of the input, which the first blocks compute, and of weights and bias.
__global__ void __launch_bounds__(THREADS) multiply_back(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features), n = int(d.n), slices = int(d.slices);
    if (blockIdx.x < d.spread_blocks) {
        product(
            blockIdx.x, inputs, n, 0, features,
            [&](int input, int feature) { return d.weight[Index(feature) * inputs + input]; },
            [&](float* target, auto cut) {
                const auto right = cut([&](int feature, int image) { return d.dy[Index(image) * features + feature]; });
                fill(target, SIDE * DEPTH, right, unchanged);
            },
            [&](int input, int image, float sum) { d.in.give(image, input, sum); });
        return;
    }
    const int block = int(blockIdx.x - d.spread_blocks), slice = block % slices;
    const int length = (n + slices - 1) / slices, first = slice * length;
    product(
        block / slices, features, inputs + 1, first, first + length < n ? first + length : n,
        [&](int feature, int image) { return d.dy[Index(image) * features + feature]; },
        [&](float* target, auto cut) {
            d.in.with_loads([&](auto load) {
                const auto right = cut([&](int image, int input) {
                    return input == inputs ? 1.0f : d.in.activated(load(image, input));
                });
                fill(target, SIDE * DEPTH, right, unchanged);
            });
        },
        [&](int feature, int input, float sum) {
            d.partials[(Index(slice) * features + feature) * (inputs + 1) + input] = sum;
        });
}
