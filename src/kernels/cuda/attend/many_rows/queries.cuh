// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/ptx.cuh"
#include "kernels/cuda/attend/many_rows/rotate.cuh"
#include "kernels/cuda/attend/many_rows/work.cuh"

// Queries into shared memory as fp16, and the history's sums out of the rotated domain.
namespace turboquant::kernels::cuda::many {

// A power of two, at most 2^60, that takes |x| = largest to [2^14, 2^15), for fp16; 1 where largest is 0 or
// not finite.
__device__ inline float fp16_unit(float largest) {
  const int biased = static_cast<int>(__float_as_uint(largest) >> 23 & 255);
  if (largest == 0.0f || biased == 255) return 1.0f;
  const int exponent = 14 - (biased - 127);  // of the unit
  return __uint_as_float(static_cast<std::uint32_t>((exponent > 60 ? 60 : exponent) + 127) << 23);
}

// A bf16 or fp16 element.
__device__ inline float widen(bool bf16, std::uint32_t bits) {
  return bf16 ? __uint_as_float(bits << 16)
              : __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// Element x of a row of a tile of queries.
template <class L>
__device__ inline std::uint8_t* element_at(std::uint8_t* queries, int row, int x) {
  return queries + L::query_at(row, x >> 3) + 2 * (x & 7);
}

// The warp's rows of a tile: raw, or with `rotated` as H (query_signs * q) / sqrt(D). Each row is scaled by a
// power of two to the upper end of fp16; row_scale takes its products back to scores (softcap: before the
// cap; else times log2 e).
template <class L>
__device__ inline void load_queries(const AttendArgs& a, const Work& w, bool rotated, std::uint8_t* queries,
                                    float* row_scale) {
  constexpr int D = L::kDim;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5);
  const int g = lane >> 2, q = lane & 3, group = a.q_heads / a.pages.kv_heads;
  const bool bf16 = a.query.dtype == DType::kBF16;
  const float* signs = a.basis.query_signs + w.head * D;
  float factor = a.softcap > 0 ? a.scale : a.scale * 1.4426950408889634f;
  if (rotated) factor *= rsqrtf(static_cast<float>(D));
  const float sign = factor < 0 ? -1.0f : 1.0f;  // row_scale is positive: a masked score stays -infinity
#pragma unroll 1
  for (int block = 0; block < L::kMmaRows; ++block) {
    const int first = warp * L::kWarpRows + 16 * block + g;
    float x[D / 8][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + 8 * half;
      const std::int64_t pair = w.first_row + row;
      const std::uint16_t* from =
          static_cast<const std::uint16_t*>(a.query.data) +
          row_at(a.query, w.first_token + pair / group, w.head * group + static_cast<int>(pair % group));
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        const std::uint32_t two =
            row < w.rows ? *reinterpret_cast<const std::uint32_t*>(from + 8 * j + 2 * q) : 0;
        x[j][2 * half] = sign * widen(bf16, two & 0xffffu),
                 x[j][2 * half + 1] = sign * widen(bf16, two >> 16);
      }
    }
    if (rotated)
#pragma unroll
      for (int j = 0; j < D / 8; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) x[j][c] *= __ldg(signs + 8 * j + 2 * q + (c & 1));
    if (rotated) hadamard<D>(x, a.basis.base_matrix, false);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = 0.0f;
#pragma unroll
      for (int j = 0; j < D / 8; ++j)
        largest = fmaxf(largest, fmaxf(fabsf(x[j][2 * half]), fabsf(x[j][2 * half + 1])));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float unit = fp16_unit(largest);
      const int row = first + 8 * half;
#pragma unroll
      for (int j = 0; j < D / 8; ++j)
        *reinterpret_cast<std::uint32_t*>(element_at<L>(queries, row, stored_position<D>(8 * j + 2 * q))) =
            pack_half2(x[j][2 * half] * unit, x[j][2 * half + 1] * unit);
      if (q == 0) row_scale[row] = fmaxf(sign * factor / unit, 1e-37f);
    }
  }
  __syncwarp();
}

// Sums of rotated values become sums in the model's basis: value_signs * H^T o / sqrt(D).
template <int D>
__device__ inline void unrotate(const AttendArgs& a, int head, float (&o)[D / 8][4]) {
  const int q = static_cast<int>(threadIdx.x & 3);
  const float* signs = a.basis.value_signs + head * D;
  hadamard<D>(o, a.basis.base_matrix, true);
  const float unit = 2.0f * rsqrtf(static_cast<float>(D));  // tiles hold half of a value
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c) o[j][c] *= unit * __ldg(signs + 8 * j + 2 * q + (c & 1));
}

}  // namespace turboquant::kernels::cuda::many
