// How values are stored, and in which type they are computed (S6): half types only store, float and double compute.
// Half types are plain bits here, so that the kernels need no other headers.
#pragma once

using Index = long long;  // positions in memory: a tensor may hold more than 2^31 values

inline constexpr int THREADS = 256;  // threads per block; plan.py has the same number
inline constexpr int BLOCKS = 3;      // blocks per multiprocessor that must find enough registers
inline constexpr int WARP = 32;
inline constexpr int WARPS = THREADS / WARP;

template <bool VALUE>
struct Bool {
    static constexpr bool value = VALUE;
};
template <int VALUE>
struct Int {
    static constexpr int value = VALUE;
};

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

struct Half {
    unsigned short bits;
};
struct Bfloat {
    unsigned short bits;
};

#ifdef __CUDACC_RTC__  // the tests' emulation defines its own functions
__device__ inline float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ inline unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

// The upper half of a float, rounded to nearest, ties to even.
__device__ inline unsigned short float_to_bfloat(float value) {
    const unsigned bits = __float_as_uint(value);
    return value == value ? (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : (unsigned short)0x7fff;
}

__device__ inline float widen(Half value) { return half_to_float(value.bits); }
__device__ inline float widen(Bfloat value) { return __uint_as_float(unsigned(value.bits) << 16); }
__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }

__device__ inline void narrow(float value, Half& stored) { stored.bits = float_to_half(value); }
__device__ inline void narrow(float value, Bfloat& stored) { stored.bits = float_to_bfloat(value); }
__device__ inline void narrow(float value, float& stored) { stored = value; }
__device__ inline void narrow(double value, double& stored) { stored = value; }

__device__ inline float root(float value) { return sqrtf(value); }
__device__ inline double root(double value) { return sqrt(value); }

__device__ inline float magnitude(float value) { return fabsf(value); }
__device__ inline double magnitude(double value) { return fabs(value); }
__device__ inline int magnitude(int value) { return value < 0 ? -value : value; }

// False for infinity and NaN; not a library function, which compiler options may replace by `true`.
template <class Real>
__device__ bool is_finite(Real value) {
    return value - value == 0;
}

__device__ inline double not_a_number() { return __longlong_as_double(0x7ff8000000000000); }

// The limits of S10. A variance below `floor`, of values below `near`, may have lost digits. A number above `heavy` may
// make a sum or a difference overflow, a gamma above `far` a product. If the means of gradients lie between `least` and
// `far`, their products with other numbers keep their digits. 2^flat is a size that the square root of a variance may
// have; 2^halfway is one factor; 2^steep is the product of two.
template <class Real>
struct Range;
template <>
struct Range<float> {
    static constexpr int digits = 24, flat = 112, halfway = 120, steep = 252;
    static constexpr double floor = 0x1p-62, near = 1, heavy = 0x1p100, least = 0x1p-100, far = 0x1p64;
};
template <>
struct Range<double> {
    static constexpr int digits = 53, flat = 900, halfway = 1000, steep = 2040;
    static constexpr double floor = 0x1p-958, near = 0x1p-400, heavy = 0x1p960, least = 0x1p-900, far = 0x1p512;
};

// V neighbours in memory, which are moved at once.
template <class Stored, int V>
struct alignas(sizeof(Stored) * V) Pack {
    Stored value[V];
};

// The number of values that a lane moves at once.
template <class Stored>
inline constexpr int WIDTH = 16 / int(sizeof(Stored));

// Copy V neighbours from global to shared memory, asynchronously if possible; the copy is complete after arrived().
template <int V, class Stored>
__device__ void copy_async(Stored* target, const Stored* source) {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
    constexpr int BYTES = V * int(sizeof(Stored));
    if constexpr (BYTES >= 4) {
        const unsigned to = unsigned(__cvta_generic_to_shared(target));
        if constexpr (BYTES == 16) {
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(source) : "memory");
        } else {
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(source), "n"(BYTES) : "memory");
        }
        return;
    }
#endif
    *reinterpret_cast<Pack<Stored, V>*>(target) = *reinterpret_cast<const Pack<Stored, V>*>(source);
}
__device__ inline void arrived() {
#if defined(__CUDACC_RTC__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
