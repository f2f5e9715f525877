// All layers of a network except batch norm, in float: convolutions, dense layers, pooling with a sigmoid, loss and
// SGD.
//
// Activations have shape (n, channels, height, width). A dense layer is a convolution whose kernel is as large as its
// input. The order of sums is fixed: there are no atomics, and partial sums of a batch are added one after the other.
#include "types.cuh"

struct Convolution {
    Index n, channels, height, width, features, kernel_height, kernel_width, slices;
    const float *x, *weight, *bias, *dy;
    float *y, *dx, *partials;  // partials: (slices, features, kernel + 1), the last column for the bias

    __device__ int out_height() const { return int(height - kernel_height) + 1; }
    __device__ int out_width() const { return int(width - kernel_width) + 1; }
    __device__ int outputs() const { return out_height() * out_width(); }
    __device__ int taps() const { return int(channels * kernel_height * kernel_width); }

    // The input under a tap of the kernel, for one output of the batch.
    __device__ float under(int tap, int output) const {
        const int image = output / outputs(), place = output % outputs();
        const int across = tap % int(kernel_width), rest = tap / int(kernel_width);
        const int down = rest % int(kernel_height), channel = rest / int(kernel_height);
        const int row = place / out_width() + down, column = place % out_width() + across;
        return x[((image * channels + channel) * height + row) * width + column];
    }
};

inline constexpr int ROWS = 16, COLUMNS = 64, DEPTH = 16, EACH = COLUMNS * ROWS / THREADS;

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
        {
            const int i = t / DEPTH, k = t % DEPTH;
            l[i * (DEPTH + 1) + k] = top + i < rows && start + k < last ? left(top + i, start + k) : 0;
        }
        for (int n = t; n < DEPTH * COLUMNS; n += THREADS) {
            const int k = n / COLUMNS, j = n % COLUMNS;
            r[n] = side + j < columns && start + k < last ? right(start + k, side + j) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            for (int e = 0; e < EACH; ++e) {
                sum[e] = fmaf(l[row * (DEPTH + 1) + k], r[k * COLUMNS + column + e * (COLUMNS / EACH)], sum[e]);
            }
        }
    }
    for (int e = 0; e < EACH; ++e) {
        const int at = side + column + e * (COLUMNS / EACH);
        if (top + row < rows && at < columns) put(top + row, at, sum[e]);
    }
}

__global__ void __launch_bounds__(THREADS) convolve(const __grid_constant__ Convolution c) {
    const int taps = c.taps(), outputs = c.outputs();
    product(
        blockIdx.x, int(c.features), int(c.n) * outputs, 0, taps,
        [&](int feature, int tap) { return c.weight[feature * taps + tap]; },
        [&](int tap, int output) { return c.under(tap, output); },
        [&](int feature, int output, float sum) {
            c.y[(output / outputs * c.features + feature) * outputs + output % outputs] = sum + c.bias[feature];
        });
}

// The gradient of weights and bias, for a slice of the batch's outputs.
__global__ void __launch_bounds__(THREADS) weigh(const __grid_constant__ Convolution c) {
    const int taps = c.taps(), outputs = c.outputs(), all = int(c.n) * outputs, slices = int(c.slices);
    const int slice = blockIdx.x % slices, length = (all + slices - 1) / slices, first = slice * length;
    product(
        blockIdx.x / slices, int(c.features), taps + 1, first, first + length < all ? first + length : all,
        [&](int feature, int output) {
            return c.dy[(output / outputs * c.features + feature) * outputs + output % outputs];
        },
        [&](int output, int tap) { return tap == taps ? 1.0f : c.under(tap, output); },
        [&](int feature, int tap, float sum) {
            c.partials[(Index(slice) * c.features + feature) * (taps + 1) + tap] = sum;
        });
}

// The gradient of the input.
__global__ void __launch_bounds__(THREADS) spread(const __grid_constant__ Convolution c) {
    const int high = int(c.kernel_height), wide = int(c.kernel_width), area = high * wide;
    const int pixels = int(c.height * c.width);
    product(
        blockIdx.x, int(c.channels), int(c.n) * pixels, 0, int(c.features) * area,
        [&](int channel, int k) { return c.weight[(k / area * c.channels + channel) * area + k % area]; },
        [&](int k, int pixel) {
            const int image = pixel / pixels, row = pixel % pixels / int(c.width) - k % area / wide;
            const int column = pixel % int(c.width) - k % wide;
            const bool there = row >= 0 && row < c.out_height() && column >= 0 && column < c.out_width();
            const Index plane = image * c.features + k / area;
            return there ? c.dy[plane * c.outputs() + row * c.out_width() + column] : 0.0f;
        },
        [&](int channel, int pixel, float sum) {
            c.dx[(pixel / pixels * c.channels + channel) * pixels + pixel % pixels] = sum;
        });
}

struct Pool {
    Index planes, height, width, size, sigmoid;
    const float *x, *dy;
    float *y, *dx;
    unsigned char* winner;  // the place of each maximum in its square
};

