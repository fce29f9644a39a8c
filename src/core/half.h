// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

// fp16 and bf16 to and from fp32, rounding to nearest, ties to even; a NaN stays a NaN. Internal linkage
// throughout: files built for several instruction sets include this.
namespace turboquant::core {

static inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float half_to_float(std::uint16_t half) {
  // Shift the fields into place, then let a multiplication by 2^112 rebias the exponent, subnormals included.
  const std::uint32_t magnitude = (half & 0x7fffu) << 13;
  const float rebiased = float_of_bits(magnitude) * 0x1p112f;
  const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity and NaN
  return float_of_bits(bits_of_float(rebiased) | special | (half & 0x8000u) << 16);
}

static inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 2^16 and above
  if (magnitude <
      0x38800000u) {  // subnormal or zero: adding 1/2 leaves the rounded steps of 2^-24 in the low bits
    const float shifted = float_of_bits(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000u));
  }
  const std::uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

// The same with finite values beyond the largest fp16 clamped to it.
static inline std::uint16_t float_to_half_clamped(float value) {
  const std::uint16_t half = float_to_half(value);
  const bool clamp = (half & 0x7fffu) == 0x7c00u && (bits_of_float(value) & 0x7fffffffu) < 0x7f800000u;
  return clamp ? static_cast<std::uint16_t>((half & 0x8000u) | 0x7bffu) : half;
}

static inline float bfloat_to_float(std::uint16_t bfloat) {
  return float_of_bits(static_cast<std::uint32_t>(bfloat) << 16);
}

static inline std::uint16_t float_to_bfloat(float value) {
  const std::uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace turboquant::core
