// Strays (S10): channels that leave the range of their arithmetic. A block computes them value by value in `Wide`.
#pragma once

#include "reduce.cuh"
#include "wide.cuh"

// (x 2^-exponent - m1 - delta) r
__device__ __noinline__ Wide normalized(double x, int exponent, double m1, double delta, Wide r) {
    return (wide(x, -exponent) - wide(m1) - wide(delta)) * r;
}

// Call visit(position, values) for the values of a channel in one tile that take part.
template <class Stored, int WALK, int INPUTS, class Visit>
__device__ void each_here(
    const Geometry& g, const Array (&input)[INPUTS], const Array& where, const Place& at, int channel, Visit visit) {
#pragma unroll 1
    for (int i = threadIdx.x; i < positions_here(g, at); i += THREADS) {
        if (WALK == ANY && where.data && !*address<const bool, WALK>(g, where, at, channel, i)) continue;
        RealOf<Stored> value[INPUTS];
#pragma unroll
        for (int k = 0; k < INPUTS; ++k) value[k] = widen(*address<const Stored, WALK>(g, input[k], at, channel, i));
        visit(i, value);
    }
}

// The same for all positions from `begin` to `end`, tile by tile; it moves the place.
template <class Stored, int WALK, int INPUTS, class Visit>
__device__ void each(
    const Geometry& g, const Array (&input)[INPUTS], const Array& where, Place& at, int channel, Index begin, Index end,
    Visit visit) {
    for (Index from = begin; from < end && from < g.count; from += positions(g)) {
        __syncthreads();
        if (threadIdx.x == 0) place(at, g, at.first_channel, from);
        __syncthreads();
        each_here<Stored, WALK>(g, input, where, at, channel, visit);
    }
}

// Add up over a block; each of its threads gets the sum.
__device__ __noinline__ Wide block_sum(Wide sum, Wide* parts) {
#pragma unroll 1
    for (int step = 1; step < WARP; step *= 2) {
        sum = sum + Wide{__shfl_xor_sync(ALL, sum.part, step), __shfl_xor_sync(ALL, sum.exponent, step)};
    }
    __syncthreads();
    if (lane() == 0) parts[warp()] = sum;
    __syncthreads();
    sum = parts[0];
#pragma unroll 1
    for (int k = 1; k < WARPS; ++k) sum = sum + parts[k];
    return sum;
}
