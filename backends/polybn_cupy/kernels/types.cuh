// How values are stored, and what they are computed in (S6): half types store, float and double compute.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using Index = long long;  // positions in memory: a tensor may hold more than 2^31 values

inline constexpr int THREADS = 256;  // of a block; the launcher reads it from here
inline constexpr int BLOCKS = 3;      // of one multiprocessor, which the compiler leaves registers for
inline constexpr int WARP = 32;
inline constexpr int WARPS = THREADS / WARP;

template <class Stored>
struct Arithmetic {
    using Real = float;
};
template <>
struct Arithmetic<double> {
    using Real = double;
};
template <class Stored>
using RealOf = typename Arithmetic<Stored>::Real;

__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }

__device__ inline void narrow(float value, __half& stored) { stored = __float2half_rn(value); }
__device__ inline void narrow(float value, __nv_bfloat16& stored) { stored = __float2bfloat16_rn(value); }
__device__ inline void narrow(float value, float& stored) { stored = value; }
__device__ inline void narrow(double value, double& stored) { stored = value; }

// value * 2^exponent, exactly where the result is a normal number.
__device__ inline float scaled(float value, int exponent) { return exponent ? ldexpf(value, exponent) : value; }
__device__ inline double scaled(double value, int exponent) { return exponent ? ldexp(value, exponent) : value; }

__device__ inline float root(float value) { return sqrtf(value); }
__device__ inline double root(double value) { return sqrt(value); }

__device__ inline float magnitude(float value) { return fabsf(value); }
__device__ inline double magnitude(double value) { return fabs(value); }

// Infinity and NaN fail, without a library function that a compiler option could define away.
template <class Real>
__device__ bool is_finite(Real value) {
    return value - value == 0;
}

__device__ inline double not_a_number() { return __longlong_as_double(0x7ff8000000000000); }

template <class Real>
struct Range;
template <>
struct Range<float> {
    static constexpr float floor = 0x1p-62f;  // 2^64 times the smallest normal number
};
template <>
struct Range<double> {
    static constexpr double floor = 0x1p-958;
};

// V neighbours in memory, moved at once.
template <class Stored, int V>
struct alignas(sizeof(Stored) * V) Pack {
    Stored value[V];
};
