// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/softmax.cuh"
#include "kernels/cuda/attend/few_rows/wide/scores.cuh"

// The running softmax of a warp's rows. A weight is 2^(score - reference), in fp16; a row's reference follows
// its largest score only when a weight, or a weight times its value's scale, would leave the range: hardly
// ever after the first pages.
namespace turboquant::kernels::cuda::few_rows {

inline constexpr float kHighest = 15.0f;  // log2 of the largest weight, and weight times scale
inline constexpr float kHeadroom = 4.0f;  // of a new reference

template <Wide S>
struct Running<S> {
  float values[S::kBlocks][S::kDim / 8][4];  // coordinates 8 j + 2 q, + 1 of rows g and g + 8
  float sum[S::kBlocks][4];                  // of weights: of rows g and g + 8, twice
  float reference[S::kBlocks][2];
  bool open;  // a row has seen nothing yet, and has no reference: the same in all lanes

  __device__ void clear() {
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b) {
#pragma unroll
      for (int j = 0; j < S::kDim / 8; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) values[b][j][k] = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) sum[b][k] = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) reference[b][half] = 0;
    }
    open = true;
  }

  // most: log2 of the largest weight (times scale) of this lane's tokens of a row about to be added, relative
  // to its reference. Raises the reference where that is needed; returns by how much.
  __device__ __forceinline__ float raise(int b, int half, float most, bool exists) {
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    const bool fresh = sum[b][2 * half] == 0;
    const bool sees = most > kLowestMaximum;
    if (fresh && !sees && exists) open = true;
    if (!sees || !(fresh || most > kHighest)) return 0.0f;
    const float by = most - (kHighest - kHeadroom), factor = fresh ? 0.0f : exp2_approx(-by);
    reference[b][half] += by;
#pragma unroll
    for (int k = 2 * half; k < 2 * half + 2; ++k) {
      sum[b][k] *= factor;
#pragma unroll
      for (int j = 0; j < S::kDim / 8; ++j) values[b][j][k] *= factor;
    }
    return by;
  }
};

// Weights as A operands: h's 16 tokens are those of tiles 2 h and 2 h + 1.
template <class S>
struct WideWeights {
  OperandA x[S::kBlocks][2];
};

__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  const __half2 two = __floats2half2_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(two);
}
// Sums of rows of weights.
template <class S>
__device__ __forceinline__ void add_weights(const OperandA& weights, float (&sum)[4]) {
  mma_f16<false>(sum, weights, 0x3c003c00u, 0x3c003c00u);
}

// Scores, as products of codes, to weights times value scales. Slots [begin, end) of the page are its own
// (the fringe holds the others); `position` is slot 0's. plain: every row sees all of them, and no softcap.
template <class S, class Beside>
__device__ __forceinline__ void weigh_wide(const Params& p, const std::uint8_t* page, int token,
                                           const Queries<S>& queries,
                                           const float (&about_centre)[S::kBlocks][2], int position,
                                           int begin, int end, bool plain, WideScores<S>& c,
                                           Running<S>& running, WideWeights<S>& out, Beside beside) {
  const int q = static_cast<int>(threadIdx.x & 3);
  // Scales of tokens 32 i + h + 2 q + 8 x + 16 e are halves 4 i + x + 2 e of word 2 q + h.
  std::uint32_t value_scales[4];  // tile 2 h + x: (e = 0, e = 1)
  float scales[4][2];
  bool centred[4][2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int at = 16 * (2 * q + h) + token / 4;
    const uint2 k = *reinterpret_cast<const uint2*>(page + p.k_scales + at);
    const uint2 v = *reinterpret_cast<const uint2*>(page + p.v_scales + at);
    value_scales[2 * h] = prmt(v.x, v.y, 0x5410);
    value_scales[2 * h + 1] = prmt(v.x, v.y, 0x7632);
    const float unit = queries.unit * (kStepsOfOne / core::kScaleUnit);
#pragma unroll
    for (int x = 0; x < 2; ++x)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float scale = half_bits_to_float((e == 0 ? k.x : k.y) >> (16 * x) & 0xffffu);
        centred[2 * h + x][e] = __float_as_int(scale) >= 0;  // its sign: no centre
        scales[2 * h + x][e] = fabsf(scale) * unit;
      }
  }
  const bool capped = p.cap > 0;
