// bfloat16 for the emulation: the upper half of a float, rounded to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 stored) {
    const std::uint32_t bits = std::uint32_t(stored.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return {0x7fff};
    bits += 0x7fff + (bits >> 16 & 1);
    return {std::uint16_t(bits >> 16)};
}
