// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cuda/encode/rules.cuh"
#include "kernels/cuda/quads.cuh"

// 16 vectors of 128 coordinates in the registers of a warp: lane v has the coordinates 0 .. 63 of vector v
// (its side 0), lane 16 + v the others. One butterfly and one step of a sum cross lanes. Rows arrive by way
// of shared memory.
namespace turboquant::kernels::cuda {

inline constexpr int kPrefillDim = 128, kSideDim = kPrefillDim / 2, kWarpVectors = 16;
using SideVector = float[kSideDim];

// The lane is read anew wherever it is asked for: nothing derived of it takes a register in between.
__device__ inline int this_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
__device__ inline int this_side() {
  return this_thread() >> 4 & 1;
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
// A warp starts copying slots first .. first + 15 of a part, zeros where the part has none, and a head's
// signs. `rows`: of slot 0, were it of the part. All of it is 16-byte aligned. Four lanes a row: eight copies
// need two addresses.
__device__ inline void fetch(const std::uint16_t* rows, std::int64_t stride, const float* signs,
                             const Part& part, int first, WarpInput& out) {
  const int lane = this_thread() & 31, at = 4 * lane;
  copy_async_16(out.signs + at, signs + at);
  const std::uint16_t* from = rows + (first + lane / 4) * stride + 8 * (lane % 4);
#pragma unroll
  for (int v = lane / 4; v < kWarpVectors; v += 8, from += 8 * stride) {
    const int slot = first + v;
    const bool present = slot >= part.begin && slot < part.end;
    const auto* row = present ? from : reinterpret_cast<const std::uint16_t*>(signs);
#pragma unroll
    for (int piece = 0; piece < 16; piece += 4)
      copy_async_16(&out.raw.rows[v][piece + lane % 4], row + 8 * piece, present);
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

// x <- H x: butterflies in the order of core/hadamard.h.
__device__ inline void side_hadamard(SideVector& x) {
#pragma unroll
  for (int h = 1; h < kSideDim; h *= 2)
#pragma unroll
    for (int j = 0; j < kSideDim; ++j)
      if ((j & h) == 0) {
        const float u = x[j], v = x[j + h];
        x[j] = u + v;
        x[j + h] = u - v;
      }
  const float sign = this_side() != 0 ? -1.0f : 1.0f;
#pragma unroll
  for (int j = 0; j < kSideDim; ++j) x[j] = __fmaf_rn(x[j], sign, other_side(x[j]));
}

// sum u(j)^2 over a tree of neighbours.
template <class Coordinate>
__device__ inline float side_squared_norm(const Coordinate& u) {
  float sums[6];  // of 1, 2, 4, ... neighbours, waiting for their other half
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kSideDim; ++j) {
    const float x = u(j);
    sum = __fmul_rn(x, x);
#pragma unroll
    for (int level = 0; level < 6; ++level) {
      if ((j >> level & 1) == 0) {
        sums[level] = sum;
        break;
      }
      sum = __fadd_rn(sums[level], sum);
    }
  }
  return __fadd_rn(sum, other_side(sum));
}

// sum a(j) b(j), in any order.
template <class A, class B>
__device__ inline float side_dot(const A& a, const B& b) {
  float sums[4] = {};
#pragma unroll
  for (int j = 0; j < kSideDim; ++j) sums[j & 3] = __fmaf_rn(a(j), b(j), sums[j & 3]);
  const float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return sum + other_side(sum);
}

// max |x_e|; NaN if there is one.
__device__ inline float side_largest(const SideVector& x) {
  const auto larger = [](float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(fabsf(a)), "f"(fabsf(b)));
    return out;
  };
  float largest[4] = {x[0], x[1], x[2], x[3]};
#pragma unroll
  for (int j = 4; j < kSideDim; ++j) largest[j & 3] = larger(largest[j & 3], x[j]);
  const float most = larger(larger(largest[0], largest[1]), larger(largest[2], largest[3]));
  return larger(most, other_side(most));
}

}  // namespace turboquant::kernels::cuda
