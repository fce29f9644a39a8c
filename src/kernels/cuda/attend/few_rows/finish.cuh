// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/own.cuh"

// From sums to outputs.
namespace turboquant::kernels::cuda::few_rows {

// A row tile's sums in memory.
template <class S>
struct Part {
  float* data;  // [rows][kPartStride]: values [32 lanes][kEach], maximum, sum of weights
  __device__ float* values(int row) const { return data + row * S::kPartStride; }
  __device__ float& maximum(int row) const { return values(row)[kRowFloats<S::kDim>]; }
  __device__ float& sum(int row) const { return values(row)[kRowFloats<S::kDim> + 1]; }
};

// Row q's sums over the lanes 4 g + q that hold its tokens, in each of them.
__device__ __forceinline__ void add_lanes(float& sum, float& half_steps) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) {
    sum += __shfl_xor_sync(~0u, sum, lanes);
    half_steps += __shfl_xor_sync(~0u, half_steps, lanes);
  }
}

// Writes tile t's values, half steps added, as rows of sums; row(q) is row q's.
template <class S, class RowAt>
__device__ __forceinline__ void store_values(const Params& p, const Running<S>& running, int t,
                                             float half_steps, RowAt row_at_q) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  const float add = p.a.pages.format.v_bits == 4 ? 0.5f * half_steps : 0.0f;
  float* row = row_at_q(q);
#pragma unroll
  for (int low = 0; low < 32; low += 8) {  // coordinates low + g + 32 i
    float x[kEach<S::kDim>];
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i) {
      const int at = (low + 32 * i) / 8;  // in the lane's order: 16 a + 8 b + g is 2 a + b
      x[i] = at < S::kSums ? running.values[t][at < S::kSums ? at : 0] + add : 0.0f;
    }
    store_lane<S::kDim>(row, low + g, x);
  }
}

// Brings the lanes' sums of weights together and writes the warp's rows into rows first_row ... of a part.
template <Narrow S>
__device__ __forceinline__ void store_part(const Params& p, const Running<S>& running, int first_row,
                                           Part<S> part) {
  const int lane = static_cast<int>(threadIdx.x & 31), q = lane & 3;
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    float sum = running.sum[t], half_steps = running.half_steps[t];
    add_lanes(sum, half_steps);
    const int row = first_row + t * kTileRows;
    store_values<S>(p, running, t, half_steps, [&](int of) { return part.values(row + of); });
    if (lane < kTileRows) {
      part.maximum(row + q) = running.maximum[t];
      part.sum(row + q) = sum;
    }
  }
}

// Output and LSE of kRows rows of a sequence, from `row` on: x their sums; lane r has row r's maximum and sum
// of weights. own_scores: of the first own tokens. signs: of the head, in shared memory.
template <class S, int kRows, class O>
__device__ __forceinline__ void finish_rows(const Params& p, const Ending& ending, O& own,
                                            const typename O::Scores& own_scores, int row, int kv_head,
                                            const float* signs, RowsInLanes<S::kDim, kRows>& x, float* staged,
                                            float maximum, float sum) {
  constexpr float kLog2e = 1.442695041f, kLn2 = 0.6931471806f;
  const AttendArgs& a = p.a;
  const int lane = static_cast<int>(threadIdx.x & 31);
  float signs_here[kEach<S::kDim>];
  load_signs<S::kDim>(signs, signs_here);
  hadamard<S::kDim, kRows, true>(x, a.basis.base_matrix, staged, S::kStride);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i) x[r][i] *= signs_here[i] * p.out_unit;
  own.add(p, ending, kv_head, own_scores, x, maximum, sum);
  float factor = 1;
  if (a.sinks != nullptr && own.exists) {
    const float sink = __ldg(a.sinks + own.head) * kLog2e, larger = fmaxf(sink, maximum);
    factor = exp2_approx(maximum - larger);
    sum = sum * factor + exp2_approx(sink - larger);
    maximum = larger;
  }
  const float unit = sum == 0 ? 0 : __fdividef(factor, sum);
  if (a.lse != nullptr && lane < kRows && own.exists)
    a.lse[own.token * a.q_heads + own.head] =
        sum == 0 ? -__int_as_float(0x7f800000) : (maximum + log2f(sum)) * kLn2;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float factor_of_row = own.of_row(unit, r);
    auto* out = static_cast<unsigned short*>(a.out.data) + own.of_row(own.out_at, r);
    if (row + r >= ending.rows) continue;
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i)
      if (has<S::kDim>(i))
        out[lane + 32 * i] = to_16_bits(a.out.dtype == DType::kF16, x[r][i] * factor_of_row);
  }
}

