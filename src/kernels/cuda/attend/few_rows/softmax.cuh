// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/scores.cuh"

// The running softmax of a warp's rows. Weights are powers of 2 relative to a tile's own maximum, so that
// they keep 16 bits however small the tile's share is; `gain` brings them to the running maximum.
namespace turboquant::kernels::cuda::few_rows {

inline constexpr float kUnseen = -1e30f;         // the score of a token that a row does not see
inline constexpr float kLowestMaximum = -1e29f;  // of a tile that a row sees nothing of: weights become 0
inline constexpr float kWeightSteps = 65280.0f;  // 255 * 256: both bytes of a weight are unsigned

template <class S>
struct Running;
// Sums of one warp. Lane 4 g + q: row q of each tile.
template <Narrow S>
struct Running<S> {
  float values[S::kTiles][S::kSums];  // coordinates 16 i + g and 16 i + 8 + g, at 2 i and 2 i + 1
  float maximum[S::kTiles];
  float sum[S::kTiles];         // of weights: this lane's tokens
  float half_steps[S::kTiles];  // of weights times scale: 4-bit values' codes mean m + 1/2

  __device__ void clear() {
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
      for (int x = 0; x < S::kSums; ++x) values[t][x] = 0;
      maximum[t] = kUnseen;
      sum[t] = half_steps[t] = 0;
    }
  }
};

// What a tile does to the sums: old ones times `keep`, the tile's times `gain`.
struct Step {
  float tile_maximum, keep, gain;
};

__device__ __forceinline__ Step next_maximum(float tile_maximum, float& maximum) {
  tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(~0u, tile_maximum, 4));
  tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(~0u, tile_maximum, 8));
  tile_maximum = fmaxf(fmaxf(tile_maximum, __shfl_xor_sync(~0u, tile_maximum, 16)), kLowestMaximum);
  const float next = fmaxf(maximum, tile_maximum);
  const Step step{tile_maximum, exp2_approx(maximum - next), exp2_approx(tile_maximum - next)};
  maximum = next;
  return step;
}

// cap * tanh(x), with cap in units of log2: the scores come divided by the softcap.
__device__ __forceinline__ float soft_cap(float x, float cap) {
  return cap * (1.0f - __fdividef(2.0f, 1.0f + exp2_approx(x * 2.885390082f)));
}

template <class S>
__device__ __forceinline__ void keep_sums(const Step (&steps)[S::kTiles], Running<S>& running) {
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    if (__any_sync(~0u, steps[t].keep != 1.0f)) {
#pragma unroll
      for (int x = 0; x < S::kSums; ++x) running.values[t][x] *= steps[t].keep;
    }
  }
}

// Weights times value scales as the B operand of the value products: 16-bit integers, bytes high and low in
// columns 2 r and 2 r + 1. Register h of each 32 tokens holds tokens 8 n + 2 q + h (n < 4).
template <class S>
struct Weights {
  std::uint32_t words[S::kTiles][S::kStep / 32][2];
  float gain[S::kTiles];  // of integer sums: to running values, in table steps
};

// Turns a step's scores into weights. Slots [begin, end) of the page are its own (the fringe holds the
// others); `position` is slot 0's.
template <class S>
__device__ __forceinline__ void weigh(const Params& p, const std::uint8_t* page, int token,
                                      const Queries<S>& queries, int position, int begin, int end,
                                      float (&scores)[S::kTiles][S::kScores], Running<S>& running,
                                      Weights<S>& out) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  float scales[S::kScores];
  load_scales<S>(page + p.v_scales, token, scales);
  if (p.cap > 0) {
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t)
#pragma unroll
      for (int j = 0; j < S::kScores; ++j) scores[t][j] = soft_cap(scores[t][j], p.cap);
  }
  if (begin > 0 || end < kPageTokens || queries.lowest_of_all != queries.highest_of_all ||
      queries.highest_of_all > position) {
#pragma unroll
    for (int j = 0; j < S::kScores; ++j) {
      const int slot = token + g + 8 * j;
      const bool held = slot >= begin && slot < end;
      if (!held) scales[j] = 0;
#pragma unroll
      for (int t = 0; t < S::kTiles; ++t)
        if (!held || position + slot < queries.lowest[t]) scores[t][j] = kUnseen;
    }
  }
  std::uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < S::kScores; ++j) largest = max(largest, __float_as_uint(scales[j]));
  largest = __reduce_max_sync(~0u, largest);
  if (largest > 0x7f800000u) {  // a NaN token: rows that see it become NaN, for others its value is 0
    largest = 0;
#pragma unroll
    for (int j = 0; j < S::kScores; ++j) {
      const bool is_nan = scales[j] != scales[j];
#pragma unroll
      for (int t = 0; t < S::kTiles; ++t)
        if (is_nan && scores[t][j] != kUnseen) running.sum[t] = scales[j];
      if (is_nan) scales[j] = 0;
      largest = max(largest, __float_as_uint(scales[j]));
    }
    largest = __reduce_max_sync(~0u, largest);
  }
  const float top = fmaxf(__uint_as_float(largest), 1e-7f);
  const float to_steps = __fdividef(kWeightSteps, top),
              from_steps = top * (1.0f / kWeightSteps / core::kScaleUnit);

  // Lane (g, q) wants, for column g, weights of row g / 2 of tokens 2 q + h: those of lanes 8 q + g / 2 and
  // + 4. Lanes of even g send high bytes first, of odd g low ones, so that two shuffles serve both kinds of
  // columns.
  const int odd = g & 1, source = 8 * q + (g >> 1);
  const std::uint32_t first = odd ? 0x5410u : 0x7632u, second = odd ? 0x7632u : 0x5410u;
  Step steps[S::kTiles];
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    float most = kUnseen;
#pragma unroll
    for (int j = 0; j < S::kScores; ++j) most = fmaxf(most, scores[t][j]);
    steps[t] = next_maximum(most, running.maximum[t]);
    float sum = 0;
    std::uint32_t total = 0;
#pragma unroll
    for (int i = 0; i < S::kStep / 32; ++i) {
      std::uint32_t x[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int j = 4 * i + n;
        const float weight = exp2_approx(scores[t][j] - steps[t].tile_maximum);
        sum += weight;
        x[n] = __float_as_uint(
            fmaf(weight, scales[j] * to_steps, 12582912.0f));  // 1.5 * 2^23: rounds to integer
        total += x[n];
      }
      const std::uint32_t a = prmt(x[0], x[1], 0x5140), b = prmt(x[2], x[3], 0x5140);  // low, low, high, high
      const std::uint32_t near = __shfl_sync(~0u, prmt(a, b, first), source + 4 * odd);
      const std::uint32_t far = __shfl_sync(~0u, prmt(a, b, second), source + 4 - 4 * odd);
      out.words[t][i][0] = odd ? far : near;
      out.words[t][i][1] = odd ? near : far;
    }
    out.gain[t] = steps[t].gain * from_steps;
    running.sum[t] = fmaf(running.sum[t], steps[t].keep, sum * steps[t].gain);
    running.half_steps[t] =
        fmaf(running.half_steps[t], steps[t].keep,
             static_cast<float>(static_cast<int>(total - S::kScores * 0x4B400000u)) * out.gain[t]);
  }
  keep_sums<S>(steps, running);
}

}  // namespace turboquant::kernels::cuda::few_rows