__device__ inline Index element() { return Index(blockIdx.x) * THREADS + threadIdx.x; }

// The maximum over squares, then the sigmoid; it is increasing, so their order does not matter. Of equals, the first
// wins.
__global__ void __launch_bounds__(THREADS) pool(const __grid_constant__ Pool p) {
    const Index wide = p.width / p.size, high = p.height / p.size, at = element();
    if (at >= p.planes * high * wide) return;
    const Index column = at % wide * p.size, row = at / wide % high * p.size, plane = at / wide / high;
    const float* x = p.x + (plane * p.height + row) * p.width + column;
    float best = x[0];
    int winner = 0;
    for (int i = 1; i < p.size * p.size; ++i) {
        const float value = x[i / p.size * p.width + i % p.size];
        if (value > best || value != value) best = value, winner = i;
    }
    p.y[at] = p.sigmoid ? 1 / (1 + expf(-best)) : best;
    p.winner[at] = (unsigned char)winner;
}

__global__ void __launch_bounds__(THREADS) unpool(const __grid_constant__ Pool p) {
    const Index wide = p.width / p.size, high = p.height / p.size, at = element();
    if (at >= p.planes * p.height * p.width) return;
    const Index column = at % p.width, row = at / p.width % p.height, plane = at / p.width / p.height;
    const Index from = (plane * high + row / p.size) * wide + column / p.size;
    const float y = p.y[from], dy = p.sigmoid ? p.dy[from] * (y * (1 - y)) : p.dy[from];
    p.dx[at] = p.winner[from] == row % p.size * p.size + column % p.size ? dy : 0;
}

struct Batch {
    Index n, pixels, classes;
    const unsigned char *images, *labels;
    const Index* order;  // null: as they come
    Index* progress;     // numbers of images and steps that are done
    float *x, *logits, *gradient, *scores;
    double* losses;  // of each step: the mean loss, and how many labels were right
};

// Convert the images of a step to numbers from 0 to 1.
__global__ void __launch_bounds__(THREADS) gather(const __grid_constant__ Batch b) {
    const Index at = element(), image = at / b.pixels;
    if (image >= b.n) return;
    const Index from = b.progress[0] + image;
    b.x[at] = float(b.images[(b.order ? b.order[from] : from) * b.pixels + at % b.pixels]) / 255.0f;
}

// Compute the loss of a step and its gradient in one block, and count the step as done.
__global__ void __launch_bounds__(THREADS) judge(const __grid_constant__ Batch b) {
    extern __shared__ uint4 memory[];
    double* loss = reinterpret_cast<double*>(memory);
    double* right = loss + THREADS;
    loss[threadIdx.x] = right[threadIdx.x] = 0;
    for (Index image = threadIdx.x; image < b.n; image += THREADS) {
        const float* z = b.logits + image * b.classes;
        float* gradient = b.gradient + image * b.classes;
        const int label = b.labels[b.order[b.progress[0] + image]];
        int best = 0;
        for (int k = 1; k < b.classes; ++k) best = z[k] > z[best] ? k : best;
        float total = 0;
        for (int k = 0; k < b.classes; ++k) total += gradient[k] = expf(z[k] - z[best]);
        for (int k = 0; k < b.classes; ++k) gradient[k] = (gradient[k] / total - float(k == label)) / float(b.n);
        loss[threadIdx.x] += log(double(total)) - double(z[label] - z[best]);
        right[threadIdx.x] += best == label;
    }
    __syncthreads();
    if (threadIdx.x) return;
    for (int t = 1; t < THREADS; ++t) loss[0] += loss[t], right[0] += right[t];
    b.losses[2 * b.progress[1]] = loss[0] / double(b.n);
    b.losses[2 * b.progress[1] + 1] = right[0];
    b.progress[0] += b.n;
    b.progress[1] += 1;
}

// Copy the scores to the places of their images.
__global__ void __launch_bounds__(THREADS) deliver(const __grid_constant__ Batch b) {
    for (Index at = threadIdx.x; at < b.n * b.classes; at += THREADS) {
        b.scores[b.progress[0] * b.classes + at] = b.logits[at];
    }
    __syncthreads();
    if (threadIdx.x == 0) b.progress[0] += b.n;
}

struct Descent {
    Index rows, columns, slices;  // columns of the weight, not counting that of the bias
    float *weight, *bias;         // bias may be null: then the gradient has no column for it
    const float* gradient;
    const float* rate;
};

__global__ void __launch_bounds__(THREADS) descend(const __grid_constant__ Descent d) {
    const Index columns = d.columns + (d.bias != nullptr), at = element();
    if (at >= d.rows * columns) return;
    double gradient = 0;
    for (Index slice = 0; slice < d.slices; ++slice) gradient += d.gradient[slice * d.rows * columns + at];
    const Index row = at / columns, column = at % columns;
    float& value = column == d.columns ? d.bias[row] : d.weight[row * d.columns + column];
    value -= d.rate[0] * float(gradient);
}
