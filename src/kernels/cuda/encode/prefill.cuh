// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/block.cuh"
#include "kernels/cuda/encode/lane_search.cuh"

// What the two halves of encode/prefill.cu share: one block of 8 warps an SM, up to 255 registers a thread, a
// vector a lane. First pairs of warps do keys, a page a pair; then warps do values, a page a warp.
namespace turboquant::kernels::cuda {

inline constexpr int kPrefillWarps = 8, kPrefillThreads = 32 * kPrefillWarps;

// Codes of a page's tokens: 16 words each, and 4 of padding so that eight tokens' stores never meet in a
// bank.
using TokenCodes = std::uint32_t[kPageTokens][20];

// A row of fp32 keys and 4 of padding, for the same reason.
inline constexpr int kPaddedRow = kLaneDim + 4;

struct PrefillKeys {  // of a pair of warps
  union {
    alignas(16) float rows[kPageTokens][kPaddedRow];  // rotated, until the centre is known
    struct {
      RawRows raw[2];  // the next page's
      TokenCodes codes;
    };
  };
  alignas(16) float signs[kLaneDim];  // the next page's, then the page's
  alignas(16) float centre[kLaneDim];
  alignas(16) float other_centre[kLaneDim];  // a page's own, or from the page before
  alignas(16) std::int8_t steps[kLaneDim];
  float centre_squared;  // about |centre|^2
  float moved_squared;   // about |centre - the mean that was centre before|^2
  std::uint32_t step;
  std::uint32_t chosen[2];  // tokens, a bit each
};
struct PrefillValues {  // of a warp
  RawRows raw;
  alignas(16) TokenCodes codes;
  alignas(16) float signs[kLaneDim];              // the next page's
  alignas(16) std::uint32_t flips[kLaneDim / 2];  // the page's: sign bits of two coordinates
};

// Where the 64 threads of a pair of neighbouring warps stand. The leading warps are on four schedulers.
struct Pair {
  int number;  // 0 .. 3
  Group group;
  bool leads;  // this warp is the one that adds up means
  int token;   // of this lane

  __device__ int warp() const { return token / 32; }
};
__device__ inline Pair this_pair() {
  int thread;  // read anew wherever it is asked for: nothing derived of it takes a register in between
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  Pair out;
  out.number = thread / kPageTokens;
  out.token = thread % kPageTokens;
  out.group = {kPageTokens, 1 + out.number, thread - out.token};
  out.leads = out.warp() == (__popc(static_cast<unsigned>(out.number)) & 1);
  return out;
}

// A page of the call. A block makes a list of its next ones, and goes through it twice: keys, then values.
struct PrefillTask {
  Part part;
  std::uint8_t* page;
  int head;
  bool exists;
  bool leads;     // its keys wait for no page of the call
  bool followed;  // its keys are followed by those of the next page, which wait for it: in `followers`
};
inline constexpr int kTasks = 64;  // of a list

// What a warp works on, and what comes next; null: nothing. It lies in shared memory and is read anew
// wherever it is used: across a search no register is left for it.
struct PrefillTurn {
  const PrefillTask *task, *next;

  __device__ const PrefillTask* current() const {
    return *const_cast<const PrefillTask* const volatile*>(&task);
  }
  __device__ const PrefillTask* following() const {
    return *const_cast<const PrefillTask* const volatile*>(&next);
  }
};

struct PrefillShared {
  LaneTable table;
  PrefillTask tasks[kTasks], followers[kTasks];
  PrefillTurn turns[kPrefillWarps];  // each warp's own
  union {
    PrefillKeys keys[kPrefillWarps / 2];
    PrefillValues values[kPrefillWarps];
  };
};

static_assert(sizeof(PrefillShared) <= 227 * 1024);  // of an H100's block

// Rule 6 of a search's result; codes become 0 where the scale is 0 or NaN.
__device__ inline std::uint32_t settle(LaneCodes& codes, float norm, bool finite, float unit) {
  if (finite && !(norm < kSmallestNorm))
    return half_bits_clamped(divide_normal(__fmul_rn(unit, norm), square_root(codes.best_norm)));
#pragma unroll
  for (std::uint32_t& word : codes.words) word = 0;
  return finite ? 0 : kNanScale;
}

__device__ inline void store_codes(const LaneCodes& codes, std::uint32_t* row) {
#pragma unroll
  for (int w = 0; w < 16; w += 4)
    *reinterpret_cast<uint4*>(row + w) =
        uint4{codes.words[w], codes.words[w + 1], codes.words[w + 2], codes.words[w + 3]};
}

}  // namespace turboquant::kernels::cuda
