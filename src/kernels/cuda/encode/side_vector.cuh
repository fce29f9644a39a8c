// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cuda/encode/codes_of_levels.cuh"
#include "kernels/cuda/encode/rules.cuh"
#include "kernels/cuda/quads.cuh"

// 16 vectors of 128 coordinates in the registers of a warp, two fp16 a register: lane v has the coordinates
// 0 .. 63 of vector v (its side 0), lane 16 + v the others. One butterfly and one step of a sum cross lanes.
// Rows arrive by way of shared memory.
namespace turboquant::kernels::cuda {

inline constexpr int kPrefillDim = 128, kSideDim = kPrefillDim / 2, kWarpVectors = 16;
inline constexpr int kSidePairs = kSideDim / 2, kPairs = kPrefillDim / 2;
// Word 2 g + p: the coordinates 4 g + p and 4 g + p + 2 of the side.
using SideVector = std::uint32_t[kSidePairs];

// The lane is read anew wherever it is asked for: nothing derived of it takes a register in between.
__device__ inline int this_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  __builtin_assume(thread >= 0 && thread < 1024);
  return thread;
}
__device__ inline int this_side() {
  return this_thread() >> 4 & 1;
}

// What is the same for all lanes of a warp, said so that the compiler knows: without it each instruction of a
// whole warp that follows asks first whether all lanes have come.
__device__ inline bool is_for_warp(bool condition) {
  return __any_sync(~0u, condition);
}

// 16 rows of 16-bit elements, 16 pieces of eight each, and a piece of padding: neither writing rows nor
// reading a piece of eight rows meets in a bank.
struct RawRows {
  alignas(16) uint4 rows[kWarpVectors][17];
};

// What a warp has of its own: the next page's rows and signs.
struct WarpInput {
  RawRows raw;
  alignas(16) float signs[kPrefillDim];
};

__device__ inline void copy_async_16(void* to, const void* from, bool present = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(present ? 16 : 0)
               : "memory");
}
// A warp starts copying the rows of 16 slots of a part, zeros where the part has none, and a head's signs.
// Row v is that of slot + step (v / 8), where `slot` is that of v % 8 = lane / 4. `rows`: of slot 0, were it
// of the part. All of it is 16-byte aligned. Four lanes a row: eight copies need two addresses.
__device__ inline void fetch(const std::uint16_t* rows, std::int64_t stride, const float* signs,
                             const Part& part, int slot, int step, WarpInput& out) {
  const int lane = this_thread() & 31, at = 4 * lane;
  const std::uint16_t* from = rows + slot * stride + 8 * (lane % 4);
  const int begin = part.begin, end = part.end;
  copy_async_16(out.signs + at, signs + at);
#pragma unroll
  for (int v = 0; v < kWarpVectors; v += 8, slot += step, from += step * stride) {
    const bool present = slot >= begin && slot < end;
    const auto* row = present ? from : reinterpret_cast<const std::uint16_t*>(signs);
#pragma unroll
    for (int piece = 0; piece < 16; piece += 4)
      copy_async_16(&out.raw.rows[v + lane / 4][piece + lane % 4], row + 8 * piece, present);
  }
}
// A warp: what its lanes have fetched.
__device__ inline void wait_for_fetch() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
}

// What both lanes of a vector have found.
template <class T>
__device__ inline T other_side(T x) {
  return __shfl_xor_sync(~0u, x, 16);
}

// y <- H y: butterflies in the order of core/hadamard.h, each sum rounded to fp16.
__device__ inline void side_hadamard(SideVector& y) {
#pragma unroll
  for (int h = 1; h < kSidePairs; h *= 2) {  // 1, then 4, 8, ... 32 coordinates apart
#pragma unroll
    for (int j = 0; j < kSidePairs; ++j)
      if ((j & h) == 0) {
        const __half2 u = as_half2(y[j]), v = as_half2(y[j + h]);
        y[j] = bits_of(__hadd2_rn(u, v));
        y[j + h] = bits_of(__hsub2_rn(u, v));
      }
    if (h != 1) continue;
#pragma unroll
    for (int j = 0; j < kSidePairs; ++j) {  // 2 apart: a pair's own
      const __half2 pair = as_half2(y[j]);
      y[j] = bits_of(__hfma2(__high2half2(pair), as_half2(0xbc003c00u), __low2half2(pair)));
    }
  }
  const __half2 sign = as_half2(this_side() != 0 ? 0xbc00bc00u : 0x3c003c00u);
#pragma unroll
  for (int j = 0; j < kSidePairs; ++j)
    y[j] = bits_of(__hfma2(as_half2(y[j]), sign, as_half2(other_side(y[j]))));
}

// The larger sizes of pairs; NaN where there is one.
__device__ inline __half2 larger_pair(__half2 a, __half2 b) {
  return __hmax2_nan(__habs2(a), __habs2(b));
}
// The vector's max |y_e|; NaN if there is one.
__device__ inline float side_largest(const SideVector& y) {
  __half2 largest[2] = {};
#pragma unroll
  for (int j = 0; j < kSidePairs; ++j) largest[j & 1] = larger_pair(largest[j & 1], as_half2(y[j]));
  __half2 most = larger_pair(largest[0], largest[1]);
  most = larger_pair(most, __lowhigh2highlow(most));
  return __low2float(larger_pair(most, as_half2(other_side(bits_of(most)))));
}

