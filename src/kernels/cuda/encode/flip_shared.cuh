// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill_pivot.cuh"

// What the halves of encode/flip_keys.cu share: one block of 8 warps an SM, each with 16 keys of a page at a
// time, which has to itself all but the head's metric.
namespace turboquant::kernels::cuda {

inline constexpr int kFlipWarps = 8, kFlipThreads = 32 * kFlipWarps;
inline constexpr int kRoundKeys = 8;  // a quad each
inline constexpr int kNoRow = kPrefillDim;
inline constexpr float kNotANumber = __builtin_nanf("");

// A code here: its index, and 8 if it is negative, whatever the width. Its place: 8 + index, or 7 - index.
struct FlipWarp {
  WarpInput input;
  alignas(16) std::int8_t errors[kWarpVectors][kPrefillDim + 16];  // rows never meet in a bank
  alignas(16) std::uint32_t codes[kWarpVectors][16];               // chunk by chunk of a row of K codes
  float ratio[kWarpVectors];                                       // levels a step; 0: the key has no codes
  std::uint32_t squares[kWarpVectors];                             // B
  union {
    WarpCentre centre;
    struct {
      alignas(16) float steps[kRoundKeys][20];  // in levels: of place p at p + 1; the ends twice
      alignas(16) float4 staged[32];
    } moves;
  };
};

// A page of the head at hand.
struct FlipTask {
  Part part;
  std::uint8_t* page;
  const std::uint16_t* keys;  // of slot 0, were it of the call
  bool exists;
  bool followed;  // keys of the next page wait for it
};
inline constexpr int kFlipTasks = 32;  // of a list

// Rows of a metric as fp32, NaN on the diagonal: a coordinate that moves is out of the race. Its successor
// goes into the quad's list. The last row is 0.
using MetricRows = float[kNoRow + 1][kPrefillDim];

struct FlipShared {
  // Twice, half a line of banks apart: the two quads that are served together never meet in a bank.
  alignas(128) MetricRows rows;
  float gap[16];
  MetricRows shifted;
  alignas(16) std::int8_t metric[kPrefillDim][kPrefillDim + 16];  // rows in the order of product_row()
  alignas(16) float half_diagonal[kPrefillDim];
  alignas(16) float magnitudes[8];
  alignas(16) std::uint32_t zeros[kSidePairs];
  FlipTask tasks[kFlipTasks];
  FlipWarp warps[kFlipWarps];

  __device__ FlipWarp& own() { return warps[this_thread() / 32]; }
};
static_assert(sizeof(FlipShared) <= 227 * 1024);

// mma.m16n8k32 leaves columns 2 q and 2 q + 1 of a tile in lane q of a quad: with this order of a metric's
// rows, two tiles' are the coordinates 16 s + 4 q .. 16 s + 4 q + 3, those of chunk q of a row of K codes.
__device__ inline int product_row(int e) {
  return 16 * (e / 16) + 8 * (e % 4 / 2) + 2 * (e % 16 / 4) + e % 2;
}

// The magnitudes of indices 0 .. 7, the last ones again where there are fewer, for a byte permute.
__device__ inline uint2 flip_magnitudes(const Coder& coder) {
  const std::uint32_t low = coder.of[0].low_magnitudes;
  if (coder.bits == 2) return {permute(low, low, 0x1110), permute(low, low, 0x1111)};
  return {low, coder.of[0].high_magnitudes};
}

// All threads of the block: the head's metric.
__device__ inline void load_metric(const std::int8_t* metric, FlipShared& shared) {
  constexpr int kPieces = kPrefillDim / 16;
  for (int at = this_thread(); at < kPrefillDim * kPieces; at += kFlipThreads) {
    const int row = at / kPieces, first = 16 * (at % kPieces);
    const uint4 piece = *reinterpret_cast<const uint4*>(metric + kPrefillDim * row + first);
    *reinterpret_cast<uint4*>(&shared.metric[product_row(row)][first]) = piece;
    const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float m[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        m[k] = static_cast<float>(static_cast<std::int8_t>(words[w] >> (8 * k) & 255u));
        if (first + 4 * w + k != row) continue;
        shared.half_diagonal[row] = 0.5f * m[k];
        m[k] = kNotANumber;
      }
      const float4 four{m[0], m[1], m[2], m[3]};
      *reinterpret_cast<float4*>(&shared.rows[row][first + 4 * w]) = four;
      *reinterpret_cast<float4*>(&shared.shifted[row][first + 4 * w]) = four;
    }
  }
}

}  // namespace turboquant::kernels::cuda
