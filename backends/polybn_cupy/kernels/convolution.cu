// Convolutions: one image per block, in shared memory, beside the weights.
//
// The order of sums is fixed: over channels and taps for an output; over the images and outputs of a slice for the
// gradient of a weight, and the slices are added when the weights change. There are no atomics.
#include "maps.cuh"

struct Convolution {
    Map in;
    Index n, features, slices, stage;  // stage: how many planes are in shared memory at once
    Index spread_stage, spread_blocks;
    const float *weight, *bias, *dy;
    float *y, *partials;  // partials: (slices, features, taps + 1), the last column for the bias
};

inline constexpr int TOGETHER = 4;  // outputs of one place that a thread adds up together
inline constexpr int UNITS = 2;     // places of each thread
inline constexpr int PAIRS = 2;     // weights of each thread
using Four = Pack<float, TOGETHER>;

__device__ inline int parts(int units, int each) { return (units + THREADS * each - 1) / (THREADS * each); }

struct Planes {
    int depth, stage, high, wide;  // stage: how many are in shared memory at once
};

// put(out, place, sum of weight(z, out, tap) * plane(z, place + tap)) for one part of the outputs; the sum is over planes
// z, and taps. fill_planes(target, z, count) brings some planes to shared memory.
template <int KERNEL, bool FLIP, class Fill, class Weight, class Put>
__device__ void correlate(int part, Planes planes, int outs, Fill fill_planes, Weight weight, Put put) {
    constexpr int TAPS = KERNEL * KERNEL;
    extern __shared__ uint4 memory[];
    const int high = planes.high, wide = planes.wide, depth = planes.depth, stage = planes.stage;
    const int groups = (outs + TOGETHER - 1) / TOGETHER, area = high * wide;
    Four* w = reinterpret_cast<Four*>(memory);                       // (groups, stage, TAPS)
    float* x = reinterpret_cast<float*>(w + groups * stage * TAPS);  // (stage, high, wide)
    const int across = wide - KERNEL + 1, places = (high - KERNEL + 1) * across;
    const int first = part * UNITS * THREADS + int(threadIdx.x);
    float sum[UNITS][TOGETHER] = {};
    for (int start = 0; start < depth; start += stage) {
        const int here = depth - start < stage ? depth - start : stage;
        __syncthreads();
        fill_planes(x, start, here * area);
        const auto load = [&](int n) {
            const int tap = n / TOGETHER % TAPS, row = n / TOGETHER / TAPS, z = row % stage;
            const int out = row / stage * TOGETHER + n % TOGETHER;
            return out < outs && z < here ? weight(start + z, out, tap) : 0.0f;
        };
        fill<8>(reinterpret_cast<float*>(w), groups * stage * TAPS * TOGETHER, load, unchanged);
        __syncthreads();
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const int unit = first + u * THREADS, place = unit % places, group = unit / places;
            if (group >= groups) continue;
            const float* corner = x + place / across * wide + place % across;
            const Four* mine = w + group * stage * TAPS;
            for (int z = 0; z < here; ++z, corner += area, mine += TAPS) {
#pragma unroll
                for (int i = 0; i < KERNEL; ++i) {
                    const float* row = corner + (FLIP ? KERNEL - 1 - i : i) * wide;
#pragma unroll
                    for (int j = 0; j < KERNEL; ++j) {
                        const float value = row[FLIP ? KERNEL - 1 - j : j];
                        const Four four = mine[i * KERNEL + j];
#pragma unroll
                        for (int f = 0; f < TOGETHER; ++f) sum[u][f] = fmaf(four.value[f], value, sum[u][f]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        const int unit = first + u * THREADS, place = unit % places, out = unit / places * TOGETHER;
#pragma unroll
        for (int f = 0; f < TOGETHER; ++f) {
            if (out + f < outs) put(out + f, place, sum[u][f]);
        }
    }
}

__device__ inline int units(int places, int outs) { return places * ((outs + TOGETHER - 1) / TOGETHER); }

template <int KERNEL>
__global__ void __launch_bounds__(THREADS) convolve(const __grid_constant__ Convolution c) {
    constexpr int TAPS = KERNEL * KERNEL;
    const int channels = int(c.in.channels), high = int(c.in.height), wide = int(c.in.width), features = int(c.features);
    const int places = (high - KERNEL + 1) * (wide - KERNEL + 1), split = parts(units(places, features), UNITS);
    const int image = blockIdx.x / split;
    correlate<KERNEL, false>(
        blockIdx.x % split, {channels, int(c.stage), high, wide}, features,
        [&](float* target, int channel, int count) { c.in.fetch(target, count, image, channel * high * wide); },
        [&](int channel, int feature, int tap) { return c.weight[(feature * channels + channel) * TAPS + tap]; },
        [&](int feature, int place, float sum) {
            c.y[(Index(image) * features + feature) * places + place] = sum + c.bias[feature];
        });
}

// The gradient of one channel's weights, and for the first channel of the bias, from a slice of the images.
template <int KERNEL>
__device__ void weigh(const Convolution& c, int block) {
    constexpr int TAPS = KERNEL * KERNEL, COLUMNS = TAPS + 1;
    extern __shared__ uint4 memory[];
    const int channels = int(c.in.channels), high = int(c.in.height), wide = int(c.in.width), features = int(c.features);
    const int across = wide - KERNEL + 1, down = high - KERNEL + 1, places = down * across, area = high * wide;
    const int split = parts(features * COLUMNS, PAIRS), part = block % split, channel = block / split % channels;
    const int slice = block / split / channels, length = int((c.n + c.slices - 1) / c.slices);
    const int lowest = part * PAIRS * THREADS / COLUMNS;
    const int beyond = ((part + 1) * PAIRS * THREADS + COLUMNS - 1) / COLUMNS;
    const int highest = beyond < features ? beyond : features;
    float* x = reinterpret_cast<float*>(memory);
    float* dy = x + area;  // of the features from lowest to highest
    float sum[PAIRS] = {};
    for (Index image = Index(slice) * length; image < Index(slice + 1) * length && image < c.n; ++image) {
        __syncthreads();
        c.in.fetch(x, area, int(image), channel * area);
        const float* from = c.dy + (image * features + lowest) * places;
        fill<8>(dy, (highest - lowest) * places, [from](int n) { return from[n]; }, unchanged);
        __syncthreads();
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            const int pair = (part * PAIRS + p) * THREADS + int(threadIdx.x), feature = pair / COLUMNS, tap = pair % COLUMNS;
            if (feature >= features || (tap == TAPS && channel > 0)) continue;
            const float* mine = dy + (feature - lowest) * places;
            if (tap == TAPS) {
                for (int place = 0; place < places; ++place) sum[p] += mine[place];
                continue;
            }
            const float* under = x + tap / KERNEL * wide + tap % KERNEL;
            for (int row = 0; row < down; ++row, under += wide) {
#pragma unroll 8
                for (int column = 0; column < across; ++column, ++mine) sum[p] = fmaf(*mine, under[column], sum[p]);
            }
        }
    }
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
        const int pair = (part * PAIRS + p) * THREADS + int(threadIdx.x), feature = pair / COLUMNS, tap = pair % COLUMNS;
        if (feature >= features || (tap == TAPS && channel > 0)) continue;
        const int column = tap == TAPS ? channels * TAPS : channel * TAPS + tap;
        c.partials[(Index(slice) * features + feature) * (channels * TAPS + 1) + column] = sum[p];
    }
}

// The gradients of the input, which the first blocks compute, and of weights and bias.
template <int KERNEL>
__global__ void __launch_bounds__(THREADS) pull(const __grid_constant__ Convolution c) {
    constexpr int TAPS = KERNEL * KERNEL, MARGIN = KERNEL - 1;
    if (blockIdx.x >= c.spread_blocks) {
        weigh<KERNEL>(c, int(blockIdx.x - c.spread_blocks));
        return;
    }
    const int channels = int(c.in.channels), high = int(c.in.height), wide = int(c.in.width), features = int(c.features);
    const int across = wide - MARGIN, down = high - MARGIN, split = parts(units(high * wide, channels), UNITS);
    const int image = blockIdx.x / split;
    correlate<KERNEL, true>(
        blockIdx.x % split, {features, int(c.spread_stage), high + MARGIN, wide + MARGIN}, channels,
        [&](float* target, int start, int count) {
            const auto load = [&](int n) {
                const int area = (high + MARGIN) * (wide + MARGIN), feature = start + n / area, at = n % area;
                const int row = at / (wide + MARGIN) - MARGIN, column = at % (wide + MARGIN) - MARGIN;
                const bool there = row >= 0 && row < down && column >= 0 && column < across;
                return there ? c.dy[((Index(image) * features + feature) * down + row) * across + column] : 0.0f;
            };
            fill<8>(target, count, load, unchanged);
        },
        [&](int feature, int channel, int tap) { return c.weight[(feature * channels + channel) * TAPS + tap]; },
        [&](int channel, int place, float sum) { c.in.give(image, channel * high * wide + place, sum); });
}
