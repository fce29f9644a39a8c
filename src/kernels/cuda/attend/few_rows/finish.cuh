// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/softmax.cuh"

// From sums to outputs.
namespace turboquant::kernels::cuda::few_rows {

// A row tile's sums in memory: values [rows][d], maxima [rows], sums of weights [rows].
template <class S>
struct Part {
  float* data;
  __device__ float* values(int row) const { return data + row * S::kDim; }
  __device__ float& maximum(int row) const { return data[S::kTileTotal * S::kDim + row]; }
  __device__ float& sum(int row) const { return data[S::kTileTotal * (S::kDim + 1) + row]; }
};

// Brings the lanes' sums of weights together and adds the half steps.
template <class S>
__device__ void complete(const Params& p, Running<S>& running) {
  const float half = p.a.pages.format.v_bits == 4 ? 0.5f : 0.0f;
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      running.sum[t] += __shfl_xor_sync(~0u, running.sum[t], lanes);
      running.half_steps[t] += __shfl_xor_sync(~0u, running.half_steps[t], lanes);
    }
#pragma unroll
    for (int x = 0; x < S::kSums; ++x) running.values[t][x] += half * running.half_steps[t];
  }
}

// Writes the warp's rows into rows first_row ... of a part.
template <class S>
__device__ void store_part(const Running<S>& running, int first_row, Part<S> part) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    const int row = first_row + t * kTileRows + q;
#pragma unroll
    for (int x = 0; x < S::kSums; ++x) part.values(row)[x / 2 * 16 + x % 2 * 8 + g] = running.values[t][x];
    if (g == 0) {
      part.maximum(row) = running.maximum[t];
      part.sum(row) = running.sum[t];
    }
  }
}

// Output and LSE of kRows rows from `row` of a sequence on, whose sums are x; lane r has row r's maximum and sum of
// weights.
template <class S, int kRows>
__device__ void finish_rows(const Params& p, const Sequence& sequence, int row, int kv_head,
                            RowsInLanes<S::kDim, kRows>& x, float* staged, float maximum, float sum) {
  constexpr float kLog2e = 1.442695041f, kLn2 = 0.6931471806f;
  const AttendArgs& a = p.a;
  const int lane = static_cast<int>(threadIdx.x & 31), rows = sequence.tokens * p.group;
  const bool is_half = a.out.dtype == DType::kF16;
  float signs[kEach<S::kDim>];
  load_signs<S::kDim>(a.basis.value_signs + kv_head * S::kDim, signs);
  hadamard<S::kDim, kRows, true>(x, a.basis.base_matrix, staged, S::kStride);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row + r >= rows) continue;
    const int token = (row + r) / p.group, head = kv_head * p.group + row + r - token * p.group;
    float most = __shfl_sync(~0u, maximum, r), total = __shfl_sync(~0u, sum, r), factor = 1;
    if (a.sinks != nullptr) {
      const float sink = a.sinks[head] * kLog2e, larger = fmaxf(sink, most);
      factor = exp2_approx(most - larger);
      total = total * factor + exp2_approx(sink - larger);
      most = larger;
    }
    const float unit = total == 0 ? 0 : factor * p.out_unit / total;
    auto* out = static_cast<unsigned short*>(a.out.data) + row_at(a.out, sequence.first_token + token, head);
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i)
      if (has<S::kDim>(i)) out[lane + 32 * i] = to_16_bits(is_half, x[r][i] * unit * signs[i]);
    if (a.lse != nullptr && lane == 0)
      a.lse[(static_cast<std::int64_t>(sequence.first_token) + token) * a.q_heads + head] =
          total == 0 ? -__int_as_float(0x7f800000) : (most + log2f(total)) * kLn2;
  }
}

// The warp's own rows, of a segment that it alone did.
template <class S>
__device__ void finish_running(const Params& p, const Sequence& sequence, int first_row, int kv_head, float* staged,
                               const Running<S>& running) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
    for (int x = 0; x < S::kSums; ++x) staged[q * S::kStride + x / 2 * 16 + x % 2 * 8 + g] = running.values[t][x];
    __syncwarp();
    RowsInLanes<S::kDim, kTileRows> x;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r)
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i) x[r][i] = has<S::kDim>(i) ? staged[r * S::kStride + lane + 32 * i] : 0;
    __syncwarp();
    finish_rows<S, kTileRows>(p, sequence, first_row + t * kTileRows, kv_head, x, staged, running.maximum[t],
                              running.sum[t]);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
