// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/softmax.cuh"

// The call's own tokens, exactly as given: they meet a row's sums when these are back in the model's basis,
// so nothing of them is rotated or rounded. By one warp; lane l holds coordinates l + 32 i.
namespace turboquant::kernels::cuda::few_rows {

// What the end of a segment knows of its sequence.
struct Ending {
  int first_token, rows;  // the call's tokens of the sequence; its rows
  int length, start;      // of its history; first position that counts
};

// kRows rows of a sequence: their queries, and the own tokens that they see. Lane r (mod kRows) speaks for
// row r.
template <class S, int kRows>
struct Own {
  std::int64_t token;   // of the call
  int head;             // of the model
  std::int64_t out_at;  // of the output
  bool exists;
  int first, after;  // own tokens that the row sees
  int from, to;      // that any of the rows sees
  RawRows<S::kDim, kRows> queries;
  RawRows<S::kDim, 1> key, value;

  // What lane r says of row r.
  template <class T>
  static __device__ __forceinline__ T of_row(T x, int r) {
    if constexpr (kRows == 1) return x;
    else return __shfl_sync(~0u, x, r);
  }

  // Asks for queries and the first token; row: of the sequence, the first of kRows.
  __device__ __forceinline__ void ask(const Params& p, const Ending& ending, int row, int kv_head) {
    const int mine = row + static_cast<int>(threadIdx.x & 31) % kRows,
              in_sequence = divide(mine, p.group_inverse);
    token = static_cast<std::int64_t>(ending.first_token) + in_sequence;
    head = kv_head * p.group + mine - in_sequence * p.group;
    out_at = row_at(p.a.out, token, head);
    exists = mine < ending.rows;
    first = max(ending.start - ending.length, 0);
    if (p.a.window > 0) first = max(first, in_sequence - p.a.window + 1);
    after = exists && p.a.keys.data != nullptr ? in_sequence + 1 : 0;
    from = kRows == 1 ? first : __reduce_min_sync(~0u, after > 0 ? first : INT_MAX);
    to = kRows == 1 ? after : __reduce_max_sync(~0u, after);
    const std::int64_t at = after > 0 ? row_at(p.a.query, token, head) : -1;
    std::int64_t all[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) all[r] = of_row(at, r);
    queries.load(p.a.query, all);
    load(p, ending, from, kv_head);
  }

  __device__ __forceinline__ void load(const Params& p, const Ending& ending, int t, int kv_head) {
    const std::int64_t row = ending.first_token + static_cast<std::int64_t>(t);
    key.load(p.a.keys, {t < to ? row_at(p.a.keys, row, kv_head) : -1});
    value.load(p.a.values, {t < to ? row_at(p.a.values, row, kv_head) : -1});
  }

  // Lane r: row r's score of the token that is loaded.
  __device__ __forceinline__ float score(const Params& p) const {
    const int lane = static_cast<int>(threadIdx.x & 31);
    float out = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i)
        dot = fmaf(queries.get(p.a.query.dtype == DType::kF16, r, i),
                   key.get(p.a.keys.dtype == DType::kF16, 0, i), dot);
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) dot += __shfl_xor_sync(~0u, dot, lanes);
      if (lane % kRows == r) out = dot;
    }
    out *= p.own_unit;
    return p.cap > 0 ? soft_cap(out, p.cap) : out;
  }

  // Adds the tokens to rows x in the model's basis, whose weights are relative to `maximum` (lane r: row
  // r's). first_score: of the first token.
  __device__ __forceinline__ void add(const Params& p, const Ending& ending, int kv_head, float first_score,
                                      RowsInLanes<S::kDim, kRows>& x, float& maximum, float& sum) {
    float now = first_score;
#pragma unroll 1
    for (int t = from; t < to;) {
      const bool seen = t >= first && t < after;
      const float next = seen ? fmaxf(maximum, now) : maximum;
      const float keep = exp2_approx(maximum - next), weight = seen ? exp2_approx(now - next) : 0.0f;
      sum = fmaf(sum, keep, weight);
      maximum = next;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float row_keep = of_row(keep, r), row_weight = of_row(weight, r);
        const bool row_sees = of_row(seen ? 1 : 0, r) != 0;
#pragma unroll
        for (int i = 0; i < kEach<S::kDim>; ++i) {
          const float v = value.get(p.a.values.dtype == DType::kF16, 0, i);
          x[r][i] =
              fmaf(x[r][i], row_keep, row_sees ? row_weight * v : 0.0f);  // an unseen NaN must not count
        }
      }
      if (++t >= to) break;
      load(p, ending, t, kv_head);
      now = score(p);
    }
  }
};

}  // namespace turboquant::kernels::cuda::few_rows
