// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/finish.cuh"
#include "kernels/cuda/attend/few_rows/wide/exact.cuh"

// From sums to outputs.
namespace turboquant::kernels::cuda::few_rows {

// Writes what this lane has of a row; value(j, e) is coordinate 8 j + 2 q + e.
template <class S, class Value>
__device__ __forceinline__ void store_wide_values(float* row, Value value) {
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int low = 0; low < 4; ++low)  // coordinates 8 low + 2 q + e + 32 i
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float x[kEach<S::kDim>];
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i) {
        const int j = low + 4 * i;
        x[i] = j < S::kDim / 8 ? value(j < S::kDim / 8 ? j : 0, e) : 0.0f;
      }
      store_lane<S::kDim>(row, 8 * low + 2 * q + e, x);
    }
}

template <Wide S>
__device__ __forceinline__ void store_part(const Params& p, const Running<S>& running, int first_row,
                                           Part<S> part) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  const float unit = wide_values_unit(p);
#pragma unroll
  for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 16 * b + 8 * half + g;
      store_wide_values<S>(part.values(row),
                           [&](int j, int e) { return running.values[b][j][2 * half + e] * unit; });
      if (q == 0) {
        const float sum = running.sum[b][2 * half];
        part.maximum(row) = sum == 0 ? kUnseen : running.reference[b][half];
        part.sum(row) = sum;
      }
    }
}

// Tile by tile of 4 rows. Registers have no index: a tile's half of a block is chosen value by value.
template <Wide S>
__device__ __forceinline__ void finish_alone(const Params& p, const Ending& ending, int first_row,
                                             int kv_head, int, const float* signs, float* staged,
                                             const Running<S>& running) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2;
  const float unit = wide_values_unit(p);
#pragma unroll 1
  for (int tile = 0; tile < S::kRows / kTileRows; ++tile) {
    const int row = first_row + tile * kTileRows;
    if (row >= ending.rows) break;
    Own<S, kTileRows> own;
    own.ask(p, ending, row, kv_head);
    const auto chosen = [&](auto of_half) {
      float x = of_half(0, 0);
#pragma unroll
      for (int k = 1; k < S::kBlocks * 2; ++k) {
        const float y = of_half(k / 2, k % 2);
        x = tile / 2 == k ? y : x;
      }
      return x;
    };
    if (g >> 2 == tile % 2)
      store_wide_values<S>(staged + (g & 3) * S::kStride, [&](int j, int e) {
        return chosen([&](int b, int half) { return running.values[b][j][2 * half + e] * unit; });
      });
    const int from = 16 * (tile % 2) + 4 * (lane & 3);
    const float sum =
        chosen([&](int b, int half) { return __shfl_sync(~0u, running.sum[b][2 * half], from); });
    const float reference =
        chosen([&](int b, int half) { return __shfl_sync(~0u, running.reference[b][half], from); });
    __syncwarp();
    RowsInLanes<S::kDim, kTileRows> x;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) load_lane<S::kDim>(staged + r * S::kStride, x[r]);
    __syncwarp();
    finish_rows<S, kTileRows>(p, ending, own, own.score(p), row, kv_head, signs, x, staged,
                              sum == 0 ? kUnseen : reference, sum);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
