// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cuda/encode/rules.cuh"
#include "kernels/cuda/quads.cuh"

// A vector of 128 coordinates in the registers of one lane, 32 vectors a warp: no butterfly and no sum
// crosses lanes. Rows arrive by way of shared memory.
namespace turboquant::kernels::cuda {

inline constexpr int kLaneDim = 128;
using LaneVector = float[kLaneDim];

// 32 rows of 16-bit elements, 16 pieces of eight each, and a piece of padding: neither writing rows nor
// reading a piece of eight rows meets in a bank.
struct RawRows {
  alignas(16) uint4 rows[32][17];

  __device__ const uint4& piece(int p) const { return rows[threadIdx.x & 31][p]; }  // of this lane's row
};

__device__ inline void copy_async_16(void* to, const void* from, bool present = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(present ? 16 : 0)
               : "memory");
}
// Starts copying slots first .. first + 31 of a part, or zeros where the part has none; two rows at a time.
__device__ inline void prefetch_rows(const Rows& rows, const Part& part, int head, int first, RawRows& out) {
  const int lane = static_cast<int>(threadIdx.x & 31), piece = lane & 15, second = lane / 16;
  const auto* data = static_cast<const std::uint16_t*>(rows.data) + 8 * piece;
  const auto* from = data + row_at(rows, part.row + first + second - part.begin, head);
  if (part.begin <= first && part.end >= first + 32) {
#pragma unroll
    for (int v = 0; v < 32; v += 2, from += 2 * rows.token_stride)
      copy_async_16(&out.rows[v + second][piece], from);
  } else {
#pragma unroll 1
    for (int v = 0; v < 32; v += 2, from += 2 * rows.token_stride) {
      const int slot = first + v + second;
      const bool present = slot >= part.begin && slot < part.end;
      copy_async_16(&out.rows[v + second][piece], present ? from : data, present);
    }
  }
}
// 128 fp32 of one head, by a warp; both 16-byte aligned.
__device__ inline void prefetch_signs(const float* signs, int head, float* out) {
  const int at = 4 * static_cast<int>(threadIdx.x & 31);
  copy_async_16(out + at, signs + static_cast<std::int64_t>(head) * kLaneDim + at);
}
__device__ inline void wait_for_prefetch() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// x <- H x: butterflies in the order of core/hadamard.h.
__device__ inline void lane_hadamard(LaneVector& x) {
#pragma unroll
  for (int h = 1; h < kLaneDim; h *= 2)
#pragma unroll
    for (int j = 0; j < kLaneDim; ++j)
      if ((j & h) == 0) {
        const float u = x[j], v = x[j + h];
        x[j] = u + v;
        x[j + h] = u - v;
      }
}

// sum u(j)^2 over a tree of neighbours.
template <class Coordinate>
__device__ inline float lane_squared_norm(const Coordinate& u) {
  float sums[7];  // of 1, 2, 4, ... neighbours, waiting for their other half
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kLaneDim; ++j) {
    const float x = u(j);
    sum = __fmul_rn(x, x);
#pragma unroll
    for (int level = 0; level < 7; ++level) {
      if ((j >> level & 1) == 0) {
        sums[level] = sum;
        break;
      }
      sum = __fadd_rn(sums[level], sum);
    }
  }
  return sum;
}

// sum a(j) b(j), in any order.
template <class A, class B>
__device__ inline float lane_dot(const A& a, const B& b) {
  float sums[4] = {};
#pragma unroll
  for (int j = 0; j < kLaneDim; ++j) sums[j & 3] = __fmaf_rn(a(j), b(j), sums[j & 3]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace turboquant::kernels::cuda
