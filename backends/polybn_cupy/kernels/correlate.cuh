// The sums of a convolution, of images in shared memory. A thread computes neighbours in a row together, from vectors of
// four numbers, so that a multiply-add costs little more than one instruction.
#pragma once

#include "maps.cuh"

// How shared memory and the threads of a block are divided; tasks.py computes it. A share is a part of the sum of an
// output, a piece one of the sum of a weight; each has a thread of its own.
struct Cut {
    Index stage, pitch, shares, blocks;  // planes in shared memory at once; numbers in a row of a plane; blocks an image
};

inline constexpr int ALONG = 4;  // neighbours in a row
inline constexpr int OUTS = 2;   // outputs of one place that a thread computes, and features whose weights it computes
inline constexpr int UNITS = 2;  // such tasks of each thread
using Four = Pack<float, ALONG>;
using Outs = Pack<float, OUTS>;

__device__ inline int up(int number, int step) { return (number + step - 1) / step; }

// Fetch planes of an image, in rows of `pitch` numbers; those after the last are 0. One block keeps what it reads.
__device__ inline void fetch_planes(
    const Map& in, float* target, int image, int first, int count, int pitch, bool keep) {
    const int lines = count * int(in.height.number), wide = int(in.width.number), start = first * in.area();
    const int spare = pitch - wide;
    float* kept = keep ? in.kept + image * Index(in.values()) + start : nullptr;
    const auto put = [&](int n, float value) {
        const float result = in.activated(value);
        target[n + in.width.divide(n) * spare] = result;
        if (keep) kept[n] = result;
    };
    if (in.images && in.size == 1) {
        const unsigned char* from = in.picture(image) + start;
        transfer<4>(lines * wide, [&](int n) { return from[n]; }, [&](int n, float byte) { put(n, byte / 255.0f); });
    } else {
        in.with_loads([&](auto load) { transfer<4>(lines * wide, [&](int n) { return load(image, start + n); }, put); });
    }
    if (spare == 0) return;
    const Divisor by_spare(spare);
    for (int n = threadIdx.x; n < lines * spare; n += THREADS) {
        const int line = by_spare.divide(n);
        target[line * pitch + wide + n - line * spare] = 0;
    }
}

// Start to copy lines of `wide` numbers, V at a time, to rows of `pitch` numbers after a margin; the rest is 0.
template <int V>
__device__ void bring_lines_by(float* target, const float* from, int lines, int wide, int pitch, int margin) {
    const Divisor by_row(pitch / V);
    for (int n = threadIdx.x; n < lines * (pitch / V); n += THREADS) {
        const int line = by_row.divide(n), column = (n - line * (pitch / V)) * V - margin;
        float* to = target + n * V;
        if (column >= 0 && column < wide) {
            copy_async<V>(to, from + line * wide + column);
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) to[i] = 0;
        }
    }
}

__device__ inline void bring_lines(float* target, const float* from, int lines, int wide, int pitch, int margin) {
    if (wide % ALONG == 0 && margin % ALONG == 0) bring_lines_by<ALONG>(target, from, lines, wide, pitch, margin);
    else bring_lines_by<1>(target, from, lines, wide, pitch, margin);
}

// Start to copy weights, which are at weight(z, out), to shared memory. In memory neighbours are the taps, and then planes
// or, with FLIP, outputs. A last output that would complete a vector gets 0.
// A thread copies a row of a kernel.
template <int KERNEL, bool FLIP, class Weight>
__device__ void bring_weights(float* target, int outs, int planes, int stage, Weight weight) {
    const int padded = up(outs, OUTS) * OUTS;
    const Divisor by(FLIP ? padded : planes);
    for (unsigned n = threadIdx.x; n < unsigned(padded * planes * KERNEL); n += THREADS) {
        const unsigned line = n / KERNEL, row = n - line * KERNEL, outer = by.divide(line), inner = line - outer * by.number;
        const unsigned out = FLIP ? inner : outer, z = FLIP ? outer : inner;
        float* to = target + ((out / OUTS * stage + z) * KERNEL + row) * KERNEL * OUTS + out % OUTS;
        const float* from = weight(int(z), int(out)) + row * KERNEL;
#pragma unroll
        for (int j = 0; j < KERNEL; ++j) {
            if (int(out) < outs) copy_async<1>(to + j * OUTS, from + j);
            else to[j * OUTS] = 0;
        }
    }
}

// What `correlate` reads: `depth` planes of `high` x `wide` numbers; `down` x `across` outputs of each.
struct Planes {
    int depth, high, across, down;
};

