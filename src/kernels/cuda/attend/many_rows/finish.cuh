// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/softmax.cuh"
#include "kernels/cuda/attend/merge.cuh"

namespace turboquant::kernels::cuda::many {

// Bit 2 block + half: the lane's row sees one of the tokens in not_finite.
template <class L>
__device__ inline std::uint32_t rows_that_see(const AttendArgs& a, const Work& w, const TileSpan& tile,
                                              const int* row_token, const std::uint32_t* not_finite) {
  const int g = static_cast<int>(threadIdx.x & 31) >> 2;
  const std::uint64_t tokens = not_finite[0] | static_cast<std::uint64_t>(not_finite[1]) << 32;
  std::uint32_t rows = 0;
  for (int k = 0; k < 2 * L::kMmaRows; ++k) {
    const Seen seen = seen_slots(a, w, tile, row_token[8 * k + g]);
    for (int slot = seen.begin; slot < seen.end; ++slot)
      rows |= static_cast<std::uint32_t>(tokens >> slot & 1) << k;
  }
  return rows;
}

// A non-finite value reaches the rows that see it: 0 stood for it in the tile. `value` says which it is.
template <class L, class Value>
__device__ inline void add_not_finite(const AttendArgs& a, const Work& w, const TileSpan& tile,
                                      const int* row_token, const std::uint32_t* not_finite, Sums<L>& sums,
                                      Value value) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  for (int word = 0; word < 2; ++word)
    for (std::uint32_t left = not_finite[word]; left != 0; left &= left - 1) {
      const int slot = 32 * word + __ffs(static_cast<int>(left)) - 1;
#pragma unroll
      for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Seen seen = seen_slots(a, w, tile, row_token[16 * b + 8 * half + g]);
          if (slot < seen.begin || slot >= seen.end) continue;
#pragma unroll
          for (int j = 0; j < L::kDim / 8; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const float x = value(slot, 8 * j + 2 * q + c);
              if (!isfinite(x)) sums.o[b][j][2 * half + c] += x;
            }
        }
    }
}

__device__ inline void store_pair(DType dtype, void* data, std::int64_t at, float x, float y) {
  if (dtype == DType::kF32) {
    *reinterpret_cast<float2*>(static_cast<float*>(data) + at) = {x, y};
    return;
  }
  const __nv_bfloat162 b = __floats2bfloat162_rn(x, y);
  *reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(data) + at) =
      dtype == DType::kBF16 ? *reinterpret_cast<const std::uint32_t*>(&b) : pack_half2(x, y);
}

// The rows' outputs, or their partials where the history is split. `unit` takes accumulators to values.
template <class L>
__device__ inline void finish(const AttendArgs& a, const Work& w, const Partials& partials, int split,
                              float unit, Sums<L>& sums) {
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5);
  const int g = lane >> 2, q = lane & 3, group = a.q_heads / a.pages.kv_heads;
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sums.sum[b][2 * half], largest = sums.largest[b][half] - kLift;
      const int row = warp * L::kWarpRows + 16 * b + 8 * half + g;
      if (row >= w.rows) continue;
      const std::int64_t pair = w.first_row + row;
      const std::int64_t token = w.first_token + pair / group;
      const int head = w.head * group + static_cast<int>(pair % group);
      const std::int64_t index = token * a.q_heads + head;
      if (partials.splits > 1) {
        float* to = partials.sums(split, index, L::kDim);
#pragma unroll
        for (int j = 0; j < L::kDim / 8; ++j)
          *reinterpret_cast<float2*>(to + 8 * j + 2 * q) = {sums.o[b][j][2 * half] * unit,
                                                            sums.o[b][j][2 * half + 1] * unit};
        if (q == 0) *partials.softmax(split, index) = {largest, sum};
        continue;
      }
      const Ending ending = end_row(a, head, largest, sum);
      const std::int64_t at = row_at(a.out, token, head);
      const float normal = unit * ending.normal;
#pragma unroll
      for (int j = 0; j < L::kDim / 8; ++j)
        store_pair(a.out.dtype, a.out.data, at + 8 * j + 2 * q, sums.o[b][j][2 * half] * normal,
                   sums.o[b][j][2 * half + 1] * normal);
      if (q == 0 && a.lse != nullptr) a.lse[index] = ending.lse;
    }
}

}  // namespace turboquant::kernels::cuda::many