template <DType kType>
__device__ inline void unpack_signed(const WarpInput& input, int piece, float (&x)[8]) {
  const int side = this_side(), row = this_thread() % kWarpVectors;
  unpack_eight(kType, input.raw.rows[row][8 * side + piece], x);
  const auto* signs = reinterpret_cast<const float4*>(&input.signs[kSideDim * side + 8 * piece]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4 s = signs[half];
    x[4 * half] = __fmul_rn(x[4 * half], s.x);
    x[4 * half + 1] = __fmul_rn(x[4 * half + 1], s.y);
    x[4 * half + 2] = __fmul_rn(x[4 * half + 2], s.z);
    x[4 * half + 3] = __fmul_rn(x[4 * half + 3], s.w);
  }
}
__device__ inline void pack_side(const float (&x)[8], int piece, SideVector& y) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int at = 4 * (k / 2) + k % 2;
    y[4 * piece + k] = bits_of(__floats2half2_rn(x[at], x[at + 2]));
  }
}

// The lane's side of its fetched vector times its signs.
template <DType kType>
__device__ inline void load_products(const WarpInput& input, SideVector& y) {
#pragma unroll
  for (int piece = 0; piece < 8; ++piece) {
    float x[8];
    unpack_signed<kType>(input, piece, x);
    pack_side(x, piece, y);
  }
}
// The same where all signs are +1 or -1, `flips` their sign bits.
template <DType kType>
__device__ inline void load_flipped(const WarpInput& input, const std::uint32_t* flips, SideVector& y) {
  const int side = this_side(), row = this_thread() % kWarpVectors;
#pragma unroll
  for (int piece = 0; piece < 8; ++piece) {
    const uint4 raw = input.raw.rows[row][8 * side + piece];
    const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    float x[8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 flip = *reinterpret_cast<const uint4*>(&flips[kSideDim * side + 8 * piece + 4 * half]);
      const std::uint32_t low = words[2 * half], high = words[2 * half + 1];
      float* four = x + 4 * half;
      if (kType == DType::kBF16) {
        four[0] = __uint_as_float(low * 0x10000u + flip.x);
        four[1] = __uint_as_float((low & 0xffff0000u) ^ flip.y);
        four[2] = __uint_as_float(high * 0x10000u + flip.z);
        four[3] = __uint_as_float((high & 0xffff0000u) ^ flip.w);
      } else {
        const float2 a = __half22float2(as_half2(low)), b = __half22float2(as_half2(high));
        four[0] = __uint_as_float(__float_as_uint(a.x) ^ flip.x);
        four[1] = __uint_as_float(__float_as_uint(a.y) ^ flip.y);
        four[2] = __uint_as_float(__float_as_uint(b.x) ^ flip.z);
        four[3] = __uint_as_float(__float_as_uint(b.y) ^ flip.w);
      }
    }
    pack_side(x, piece, y);
  }
}
// A warp: the fetched signs' sign bits; whether all signs are +1 or -1.
__device__ inline bool take_flips(const WarpInput& input, std::uint32_t* flips) {
  const int at = 4 * (this_thread() & 31);
  const uint4 signs = *reinterpret_cast<const uint4*>(&input.signs[at]);
  constexpr std::uint32_t kSign = 0x80000000u;
  *reinterpret_cast<uint4*>(&flips[at]) = {signs.x & kSign, signs.y & kSign, signs.z & kSign,
                                           signs.w & kSign};
  const bool are_units = ((signs.x & signs.y & signs.z & signs.w) | kSign) == 0xbf800000u &&
                         ((signs.x | signs.y | signs.z | signs.w) | kSign) == 0xbf800000u;
  __syncwarp();
  return __all_sync(~0u, are_units);
}

// Rule 1 of the lane's vector.
template <DType kType>
__device__ inline Rotated scale_of_row(const WarpInput& input) {
  float most = 0.0f;
#pragma unroll 1
  for (int piece = 0; piece < 8; ++piece) {
    float x[8];
    unpack_signed<kType>(input, piece, x);
#pragma unroll
    for (const float c : x) most = larger_or_nan(most, c);
  }
  most = larger_or_nan(most, other_side(most));
  const bool finite = most < kLargest;
  return {finite ? factor_of(most, kPrefillDim) : 1.0f, finite};
}
// Whether a rotation whose largest coordinate is this had a factor of 1. With a largest coordinate x of the
// vector it lies between about x and 128 x.
__device__ inline bool is_unscaled(float largest) {
  return largest >= 0x1p-4f && largest < 252.0f;
}

// Of vectors whose largest coordinate after the rotation does not tell that their factor is 1: the factor,
// and the rotation anew. Those that turn out to have 1 are rotated again, too: if both results were one
// variable, it would be moved to other registers even where neither is needed.
template <DType kType>
__device__ inline Rotated rotate_scaled(const WarpInput& input, SideVector& y) {
  const Rotated out = scale_of_row<kType>(input);
#pragma unroll
  for (int piece = 0; piece < 8; ++piece) {
    float x[8];
    unpack_signed<kType>(input, piece, x);
#pragma unroll
    for (float& c : x) c = out.finite ? __fmul_rn(c, out.factor) : 0.0f;
    pack_side(x, piece, y);
  }
  side_hadamard(y);
  return out;
}

}  // namespace turboquant::kernels::cuda
