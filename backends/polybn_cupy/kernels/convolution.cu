// Convolutions. A thread computes neighbours in a row together, for several outputs or weights.
//
// The order of sums is fixed: over channels and taps for an output; over the images and outputs of a slice for the
// gradient of a weight, and the slices are added when the weights change. There are no atomics.
#include "correlate.cuh"

struct Convolution {
    Map in;
    Index n, features;
    Cut forward, spread;
    Index spread_blocks, slices, together, channels_each, features_each, pieces, pitch, dy_pitch;  // of `weigh`
    const float *weight, *bias, *dy;
    float *y, *partials;  // partials: (slices, features, taps + 1), the last column for the bias
};

template <int KERNEL>
__global__ void __launch_bounds__(THREADS, BLOCKS) convolve(const __grid_constant__ Convolution c) {
    constexpr int TAPS = KERNEL * KERNEL;
    const int channels = int(c.in.channels), high = int(c.in.height.number), wide = int(c.in.width.number);
    const int features = int(c.features), down = high - KERNEL + 1, across = wide - KERNEL + 1;
    const int image = blockIdx.x / unsigned(c.forward.blocks), part = int(blockIdx.x) - image * int(c.forward.blocks);
    correlate<KERNEL, false>(
        part, c.forward, {channels, high, across, down}, features,
        [&](float* target, int first, int count) {
            fetch_planes(c.in, target, image, first, count, int(c.forward.pitch), part == 0);
        },
        [&](int channel, int feature) { return c.weight + (feature * channels + channel) * TAPS; },
        [&](int feature, int row, int column, int count, const Four& sum) {
            float* y = c.y + ((Index(image) * features + feature) * down + row) * across + column;
            const float bias = c.bias[feature];
#pragma unroll
            for (int i = 0; i < ALONG; ++i) {
                if (i < count) y[i] = sum.value[i] + bias;
            }
        });
}

// Add up, for one row of the kernel and OUTS features, products of outputs' gradients and inputs, over rows of images.
template <int KERNEL>
__device__ void weigh_rows(
    float (&sum)[OUTS][KERNEL], const float* x, const float* const (&dy)[OUTS], int fours) {
    constexpr int FOURS = (ALONG + KERNEL - 1 + ALONG - 1) / ALONG;
#pragma unroll 2
    for (int k = 0; k < fours; ++k) {
        float value[FOURS * ALONG];
#pragma unroll
        for (int m = 0; m < FOURS; ++m) {
            const Four four = reinterpret_cast<const Four*>(x)[k + m];
#pragma unroll
            for (int i = 0; i < ALONG; ++i) value[m * ALONG + i] = four.value[i];
        }
#pragma unroll
        for (int f = 0; f < OUTS; ++f) {
            const Four four = reinterpret_cast<const Four*>(dy[f])[k];
#pragma unroll
            for (int i = 0; i < ALONG; ++i) {
#pragma unroll
                for (int j = 0; j < KERNEL; ++j) sum[f][j] = fmaf(four.value[i], value[i + j], sum[f][j]);
            }
        }
    }
}

