// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/ptx.cuh"
#include "kernels/cuda/attend/many_rows/work.cuh"

// A warp's rows against a step of a tile: scores, softmax, values. Everything a row has between tiles is in
// Sums. Row (block, half) of a lane 4 g + q is 16 block + 8 half + g of its warp.
namespace turboquant::kernels::cuda::many {

template <class L>
struct Sums {
  static constexpr int kBlocks = L::kMmaRows;
  float o[kBlocks][L::kDim / 8][4];  // accumulators: sums of weights times values
  float sum[kBlocks][4];             // accumulators: sums of weights, in all columns the same
  // What weights are relative to, in powers of two, the same in the 4 lanes of a row: the largest score, or a
  // little less.
  float largest[kBlocks][2];
};

template <class L>
using Scores = float[L::kMmaRows][L::kStepTokens / 8][4];

// s = centre score where the token's reference is the centre, + q . k. between(k) is other work for the
// issue slots that the k-th of L::kDim / 16 rounds of MMAs leaves free.
template <class L, class Between>
__device__ inline void multiply_keys(std::uint32_t queries, std::uint32_t keys, const float* centred,
                                     const float (&centre)[L::kMmaRows][2], Scores<L>& s, Between between) {
  const int lane = static_cast<int>(threadIdx.x & 31), q = lane & 3;
#pragma unroll
  for (int j = 0; j < L::kStepTokens / 8; ++j) {
    const float2 yes = *reinterpret_cast<const float2*>(centred + 8 * j + 2 * q);
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b) {
      s[b][j][0] = yes.x * centre[b][0], s[b][j][1] = yes.y * centre[b][0];
      s[b][j][2] = yes.x * centre[b][1], s[b][j][3] = yes.y * centre[b][1];
    }
  }
  const std::uint32_t a_at = queries + (lane & 15) * L::kPitch + (lane >> 4) * 16;
  const std::uint32_t b_at = keys + ((lane >> 4) * 8 + (lane & 7)) * L::kPitch + (lane >> 3 & 1) * 16;
  // Operands are read a round ahead: between() may write to shared memory, and nothing moves across that.
  std::uint32_t a[2][L::kMmaRows][4], x[2][L::kStepTokens / 16][4];
  const auto read = [&](int k) {
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b) ldmatrix_x4(a[k & 1][b], a_at + 16 * b * L::kPitch + 32 * k);
#pragma unroll
    for (int j = 0; j < L::kStepTokens / 16; ++j)
      ldmatrix_x4(x[k & 1][j], b_at + 16 * j * L::kPitch + 32 * k);
  };
  read(0);
#pragma unroll
  for (int k = 0; k < L::kDim / 16; ++k) {
    if (k + 1 < L::kDim / 16) read(k + 1);
#pragma unroll
    for (int j = 0; j < L::kStepTokens / 16; ++j)
#pragma unroll
      for (int b = 0; b < L::kMmaRows; ++b) {
        mma_16816(s[b][2 * j], a[k & 1][b], x[k & 1][j][0], x[k & 1][j][1]);
        mma_16816(s[b][2 * j + 1], a[k & 1][b], x[k & 1][j][2], x[k & 1][j][3]);
      }
    between(k);
  }
}

// Scores that a row does not see become -infinity. Column 8 j + 2 q + c of the step from slot `first` on is
// slot first + tile_token() of it.
template <class L>
__device__ inline void mask(const AttendArgs& a, const Work& w, const TileSpan& tile, const int* row_token,
                            int first, Scores<L>& s) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Seen seen = seen_slots(a, w, tile, row_token[16 * b + 8 * half + g]);
#pragma unroll
      for (int j = 0; j < L::kStepTokens / 8; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int slot = first + tile_token(8 * j) + tile_token(2 * q) + 8 * c;
          if (slot < seen.begin || slot >= seen.end) s[b][j][2 * half + c] = -INFINITY;
        }
    }
}
static_assert(tile_token(8 * 5 + 6 + 1) == tile_token(8 * 5) + tile_token(6) + 8);

// s <- cap tanh(scale s / cap) log2 e
template <class L>
__device__ inline void cap_scores(float cap, const float (&scale)[L::kMmaRows][2], Scores<L>& s) {
  const float to_power = __fdividef(2.0f * 1.4426950408889634f, cap);
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < L::kStepTokens / 8; ++j)
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          const float power = exp2f(s[b][j][c] * scale[b][half] * to_power);  // tanh x = 1 - 2 / (1 + e^2x)
          s[b][j][c] = cap * 1.4426950408889634f * (1.0f - __fdividef(2.0f, 1.0f + power));
        }
}

