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
// Bytes of the words a (0 .. 3) and b (4 .. 7); nibbles of the selector are below 8.
__device__ inline std::uint32_t permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t out;  // __byte_perm() would mask the selector
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
  return out;
}
// Bits of `a` where `mask` has them, of b elsewhere: one instruction.
__device__ inline std::uint32_t select_bits(std::uint32_t a, std::uint32_t b, std::uint32_t mask) {
  std::uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(out) : "r"(a), "r"(b), "r"(mask));
  return out;
}
// Indices of magnitudes as a candidate, each the low byte of its half.
__device__ inline std::uint32_t indices_of(std::uint32_t levels, const Candidate& candidate) {
  std::uint32_t w;
  asm("fma.rn.sat.f16x2 %0, %1, %2, %3;" : "=r"(w) : "r"(levels), "r"(candidate.slope), "r"(candidate.start));
  return bits_of(__hfma2(__hneg2(as_half2(w)), as_half2(w), as_half2(candidate.top)));
}
// The magnitudes of the indices in the low four nibbles of `indices`, as bytes.
__device__ inline std::uint32_t magnitudes_at(const Candidate& candidate, std::uint32_t indices) {
  return permute(candidate.low_magnitudes, candidate.high_magnitudes, indices);
}
// The indices of a word of nibbles as codes have them.
__device__ inline std::uint32_t code_indices(const Coder& coder, std::uint32_t indices) {
  if (coder.bits != 3) return indices;
  const std::uint32_t beyond = indices & 0x44444444u;
  return (indices & 0x33333333u) | beyond >> 1 | beyond >> 2;
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
