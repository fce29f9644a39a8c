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

// Sums over the warp's lanes of 2 kHalf values: with kHalf 8, value i's in lanes 2 i and 2 i + 1. Each step
// halves the values that a lane has.
template <int kHalf>
__device__ __forceinline__ float sum_lanes(const float (&x)[2 * kHalf]) {
  const bool upper = (threadIdx.x & (2 * kHalf)) != 0;
  float y[kHalf];
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float mine = upper ? x[i + kHalf] : x[i], other = upper ? x[i] : x[i + kHalf];
    y[i] = mine + __shfl_xor_sync(~0u, other, 2 * kHalf);
  }
  if constexpr (kHalf > 1) return sum_lanes<kHalf / 2>(y);
  else return y[0] + __shfl_xor_sync(~0u, y[0], 1);
}

// kRows rows of a sequence: their queries, and the own tokens that they see. Lane r (mod kRows) speaks for
// row r. kTokens are met at a time: each time costs a way to memory.
template <class S, int kRows, int kTokens = 1>
struct Own {
  static_assert(kTokens == 1 || (kTokens == 4 && kRows == 4));
  std::int64_t token;   // of the call
  int head;             // of the model
  std::int64_t out_at;  // of the output
  bool exists;
  int first, after;  // own tokens that the row sees
  int from, to;      // that any of the rows sees
  RawRows<S::kDim, kRows> queries;
  RawRows<S::kDim, kTokens> key, value;

  // What lane r says of row r.
  template <class T>
  static __device__ __forceinline__ T of_row(T x, int r) {
    if constexpr (kRows == 1) return x;
    else return __shfl_sync(~0u, x, r);
  }

  // Asks for queries and the first tokens; row: of the sequence, the first of kRows.
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
    to = kRows == 1 ? after : __reduce_max_sync(~0u, after);
    from = kRows == 1 ? first : min(__reduce_min_sync(~0u, after > 0 ? first : INT_MAX), to);
    const std::int64_t at = after > 0 ? row_at(p.a.query, token, head) : -1;
    std::int64_t all[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) all[r] = of_row(at, r);
    queries.load(p.a.query, all);
    load(p, ending, from, kv_head);
  }

  __device__ __forceinline__ void load(const Params& p, const Ending& ending, int t, int kv_head) {
    std::int64_t key_at[kTokens], value_at[kTokens];
#pragma unroll
    for (int b = 0; b < kTokens; ++b) {
      const std::int64_t row = ending.first_token + static_cast<std::int64_t>(t + b);
      key_at[b] = t + b < to ? row_at(p.a.keys, row, kv_head) : -1;
      value_at[b] = t + b < to ? row_at(p.a.values, row, kv_head) : -1;
    }
    key.load(p.a.keys, key_at);
    value.load(p.a.values, value_at);
  }

  // The scores of the tokens that are loaded. Lane r: row r's.
  struct Scores {
    float of[kTokens];
  };
  __device__ __forceinline__ Scores score(const Params& p) const {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const bool query_half = p.a.query.dtype == DType::kF16, key_half = p.a.keys.dtype == DType::kF16;
    Scores out;
    const auto dot = [&](int b, int r) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i)
        sum = fmaf(queries.get(query_half, r, i), key.get(key_half, b, i), sum);
      return sum;
    };
    if constexpr (kTokens > 1) {
      float dots[16];
#pragma unroll
      for (int k = 0; k < 16; ++k) dots[k] = dot(k / 4, k % 4);
      const float sum = sum_lanes<8>(dots);
#pragma unroll
      for (int b = 0; b < 4; ++b) out.of[b] = __shfl_sync(~0u, sum, 2 * (4 * b + lane % 4));
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float sum = dot(0, r);
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
        if (lane % kRows == r) out.of[0] = sum;
      }
    }
#pragma unroll
    for (int b = 0; b < kTokens; ++b) {
      out.of[b] *= p.own_unit;
      if (p.cap > 0) out.of[b] = soft_cap(out.of[b], p.cap);
    }
    return out;
  }

  // Adds the tokens to rows x in the model's basis, whose weights are relative to `maximum` (lane r: row
  // r's). now: scores of the first tokens.
  __device__ __forceinline__ void add(const Params& p, const Ending& ending, int kv_head, Scores now,
                                      RowsInLanes<S::kDim, kRows>& x, float& maximum, float& sum) {
#pragma unroll 1
    for (int t = from; t < to;) {
      float next = maximum, weight[kTokens];
      int seen = 0;  // bit b: token t + b
#pragma unroll
      for (int b = 0; b < kTokens; ++b) {
        if (t + b < first || t + b >= after) continue;
        seen |= 1 << b;
        next = fmaxf(next, now.of[b]);
      }
      const float keep = exp2_approx(maximum - next);
      sum *= keep;
#pragma unroll
      for (int b = 0; b < kTokens; ++b) {
        weight[b] = (seen >> b & 1) != 0 ? exp2_approx(now.of[b] - next) : 0.0f;
        sum += weight[b];
      }
      maximum = next;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float row_keep = of_row(keep, r);
        const int row_sees = of_row(seen, r);
#pragma unroll
        for (int i = 0; i < kEach<S::kDim>; ++i) x[r][i] *= row_keep;
#pragma unroll
        for (int b = 0; b < kTokens; ++b) {
          const float row_weight = of_row(weight[b], r);
#pragma unroll
          for (int i = 0; i < kEach<S::kDim>; ++i)  // an unseen NaN must not count
            if ((row_sees >> b & 1) != 0)
              x[r][i] = fmaf(row_weight, value.get(p.a.values.dtype == DType::kF16, b, i), x[r][i]);
        }
      }
      t += kTokens;
      if (t >= to) break;
      load(p, ending, t, kv_head);
      now = score(p);
    }
  }
};

}  // namespace turboquant::kernels::cuda::few_rows
