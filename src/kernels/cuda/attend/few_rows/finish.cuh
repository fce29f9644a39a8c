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

// Row q's sums over the lanes 4 g + q that hold its tokens, in each of them.
__device__ __forceinline__ void add_lanes(float& sum, float& half_steps) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) {
    sum += __shfl_xor_sync(~0u, sum, lanes);
    half_steps += __shfl_xor_sync(~0u, half_steps, lanes);
  }
}

// Brings the lanes' sums of weights together, adds the half steps, and writes the warp's rows into rows
// first_row ... of a part.
template <class S>
__device__ __forceinline__ void store_part(const Params& p, const Running<S>& running, int first_row,
                                           Part<S> part) {
  const float half = p.a.pages.format.v_bits == 4 ? 0.5f : 0.0f;
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    float sum = running.sum[t], half_steps = running.half_steps[t];
    add_lanes(sum, half_steps);
    const int row = first_row + t * kTileRows + q;
#pragma unroll
    for (int x = 0; x < S::kSums; ++x)
      part.values(row)[x / 2 * 16 + x % 2 * 8 + g] = fmaf(half, half_steps, running.values[t][x]);
    if (g == 0) {
      part.maximum(row) = running.maximum[t];
      part.sum(row) = sum;
    }
  }
}

// Output and LSE of kRows rows, from row `row` on, of a sequence with `rows` rows that begin at the call's
// token first_token: x their sums; lane r has row r's maximum and sum of weights.
template <class S, int kRows>
__device__ __forceinline__ void finish_rows(const Params& p, int first_token, int rows, int row, int kv_head,
                                            const float (&signs)[kEach<S::kDim>],
                                            RowsInLanes<S::kDim, kRows>& x, float* staged, float maximum,
                                            float sum) {
  constexpr float kLog2e = 1.442695041f, kLn2 = 0.6931471806f;
  const AttendArgs& a = p.a;
  const int lane = static_cast<int>(threadIdx.x & 31);
  // Lane r: what row r is multiplied by, and its LSE.
  const int mine = min(row + lane % kRows, rows - 1), in_sequence = divide(mine, p.group_inverse);
  const int head = kv_head * p.group + mine - in_sequence * p.group;
  const std::int64_t token = static_cast<std::int64_t>(first_token) + in_sequence;
  float factor = 1;
  if (a.sinks != nullptr) {
    const float sink = __ldg(a.sinks + head) * kLog2e, larger = fmaxf(sink, maximum);
    factor = exp2_approx(maximum - larger);
    sum = sum * factor + exp2_approx(sink - larger);
    maximum = larger;
  }
  const float unit = sum == 0 ? 0 : factor * p.out_unit / sum;
  const std::int64_t out_at = row_at(a.out, token, head);
  if (a.lse != nullptr && lane < kRows && row + lane < rows)
    a.lse[token * a.q_heads + head] = sum == 0 ? -__int_as_float(0x7f800000) : (maximum + log2f(sum)) * kLn2;
  hadamard<S::kDim, kRows, true>(x, a.basis.base_matrix, staged, S::kStride);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float factor_of_row = __shfl_sync(~0u, unit, r);
    auto* out = static_cast<unsigned short*>(a.out.data) + __shfl_sync(~0u, out_at, r);
    if (row + r >= rows) continue;
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i)
      if (has<S::kDim>(i))
        out[lane + 32 * i] = to_16_bits(a.out.dtype == DType::kF16, x[r][i] * factor_of_row * signs[i]);
  }
}

// The rows of a segment that this warp did alone; tile by tile through its staged rows.
template <class S>
__device__ __forceinline__ void finish_alone(const Params& p, const Sequence& sequence, int first_row,
                                             int kv_head, float* staged, const Running<S>& running) {
  const float half = p.a.pages.format.v_bits == 4 ? 0.5f : 0.0f;
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  float signs[kEach<S::kDim>];
  load_signs<S::kDim>(p.a.basis.value_signs + kv_head * S::kDim, signs);
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    float sum = running.sum[t], half_steps = running.half_steps[t];
    add_lanes(sum, half_steps);
#pragma unroll
    for (int x = 0; x < S::kSums; ++x)
      staged[q * S::kStride + x / 2 * 16 + x % 2 * 8 + g] = fmaf(half, half_steps, running.values[t][x]);
    __syncwarp();
    RowsInLanes<S::kDim, kTileRows> x;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r)
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i)
        x[r][i] = has<S::kDim>(i) ? staged[r * S::kStride + lane + 32 * i] : 0;
    __syncwarp();
    if (first_row + t * kTileRows < sequence.tokens * p.group)
      finish_rows<S, kTileRows>(p, sequence.first_token, sequence.tokens * p.group, first_row + t * kTileRows,
                                kv_head, signs, x, staged, running.maximum[t], sum);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