// Multiply-adds of one row of a kernel with ALONG outputs in a row.
template <int KERNEL, bool FLIP>
__device__ void slide(Four (&sum)[OUTS], const float* x, const Outs* weight) {
    constexpr int FOURS = (ALONG + KERNEL - 1 + ALONG - 1) / ALONG;
    float value[FOURS * ALONG];
#pragma unroll
    for (int k = 0; k < FOURS; ++k) {
        const Four four = reinterpret_cast<const Four*>(x)[k];
#pragma unroll
        for (int i = 0; i < ALONG; ++i) value[k * ALONG + i] = four.value[i];
    }
#pragma unroll
    for (int j = 0; j < KERNEL; ++j) {
        const Outs outs = weight[j];
#pragma unroll
        for (int f = 0; f < OUTS; ++f) {
#pragma unroll
            for (int i = 0; i < ALONG; ++i) {
                sum[f].value[i] = fmaf(outs.value[f], value[(FLIP ? KERNEL - 1 - j : j) + i], sum[f].value[i]);
            }
        }
    }
}

// put(out, row, column, count, sums) for one part of the outputs; each is a sum of weight(z, out)[tap] * plane z, over
// planes and taps. Without FLIP a tap is a step down and to the right. With FLIP it is one up and to the left, and there
// is nothing above and below the plane. fetch(target, z, count) brings some planes to shared memory.
template <int KERNEL, bool FLIP, class Fetch, class Weight, class Put>
__device__ void correlate(int part, const Cut& cut, Planes planes, int outs, Fetch fetch, Weight weight, Put put) {
    constexpr int TAPS = KERNEL * KERNEL, ROWS = FLIP ? 1 : KERNEL;
    extern __shared__ uint4 memory[];
    const int stage = int(cut.stage), pitch = int(cut.pitch), shares = int(cut.shares), groups = up(outs, OUTS);
    const int area = planes.high * pitch, fours = up(planes.across, ALONG);
    float* x = reinterpret_cast<float*>(memory);                 // (stage, high, pitch)
    Outs* w = reinterpret_cast<Outs*>(x + stage * area);         // (groups, stage, TAPS)
    const Divisor by_shares(shares), by_fours(fours), by_groups(groups);
    int row[UNITS], column[UNITS], group[UNITS], share[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
        const int unit = (part * UNITS + u) * THREADS + int(threadIdx.x), rest = by_shares.divide(unit);
        const int upper = by_fours.divide(rest);
        share[u] = unit - rest * shares, column[u] = (rest - upper * fours) * ALONG;
        row[u] = by_groups.divide(upper), group[u] = upper - row[u] * groups;
    }
    Four sum[UNITS][OUTS] = {};
    for (int start = 0; start < planes.depth; start += stage) {
        const int here = planes.depth - start < stage ? planes.depth - start : stage;
        __syncthreads();
        bring_weights<KERNEL, FLIP>(reinterpret_cast<float*>(w), outs, here, stage, [&](int z, int out) {
            return weight(start + z, out);
        });
        fetch(x, start, here);
        arrived();
        __syncthreads();
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            if (row[u] >= planes.down) continue;
            for (int z = share[u]; z < here; z += shares) {
                const float* from = x + z * area + column[u];
                const Outs* mine = w + (group[u] * stage + z) * TAPS;
                // Above and below the plane there is nothing, so some rows of the kernel are left out.
                const int begin = FLIP && row[u] >= planes.high ? row[u] - planes.high + 1 : 0;
                const int end = FLIP && row[u] < KERNEL ? row[u] + 1 : KERNEL;
#pragma unroll ROWS
                for (int i = begin; i < end; ++i) {
                    slide<KERNEL, FLIP>(sum[u], from + (FLIP ? row[u] - i : row[u] + i) * pitch, mine + i * KERNEL);
                }
            }
        }
    }
    for (int step = 1; step < shares; step *= 2) {
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
#pragma unroll
            for (int f = 0; f < OUTS; ++f) {
#pragma unroll
                for (int i = 0; i < ALONG; ++i) sum[u][f].value[i] += __shfl_xor_sync(0xffffffffu, sum[u][f].value[i], step);
            }
        }
    }
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
#pragma unroll
        for (int f = 0; f < OUTS; ++f) {
            const int out = group[u] * OUTS + f, left = planes.across - column[u];
            const bool mine = f % shares == share[u] && row[u] < planes.down && out < outs;
            if (mine) put(out, row[u], column[u], left < ALONG ? left : ALONG, sum[u][f]);
        }
    }
}
