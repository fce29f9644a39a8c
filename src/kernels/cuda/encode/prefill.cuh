// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/block.cuh"
#include "kernels/cuda/encode/side_code.cuh"

// What the two halves of encode/prefill.cu share: one block of 16 warps an SM, 128 registers a thread. Teams
// of four warps do a page's keys, 16 a warp, or its values.
namespace turboquant::kernels::cuda {

inline constexpr int kPrefillWarps = 16, kPrefillThreads = 32 * kPrefillWarps;
inline constexpr int kTeamWarps = kPageTokens / kWarpVectors, kTeamThreads = 32 * kTeamWarps;
inline constexpr int kTeams = kPrefillWarps / kTeamWarps;

// Codes of a page's tokens: 16 words each, and 4 of padding so that eight tokens' stores never meet in a
// bank.
using TokenCodes = std::uint32_t[kPageTokens][20];

// A row of rotated keys and 4 words of padding, for the same reason.
inline constexpr int kPaddedRow = kPairs + 4;

// Centre of a page as a warp uses it, in the order of rows.
struct WarpCentre {
  alignas(16) std::uint32_t steps[kPairs];  // fp16 integers
  alignas(16) std::uint32_t pairs[kPairs];  // the centre times sqrt(d) as fp16
};
struct PrefillKeys {                                        // of a team
  alignas(16) std::uint32_t rows[kPageTokens][kPaddedRow];  // rotated
  alignas(16) std::uint32_t weights[kPageTokens];           // of tokens in a mean, twice each
  alignas(16) std::uint32_t sums[2][kPairs];                // of the first 32 rows, of the others
  alignas(16) float centre[kPrefillDim];                    // not the page's own mean
  alignas(16) float scratch[16];
  alignas(16) std::uint32_t factors[kTeamWarps];   // of a warp's tokens the least; 1 more if any is not 1
  alignas(8) std::uint16_t chosen[2][kTeamWarps];  // of a warp's tokens, a bit each
  WarpCentre centres[kTeamWarps];
};
struct PrefillValues {                           // of a team
  std::uint32_t flips[kTeamWarps][kPrefillDim];  // sign bits of the page's signs
  TokenCodes codes[2];                           // of a page and the one before
};

// Where a thread stands in its team.
struct Team {
  int number;  // 0 .. 3
  Group group;
  int warp;   // 0 .. 3, of the team
  int token;  // of this lane
};
__device__ inline Team this_team() {
  const int thread = this_thread();
  Team out;
  out.number = thread / kTeamThreads;
  out.warp = thread / 32 % kTeamWarps;
  out.token = kWarpVectors * out.warp + thread % kWarpVectors;
  out.group = {kTeamThreads, 1 + out.number, kTeamThreads * out.number};
  return out;
}

// A page of the call. A block makes a list of its next ones, and each team goes through its share of them
// twice: for keys and for values, every second team for values first.
struct PrefillTask {
  Part part;
  std::uint8_t* page;
  const std::uint16_t *keys, *values;  // of slot 0, were it of the call
  int head;
  bool exists;
  bool leads;     // its keys wait for no page of the call
  bool followed;  // its keys are followed by those of the next page, which wait for it: task kTasks further
};
inline constexpr int kTasks = 64, kNoTask = -1;  // of a list

// Which task a warp works on, and which comes next. It lies in shared memory and is read anew wherever it is
// used: across a search no register is left for it.
struct PrefillTurn {
  int task, next;
};

struct PrefillShared {
  PrefillTask tasks[2 * kTasks];
  PrefillTurn turns[kPrefillWarps];  // each warp's own
  WarpInput inputs[kPrefillWarps];
  alignas(16) std::uint32_t zeros[kSidePairs];
  union {
    PrefillKeys keys;
    PrefillValues values;
  } teams[kTeams];

  __device__ const PrefillTurn& turn() const { return turns[this_thread() / 32]; }
  __device__ const PrefillTask& task() const {
    return tasks[*static_cast<const volatile int*>(&turn().task)];
  }
  __device__ int next() const { return *static_cast<const volatile int*>(&turn().next); }
  __device__ WarpInput& input() { return inputs[this_thread() / 32]; }
  __device__ void begin_turn(int task, int next) {
    __syncwarp();
    turns[this_thread() / 32] = {task, next};
    __syncwarp();
  }
};

static_assert(sizeof(PrefillShared) <= 227 * 1024);  // of an H100's block

// The lane's token's scale into an area of its page, or 0 where a page is opened without the token.
__device__ inline void store_side_scale(const Part& part, int token, std::uint32_t scale,
                                        std::uint8_t* area) {
  const bool present = token >= part.begin && token < part.end;
  if (this_side() == 0 && (part.opens || present))
    reinterpret_cast<std::uint16_t*>(area)[core::scale_index(token)] =
        static_cast<std::uint16_t>(present ? scale : 0);
}

}  // namespace turboquant::kernels::cuda
