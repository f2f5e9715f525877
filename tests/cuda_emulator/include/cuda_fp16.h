// float16 for the emulation: the compiler's own type, which rounds to nearest as the device does.
#pragma once

struct __half {
    _Float16 value;
};

inline float __half2float(__half stored) { return stored.value; }
inline __half __float2half_rn(float value) { return {static_cast<_Float16>(value)}; }