// The gradients of some weights, and for the first channels those of the biases, from a slice of the images. The bias is
// the weight of an input that is 1 everywhere.
template <int KERNEL>
__device__ void weigh(const Convolution& c, int block) {
    constexpr int TAPS = KERNEL * KERNEL;
    extern __shared__ uint4 memory[];
    const int channels = int(c.in.channels), high = int(c.in.height.number), wide = int(c.in.width.number);
    const int features = int(c.features), down = high - KERNEL + 1, across = wide - KERNEL + 1;
    const int pitch = int(c.pitch), dy_pitch = int(c.dy_pitch), together = int(c.together), pieces = int(c.pieces);
    const int channel_parts = up(channels, int(c.channels_each)), feature_parts = up(features, int(c.features_each));
    const int slice = block / channel_parts / feature_parts, part = block - slice * channel_parts * feature_parts;
    const int channel = part % channel_parts * int(c.channels_each), feature = part / channel_parts * int(c.features_each);
    const int some = channels - channel < c.channels_each ? channels - channel : int(c.channels_each);
    const int many = features - feature < c.features_each ? features - feature : int(c.features_each);
    const int rows = some * KERNEL + (channel == 0), pairs = up(many, OUTS), units = rows * pairs;

    float* ones = reinterpret_cast<float*>(memory);
    float* x = ones + pitch;                              // (together, some, high, pitch)
    float* dy = x + together * some * high * pitch;       // (together, many, down, dy_pitch)
    for (int n = threadIdx.x; n < pitch; n += THREADS) ones[n] = 1;
    const Divisor by_pairs(pairs), by_units(units), by_down(down);
    const int piece = by_units.divide(int(threadIdx.x)), unit = int(threadIdx.x) - piece * units;
    const int row = by_pairs.divide(unit), first = (unit - row * pairs) * OUTS;
    const bool bias = row == some * KERNEL;
    const int under = bias ? 0 : row / KERNEL * high + row % KERNEL;
    const int length = int((c.n + c.slices - 1) / c.slices), begin = slice * length;
    const int end = int(begin + length < c.n ? begin + length : c.n);
    float sum[OUTS][KERNEL] = {};
    for (int start = begin; start < end; start += together) {
        const int here = end - start < together ? end - start : together;
        __syncthreads();
        for (int m = 0; m < here; ++m) {
            const float* read = c.in.kept + (Index(start + m) * channels + channel) * high * wide;
            bring_lines(x + m * some * high * pitch, read, some * high, wide, pitch, 0);
            const float* from = c.dy + (Index(start + m) * features + feature) * down * across;
            bring_lines(dy + m * many * down * dy_pitch, from, many * down, across, dy_pitch, 0);
        }
        arrived();
        __syncthreads();
        if (piece >= pieces) continue;
        for (int line = piece; line < here * down; line += pieces) {
            const int m = by_down.divide(line), at = line - m * down;
            const float* mine[OUTS];
#pragma unroll
            for (int f = 0; f < OUTS; ++f) {
                const int of = first + f < many ? first + f : first;
                mine[f] = dy + ((m * many + of) * down + at) * dy_pitch;
            }
            weigh_rows<KERNEL>(sum, bias ? ones : x + (m * some * high + under + at) * pitch, mine, dy_pitch / ALONG);
        }
    }
    // Add up the pieces.
    float* scratch = reinterpret_cast<float*>(memory);  // (pieces, units, OUTS, KERNEL)
    __syncthreads();
    if (piece < pieces) {
#pragma unroll
        for (int f = 0; f < OUTS; ++f) {
#pragma unroll
            for (int j = 0; j < KERNEL; ++j) scratch[(int(threadIdx.x) * OUTS + f) * KERNEL + j] = sum[f][j];
        }
    }
    __syncthreads();
    for (int n = threadIdx.x; n < units * OUTS * KERNEL; n += THREADS) {
        const int j = n % KERNEL, of = by_pairs.divide(n / KERNEL / OUTS), tap = of % KERNEL * KERNEL + j;
        const int out = (n / KERNEL / OUTS - of * pairs) * OUTS + n / KERNEL % OUTS;
        if (out >= many || (of == some * KERNEL && j > 0)) continue;
        float total = 0;
        for (int p = 0; p < pieces; ++p) total += scratch[p * units * OUTS * KERNEL + n];
        const int column = of == some * KERNEL ? channels * TAPS : (channel + of / KERNEL) * TAPS + tap;
        c.partials[(Index(slice) * features + feature + out) * (channels * TAPS + 1) + column] = total;
    }
}

// The gradients of the input, which the first blocks compute, and of weights and bias.
template <int KERNEL>
__global__ void __launch_bounds__(THREADS, BLOCKS) pull(const __grid_constant__ Convolution c) {
    constexpr int TAPS = KERNEL * KERNEL, MARGIN = KERNEL - 1;
    if (blockIdx.x >= c.spread_blocks) {
        weigh<KERNEL>(c, int(blockIdx.x - c.spread_blocks));
        return;
    }
    const int channels = int(c.in.channels), high = int(c.in.height.number), wide = int(c.in.width.number);
    const int features = int(c.features), down = high - MARGIN, across = wide - MARGIN;
    const int image = blockIdx.x / unsigned(c.spread.blocks), part = int(blockIdx.x) - image * int(c.spread.blocks);
    correlate<KERNEL, true>(
        part, c.spread, {features, down, wide, high}, channels,
        [&](float* target, int first, int count) {
            const float* from = c.dy + (Index(image) * features + first) * down * across;
            bring_lines(target, from, count * down, across, int(c.spread.pitch), MARGIN);
        },
        [&](int feature, int channel) { return c.weight + (feature * channels + channel) * TAPS; },
        [&](int channel, int row, int column, int count, const Four& sum) {
            c.in.give(image, (channel * high + row) * wide + column, count, sum);
        });
}
