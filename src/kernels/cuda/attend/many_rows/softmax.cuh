// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/ptx.cuh"
#include "kernels/cuda/attend/many_rows/work.cuh"

// A warp's rows against a step of a tile: scores, softmax, values. Everything a row has between tiles is in
// Sums. Row (block, half) of a lane 4 g + q is 16 block + 8 half + g of its warp.
namespace turboquant::kernels::cuda::many {

template <int D>
struct Sums {
  static constexpr int kBlocks = Layout<D>::kMmaRows;
  float o[kBlocks][D / 8][4];  // accumulators: sums of weights times values
  float largest[kBlocks][2];   // of the scores, in powers of two; the same in the 4 lanes of a row
  float sum[kBlocks][2];       // of the weights of the lane's own columns
};

// A tile is done in steps of 32 tokens: a page at once would not leave the sums their registers.
constexpr int kStepTokens = 32;

template <int D>
using Scores = float[Layout<D>::kMmaRows][kStepTokens / 8][4];

// s = centre score where the token's reference is the centre, + q . k
template <int D>
__device__ inline void multiply_keys(std::uint32_t queries, std::uint32_t keys, const float* centred,
                                     const float (&centre)[Layout<D>::kMmaRows][2], Scores<D>& s) {
  using L = Layout<D>;
  const int lane = static_cast<int>(threadIdx.x & 31), q = lane & 3;
#pragma unroll
  for (int j = 0; j < kStepTokens / 8; ++j) {
    const float2 yes = *reinterpret_cast<const float2*>(centred + 8 * j + 2 * q);
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b) {
      s[b][j][0] = yes.x * centre[b][0], s[b][j][1] = yes.y * centre[b][0];
      s[b][j][2] = yes.x * centre[b][1], s[b][j][3] = yes.y * centre[b][1];
    }
  }
  const std::uint32_t a_at = queries + (lane & 15) * L::kPitch + (lane >> 4) * 16;
  const std::uint32_t b_at = keys + ((lane >> 4) * 8 + (lane & 7)) * L::kPitch + (lane >> 3 & 1) * 16;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    std::uint32_t a[L::kMmaRows][4];
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b) ldmatrix_x4(a[b], a_at + 16 * b * L::kPitch + 32 * k);
#pragma unroll
    for (int j = 0; j < kStepTokens / 8; j += 2) {
      std::uint32_t x[4];
      ldmatrix_x4(x, b_at + 8 * j * L::kPitch + 32 * k);
#pragma unroll
      for (int b = 0; b < L::kMmaRows; ++b) {
        mma_16816(s[b][j], a[b], x[0], x[1]);
        mma_16816(s[b][j + 1], a[b], x[2], x[3]);
      }
    }
  }
}

// Scores that a row does not see become -infinity. Column 8 j + 2 q + c of the step from slot `first` on is
// slot first + tile_token() of it.
template <int D>
__device__ inline void mask(const AttendArgs& a, const Work& w, const TileSpan& tile, const int* row_token,
                            int first, Scores<D>& s) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int b = 0; b < Layout<D>::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Seen seen = seen_slots(a, w, tile, row_token[16 * b + 8 * half + g]);
#pragma unroll
      for (int j = 0; j < kStepTokens / 8; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int slot = first + tile_token(8 * j) + tile_token(2 * q) + 8 * c;
          if (slot < seen.begin || slot >= seen.end) s[b][j][2 * half + c] = -INFINITY;
        }
    }
}
static_assert(tile_token(8 * 5 + 6 + 1) == tile_token(8 * 5) + tile_token(6) + 8);

// s <- cap tanh(scale s / cap) log2 e
template <int D>
__device__ inline void cap_scores(float cap, const float (&scale)[Layout<D>::kMmaRows][2], Scores<D>& s) {
  const float to_power = __fdividef(2.0f * 1.4426950408889634f, cap);
#pragma unroll
  for (int b = 0; b < Layout<D>::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < kStepTokens / 8; ++j)
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          const float power = exp2f(s[b][j][c] * scale[b][half] * to_power);  // tanh x = 1 - 2 / (1 + e^2x)
          s[b][j][c] = cap * 1.4426950408889634f * (1.0f - __fdividef(2.0f, 1.0f + power));
        }
}

// Scores times `scale` are in powers of two. Moves the sums to their new maximum.
template <int D>
__device__ inline void raise_maximum(const float (&scale)[Layout<D>::kMmaRows][2], const Scores<D>& s,
                                     Sums<D>& sums) {
  constexpr int kBlocks = Layout<D>::kMmaRows;
  float largest[kBlocks][2];
  bool grew = false;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = fmaxf(s[b][0][2 * half], s[b][0][2 * half + 1]);
#pragma unroll
      for (int j = 1; j < kStepTokens / 8; ++j)
        most = fmaxf(most, fmaxf(s[b][j][2 * half], s[b][j][2 * half + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      largest[b][half] = fmaxf(sums.largest[b][half], most * scale[b][half]);
      grew |= largest[b][half] > sums.largest[b][half];
    }
  if (__any_sync(0xffffffffu, grew)) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = largest[b][half] == sums.largest[b][half]
                                 ? 1.0f
                                 : exp2_approx(sums.largest[b][half] - largest[b][half]);
        sums.largest[b][half] = largest[b][half];
        sums.sum[b][half] *= factor;
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
          sums.o[b][j][2 * half] *= factor, sums.o[b][j][2 * half + 1] *= factor;
      }
  }
}

// o += weights x values, 16 tokens at a time: accumulators of scores, made weights and packed, are the A
// operand in the same lanes.
template <int D>
__device__ inline void multiply_values(std::uint32_t values, int first,
                                       const float (&scale)[Layout<D>::kMmaRows][2], const Scores<D>& s,
                                       Sums<D>& sums) {
  using L = Layout<D>;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const std::uint32_t row_at = values + ((lane >> 4) * 8 + (lane & 7)) * L::kValuePitch;
  float from[L::kMmaRows][2];
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      from[b][half] = sums.largest[b][half] == -INFINITY ? 0.0f : sums.largest[b][half];
#pragma unroll
  for (int k = 0; k < kStepTokens / 16; ++k) {
    std::uint32_t weights[L::kMmaRows][4];
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
      for (int x = 0; x < 4; ++x) {  // x: half + 2 * column block
        const int half = x & 1;
        const float* two = &s[b][2 * k + x / 2][2 * half];
        const float p0 = exp2_approx(fmaf(two[0], scale[b][half], -from[b][half])),
                    p1 = exp2_approx(fmaf(two[1], scale[b][half], -from[b][half]));
        sums.sum[b][half] += p0 + p1;
        weights[b][x] = pack_half2(p0, p1);
      }
    const int chunk = (first / 8 + 2 * k + (lane >> 3 & 1)) ^ value_swizzle(lane & 7);
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
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