#pragma unroll
  for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float without = capped ? 0.0f : -running.reference[b][half],
                  with = in_register(without + about_centre[b][half]);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = c[b][j][2 * half + e];
          x = fmaf(x, scales[j][e], centred[j][e] ? with : without);
        }
    }
  if (!plain) {
    if (capped) {
#pragma unroll
      for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int k = 0; k < 4; ++k) c[b][j][k] = soft_cap(c[b][j][k], p.cap) - running.reference[b][k / 2];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int slot = token + (j >> 1) + (j & 1) * 8 + 2 * q + 16 * e;
        const bool held = slot >= begin && slot < end;
        if (!held) value_scales[j] &= e == 0 ? 0xffff0000u : 0x0000ffffu;
#pragma unroll
        for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            if (!held || position + slot < queries.lowest[b][half]) c[b][j][2 * half + e] = kUnseen;
      }
  }
  beside();
  // log2 of the largest scale of this lane's tokens, at least 0.
  const auto largest_scale = [&] {
    std::uint32_t most =
        __vmaxu2(__vmaxu2(value_scales[0], value_scales[1]), __vmaxu2(value_scales[2], value_scales[3]));
    most = max(most & 0xffffu, most >> 16);
    return most;
  };
  std::uint32_t top = largest_scale();
  float largest[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    largest[j] = fmaxf(c[0][j][0], c[0][j][1]);
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
      for (int k = b == 0 ? 2 : 0; k < 4; ++k) largest[j] = fmaxf(largest[j], c[b][j][k]);
  }
  const float most = fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
  const auto log2_above = [](std::uint32_t bits) {
    return static_cast<float>(max(static_cast<int>(bits >> 10) - 14, 0));
  };
  const bool spoiled = top > 0x7c00u;
  if (__any_sync(~0u, static_cast<int>(spoiled) | static_cast<int>(most + log2_above(top) > kHighest) |
                          static_cast<int>(running.open))) {
    if (__any_sync(~0u, spoiled)) {  // a NaN token: rows that see it become NaN, for others its value is 0
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if ((value_scales[j] >> (16 * e) & 0x7fffu) <= 0x7c00u) continue;
          value_scales[j] &= e == 0 ? 0xffff0000u : 0x0000ffffu;
#pragma unroll
          for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& x = c[b][j][2 * half + e];
              if (x > kLowestMaximum) x = __int_as_float(0x7fffffff);
            }
        }
      top = largest_scale();
    }
    running.open = false;
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float row = kUnseen;
#pragma unroll
        for (int j = 0; j < 4; ++j) row = fmaxf(row, fmaxf(c[b][j][2 * half], c[b][j][2 * half + 1]));
        const float by = running.raise(b, half, row + log2_above(top), queries.lowest[b][half] != INT_MAX);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          c[b][j][2 * half] -= by;
          c[b][j][2 * half + 1] -= by;
        }
      }
    running.open = __any_sync(~0u, running.open);
  }
#pragma unroll
  for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      OperandA& weights = out.x[b][h];
#pragma unroll
      for (int x = 0; x < 2; ++x)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          weights.x[2 * x + half] =
              pack(exp2_approx(c[b][2 * h + x][2 * half]), exp2_approx(c[b][2 * h + x][2 * half + 1]));
      add_weights<S>(weights, running.sum[b]);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        weights.x[k] = times(weights.x[k], reinterpret_cast<const __half2&>(value_scales[2 * h + k / 2]));
    }
}

}  // namespace turboquant::kernels::cuda::few_rows
