// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/encode/curve.h"

// Rules 4 and 5 of kernels/encode_rules.h, two coordinates at a time. A word of fp16 pairs is a
// std::uint32_t.
namespace turboquant::kernels::cuda {

__device__ inline __half2 as_half2(std::uint32_t bits) {
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ inline std::uint32_t bits_of(__half2 pair) {
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

// 1024 + level, for |coordinates| of 11 bits times 255 / m: a level is the low byte of its half.
__device__ inline std::uint32_t levels_of(std::uint32_t coordinates, std::uint32_t levels_per_unit) {
  const __half2 scaled = __hmul2_rn(__habs2(as_half2(coordinates)), as_half2(levels_per_unit));
  return bits_of(__hadd2_rn(scaled, as_half2(0x64006400u)));
}
// What curves are functions of.
__device__ inline std::uint32_t curve_argument(std::uint32_t levels, const Coder& coder) {
  return bits_of(__hfma2_sat(as_half2(levels), as_half2(0x1c001c00u), as_half2(coder.shift)));  // 2^-8
}
// Indices of magnitudes as candidate j, each the low byte of its half.
__device__ inline std::uint32_t indices_of(std::uint32_t argument, std::uint32_t c0, std::uint32_t c1) {
  const __half2 x = as_half2(argument);
  return bits_of(__hfma2(__hfma2(as_half2(c1), x, as_half2(c0)), x, as_half2(0x66006600u)));
}
// The magnitudes of the indices in the low four nibbles of `indices`, whose bits 3 are 0, as bytes.
__device__ inline std::uint32_t magnitudes_at(const Coder& coder, std::uint32_t indices) {
  return __byte_perm(coder.low_magnitudes, coder.high_magnitudes, indices);
}

// The best candidate so far.
struct Best {
  float aa = 0.0f, b = 1.0f;

  // Takes a candidate's sums A and B if they are better.
  __device__ bool take(std::uint32_t sum_a, std::uint32_t sum_b) {
    const float a = __uint2float_rn(sum_a), new_b = __uint2float_rn(sum_b), new_aa = __fmul_rn(a, a);
    if (!(__fmul_rn(new_aa, b) > __fmul_rn(aa, new_b))) return false;
    aa = new_aa;
    b = new_b;
    return true;
  }
};

}  // namespace turboquant::kernels::cuda