// The rows of a segment that this warp and another did alone, each a half of its tokens: each finishes two
// rows. The first warp's sums come first.
template <Narrow S>
requires(S::kSplit == 2) __device__ __forceinline__
    void finish_alone(const Params& p, const Ending& ending, int first_row, int kv_head, int in_stream,
                      const float* signs, float* staged, const Running<S>& running) {
  constexpr int kRows = kTileRows / 2;
  const int lane = static_cast<int>(threadIdx.x & 31), q = lane & 3, row = kRows * in_stream;
  Own<S, kRows> own;
  own.ask(p, ending, first_row + row, kv_head);
  float sum = running.sum[0], half_steps = running.half_steps[0];
  add_lanes(sum, half_steps);
  stream_sync<S>();  // both have taken their queries from here
  store_values<S>(p, running, 0, half_steps, [&](int of) { return staged + of * S::kStride; });
  if (lane < kTileRows) {
    staged[q * S::kStride + kRowFloats<S::kDim>] = running.maximum[0];
    staged[q * S::kStride + kRowFloats<S::kDim> + 1] = sum;
  }
  stream_sync<S>();
  const float* first = staged - in_stream * kTileRows * S::kStride + row * S::kStride;
  const float* second = first + kTileRows * S::kStride;
  RowsInLanes<S::kDim, kRows> x, y;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    load_lane<S::kDim>(first + r * S::kStride, x[r]);
    load_lane<S::kDim>(second + r * S::kStride, y[r]);
  }
  const int end_of_mine = (lane % kRows) * S::kStride + kRowFloats<S::kDim>;
  const float first_maximum = first[end_of_mine], second_maximum = second[end_of_mine];
  const float maximum = fmaxf(first_maximum, second_maximum);
  const float first_keep = exp2_approx(first_maximum - maximum),
              second_keep = exp2_approx(second_maximum - maximum);
  sum = fmaf(first[end_of_mine + 1], first_keep, second[end_of_mine + 1] * second_keep);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float keep = __shfl_sync(~0u, first_keep, r), keep_second = __shfl_sync(~0u, second_keep, r);
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i) x[r][i] = fmaf(x[r][i], keep, y[r][i] * keep_second);
  }
  stream_sync<S>();
  finish_rows<S, kRows>(p, ending, own, own.score(p), first_row + row, kv_head, signs, x, staged, maximum,
                        sum);
}

// The rows of a segment that this warp did alone; tile by tile through its staged rows.
template <Narrow S>
requires(S::kSplit == 1) __device__ __forceinline__
    void finish_alone(const Params& p, const Ending& ending, int first_row, int kv_head, int,
                      const float* signs, float* staged, const Running<S>& running) {
#pragma unroll 1
  for (int t = 0; t < S::kTiles; ++t) {
    const int row = first_row + t * kTileRows;
    if (row >= ending.rows) break;
    Own<S, kTileRows> own;
    own.ask(p, ending, row, kv_head);
    float sum = 0, half_steps = 0, maximum = 0;
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {  // registers have no index, and code is dear
      if (tile != t) continue;
      sum = running.sum[tile], half_steps = running.half_steps[tile], maximum = running.maximum[tile];
      add_lanes(sum, half_steps);
      store_values<S>(p, running, tile, half_steps, [&](int q) { return staged + q * S::kStride; });
    }
    __syncwarp();
    RowsInLanes<S::kDim, kTileRows> x;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) load_lane<S::kDim>(staged + r * S::kStride, x[r]);
    __syncwarp();
    finish_rows<S, kTileRows>(p, ending, own, own.score(p), row, kv_head, signs, x, staged, maximum, sum);
    __syncwarp();
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