// Scores up to kSlack above `largest` are left alone: most steps then neither reduce maxima over lanes nor
// rescale sums.
constexpr float kSlack = 4.0f;
// A weight is 2^(score - largest + kLift): small ones stay clear of fp16's subnormals, large ones below 2^12.
constexpr float kLift = 8.0f;

// Scores times `scale` are in powers of two. Moves the sums to a new maximum where a weight would pass
// 2^kSlack.
template <class L>
__device__ inline void raise_maximum(const float (&scale)[L::kMmaRows][2], const Scores<L>& s,
                                     Sums<L>& sums) {
  constexpr int kBlocks = L::kMmaRows;
  float most[kBlocks][2];
  bool grew = false;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      most[b][half] = fmaxf(s[b][0][2 * half], s[b][0][2 * half + 1]);
#pragma unroll
      for (int j = 1; j < L::kStepTokens / 8; ++j)
        most[b][half] = fmaxf(most[b][half], fmaxf(s[b][j][2 * half], s[b][j][2 * half + 1]));
      grew |= most[b][half] * scale[b][half] > sums.largest[b][half] + kSlack;
    }
  if (!__any_sync(0xffffffffu, grew)) return;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x = most[b][half] * scale[b][half];
      x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
      x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
      x = fmaxf(x, sums.largest[b][half]);
      const float factor = x == sums.largest[b][half] ? 1.0f : exp2_approx(sums.largest[b][half] - x);
      sums.largest[b][half] = x;
#pragma unroll
      for (int c = 2 * half; c < 2 * half + 2; ++c) {
        sums.sum[b][c] *= factor;
#pragma unroll
        for (int j = 0; j < L::kDim / 8; ++j) sums.o[b][j][c] *= factor;
      }
    }
}

// What a score is relative to, so that its power of two is the weight.
template <class L>
__device__ inline void weights_from(const Sums<L>& sums, float (&from)[L::kMmaRows][2]) {
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      from[b][half] = sums.largest[b][half] == -INFINITY ? 0.0f : sums.largest[b][half] - kLift;
}

// The weights of 16 tokens, as the A operand of their values: the lanes that hold their scores hold them.
template <class L>
using Weights = std::uint32_t[L::kMmaRows][4];
template <class L>
__device__ inline void weigh(int k, const float (&scale)[L::kMmaRows][2], const float (&from)[L::kMmaRows][2],
                             const Scores<L>& s, Weights<L>& weights) {
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int x = 0; x < 4; ++x) {  // x: half + 2 * column block
      const int half = x & 1;
      const float* two = &s[b][2 * k + x / 2][2 * half];
      const float p0 = exp2_approx(fmaf(two[0], scale[b][half], -from[b][half])),
                  p1 = exp2_approx(fmaf(two[1], scale[b][half], -from[b][half]));
      weights[b][x] = pack_half2(p0, p1);
    }
}

// o += weights x values, 16 tokens at a time: accumulators of scores, made weights and packed, are the A
// operand in the same lanes.
template <class L>
__device__ inline void multiply_values(std::uint32_t values, int first, const float (&scale)[L::kMmaRows][2],
                                       const Scores<L>& s, Sums<L>& sums) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const std::uint32_t row_at = values + ((lane >> 4) * 8 + (lane & 7)) * L::kValuePitch;
  float from[L::kMmaRows][2];
  weights_from<L>(sums, from);
#pragma unroll
  for (int k = 0; k < L::kStepTokens / 16; ++k) {
    Weights<L> weights;
    weigh<L>(k, scale, from, s, weights);
    constexpr std::uint32_t kOnes = 0x3c003c00u;
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b) mma_16816(sums.sum[b], weights[b], kOnes, kOnes);
    const int chunk = (first / 8 + 2 * k + (lane >> 3 & 1)) ^ value_swizzle(lane & 7);
#pragma unroll
    for (int j = 0; j < L::kDim / 8; j += 2) {
      std::uint32_t x[4];
      ldmatrix_x4(x, row_at + chunk * 16 + 8 * j * L::kValuePitch);
#pragma unroll
      for (int b = 0; b < L::kMmaRows; ++b) {
        mma_16816(sums.o[b][j], weights[b], x[0], x[1]);
        mma_16816(sums.o[b][j + 1], weights[b], x[2], x[3]);
      }
    }
  }
}

}  // namespace turboquant::kernels::cuda::many
