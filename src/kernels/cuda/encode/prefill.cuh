// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/block.cuh"
#include "kernels/cuda/encode/quad_search.cuh"

// What the two halves of encode/prefill.cu share: one block of 12 warps an SM, 168 registers a thread. Eight
// warps do the keys of a page together; the other four do values, a page a warp, and so do all in the end.
namespace turboquant::kernels::cuda {

inline constexpr int kKeyWarps = 8, kPrefillWarps = 12, kPrefillThreads = 32 * kPrefillWarps;

// A row of fp32 keys: a lane's 32 coordinates, then 4 of padding, so that eight lanes' 16-byte stores never
// meet in a bank.
inline constexpr int kPaddedLane = kQuadLane + 4, kPaddedRow = 4 * kPaddedLane;
__device__ inline int padded(int e) {
  return e / kQuadLane * kPaddedLane + e % kQuadLane;
}

struct PrefillKeys {
  alignas(16) float rows[kPageTokens][kPaddedRow];  // rotated
  alignas(16) float signs[kPaddedRow];
  alignas(16) float centre[kPaddedRow], minus_zeros[kPaddedRow];
  alignas(16) float other_centre[kQuadDim];  // a page's own, or from the page before
  alignas(16) std::uint32_t codes[kPageTokens][16];
  alignas(16) std::int8_t steps[kQuadDim];
  float2 norms[kPageTokens];  // n, and B; B = 0 where the scale is 0, -1 at a NaN token
  float centre_squared;       // about |centre|^2
  std::uint32_t step;
  std::uint8_t chosen[kPageTokens];
  std::uint16_t scales[kPageTokens];
};
struct PrefillValues {  // of a warp
  alignas(16) std::uint32_t codes[kPageTokens][16];
  alignas(16) std::uint32_t signs[kQuadDim / 2];  // sign bits of two coordinates
  float2 norms[kPageTokens];
  alignas(16) std::uint16_t scales[kPageTokens];
};

struct PrefillShared {
  ReplicatedTable key_table, value_table;
  uint4 raw[4][kPrefillThreads];  // a thread's next 32 elements: piece by piece, so that banks never meet
  QuadScores scores[kPrefillWarps];
  Part parts[kPrefillWarps][2];  // each warp's own: what it works on, and what comes next
  int next_values;               // of the block's tasks
  PrefillValues value_warps[kPrefillWarps - kKeyWarps];
  union {  // the key warps take values once their keys are done
    PrefillKeys keys;
    PrefillValues key_warps[kKeyWarps];
  };

  __device__ PrefillValues& values(int warp) {
    return warp < kKeyWarps ? key_warps[warp] : value_warps[warp - kKeyWarps];
  }
};
static_assert(sizeof(PrefillShared) <
              195 * 1024);  // the next larger share of an H100's L1 leaves too little cache

// Starts copying 32 elements into this thread's raw pieces, or zeros.
__device__ inline void prefetch(const Rows& rows, std::int64_t row, int head, bool present,
                                PrefillShared& shared) {
  const auto* from = static_cast<const std::uint16_t*>(rows.data) +
                     (present ? row_at(rows, row, head) + kQuadLane * (threadIdx.x & 3) : 0);
#pragma unroll
  for (int piece = 0; piece < 4; ++piece) {
    const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(&shared.raw[piece][threadIdx.x]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from + 8 * piece),
                 "r"(present ? 16 : 0)
                 : "memory");
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__device__ inline void wait_for_prefetch() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Rule 6 from what a search left: B = 0 stands for a norm too small, B < 0 for a NaN token.
__device__ inline std::uint32_t scale_of(const float2& norm, float unit) {
  if (norm.y < 0.0f) return kNanScale;
  if (norm.y == 0.0f) return 0;
  return half_bits_clamped(__fdiv_rn(__fmul_rn(unit, norm.x), __fsqrt_rn(norm.y)));
}

// A search's result in the terms of scale_of(); codes become 0 where the scale is none.
__device__ inline float2 settle(QuadCodes& codes, float norm, bool finite) {
  const bool coded = finite && !(norm < kSmallestNorm);
  if (!coded)
    for (std::uint32_t& word : codes.words) word = 0;
  return {norm, coded ? codes.best_norm : finite ? 0.0f : -1.0f};
}

}  // namespace turboquant::kernels::cuda
