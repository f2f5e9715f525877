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

inline constexpr int ROWS = 16, COLUMNS = 64, DEPTH = 64, EACH = COLUMNS * ROWS / THREADS;

// put(row, column, sum of left(row, k) * right(k, column)) for a tile of ROWS x COLUMNS; k from `first` to `last`.
template <class Left, class Right, class Put>
__device__ void product(int tile, int rows, int columns, int first, int last, Left left, Right right, Put put) {
    extern __shared__ uint4 memory[];
    float* l = reinterpret_cast<float*>(memory);  // (ROWS, DEPTH + 1)
    float* r = l + ROWS * (DEPTH + 1);            // (DEPTH, COLUMNS)
    const int across = (columns + COLUMNS - 1) / COLUMNS, t = threadIdx.x;
    const int top = tile / across * ROWS, side = tile % across * COLUMNS;
    const int row = t / (COLUMNS / EACH), column = t % (COLUMNS / EACH);
    float sum[EACH] = {};
    for (int start = first; start < last; start += DEPTH) {
        __syncthreads();
        // All loads of a step are in flight together, because a small matrix has few blocks to wait with.
#pragma unroll
        for (int n = t; n < ROWS * DEPTH; n += THREADS) {
            const int i = n / DEPTH, k = n % DEPTH;
            l[i * (DEPTH + 1) + k] = top + i < rows && start + k < last ? left(top + i, start + k) : 0;
        }
#pragma unroll
        for (int n = t; n < DEPTH * COLUMNS; n += THREADS) {
            const int k = n / COLUMNS, j = n % COLUMNS;
            r[n] = side + j < columns && start + k < last ? right(start + k, side + j) : 0;
        }
        __syncthreads();
#pragma unroll 16
        for (int k = 0; k < DEPTH; ++k) {
#pragma unroll
            for (int e = 0; e < EACH; ++e) {
                sum[e] = fmaf(l[row * (DEPTH + 1) + k], r[k * COLUMNS + column + e * (COLUMNS / EACH)], sum[e]);
            }
        }
    }
#pragma unroll
    for (int e = 0; e < EACH; ++e) {
        const int at = side + column + e * (COLUMNS / EACH);
        if (top + row < rows && at < columns) put(top + row, at, sum[e]);
    }
}

__global__ void __launch_bounds__(THREADS) multiply(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features);
    product(
        blockIdx.x, features, int(d.n), 0, inputs,
        [&](int feature, int k) { return d.weight[Index(feature) * inputs + k]; },
        [&](int k, int image) { return d.in.read(image, k); },
        [&](int feature, int image, float sum) { d.y[Index(image) * features + feature] = sum + d.bias[feature]; });
}

// The gradients of the input, which the first blocks compute, and of weights and bias.
__global__ void __launch_bounds__(THREADS) multiply_back(const __grid_constant__ Dense d) {
    const int inputs = d.in.values(), features = int(d.features), n = int(d.n), slices = int(d.slices);
    if (blockIdx.x < d.spread_blocks) {
        product(
            blockIdx.x, inputs, n, 0, features,
            [&](int input, int feature) { return d.weight[Index(feature) * inputs + input]; },
            [&](int feature, int image) { return d.dy[Index(image) * features + feature]; },
            [&](int input, int image, float sum) { d.in.give(image, input, sum); });
        return;
    }
    const int block = int(blockIdx.x - d.spread_blocks), slice = block % slices;
    const int length = (n + slices - 1) / slices, first = slice * length;
    product(
        block / slices, features, inputs + 1, first, first + length < n ? first + length : n,
        [&](int feature, int image) { return d.dy[Index(image) * features + feature]; },
        [&](int image, int input) { return input == inputs ? 1.0f : d.in.read(image, input); },
        [&](int feature, int input, float sum) {
            d.partials[(Index(slice) * features + feature) * (inputs + 1) + input] = sum;
        });
}
