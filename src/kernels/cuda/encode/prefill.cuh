// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/block.cuh"
#include "kernels/cuda/encode/side_code.cuh"

// What encode/prefill.cu and encode/prefill_turns.cu share: one block of 16 warps an SM, 128 registers a
// thread. Teams of four warps do a page's keys, 16 a warp; any warp does 16 of its values.
namespace turboquant::kernels::cuda {

inline constexpr int kPrefillWarps = 16, kPrefillThreads = 32 * kPrefillWarps;
inline constexpr int kTeamWarps = kPageTokens / kWarpVectors, kTeamThreads = 32 * kTeamWarps;
inline constexpr int kTeams = kPrefillWarps / kTeamWarps;

// Where areas of a page begin (turboquant/format.h), in 32 bits: an address costs a few instructions.
inline constexpr int kCodeBytes = kPrefillDim * kPageTokens / 8;  // of a bit a coordinate
__host__ __device__ constexpr int value_codes_at(const PageFormat& format) {
  return kCodeBytes * format.k_bits;
}
__host__ __device__ constexpr int key_scales_at(const PageFormat& format) {
  return kCodeBytes * (format.k_bits + format.v_bits);
}
__host__ __device__ constexpr int value_scales_at(const PageFormat& format) {
  return key_scales_at(format) + 2 * kPageTokens;
}
__host__ __device__ constexpr int centre_area_at(const PageFormat& format) {
  return value_scales_at(format) + 2 * kPageTokens;
}
static_assert(value_codes_at({kPrefillDim, 3, 2}) == PageFormat{kPrefillDim, 3, 2}.v_codes_offset());
static_assert(key_scales_at({kPrefillDim, 3, 2}) == PageFormat{kPrefillDim, 3, 2}.k_scales_offset());
static_assert(value_scales_at({kPrefillDim, 3, 2}) == PageFormat{kPrefillDim, 3, 2}.v_scales_offset());
static_assert(centre_area_at({kPrefillDim, 3, 2}) == PageFormat{kPrefillDim, 3, 2}.centre_offset());

// Codes of a warp's tokens, eight and eight: 16 words each, and so much padding that neither eight tokens'
// stores nor both eights' loads meet in a bank.
inline constexpr int kCodeRow = 20;
using TokenCodes = std::uint32_t[2][8 * kCodeRow + 16];

// A row of rotated keys and 4 words of padding, for the same reason.
inline constexpr int kPaddedRow = kPairs + 4;

// Centre of a page as a warp uses it.
struct WarpCentre {
  alignas(16) float steps[2][kSideDim + 4];  // of a side, in the order of rows; so much padding that both
                                             // sides' loads meet in no bank
  alignas(16) std::uint32_t pairs[kPairs];   // the centre times sqrt(d) as fp16, in the order of rows
};
// What the warps of a team tell each other of their tokens.
struct alignas(16) TeamNews {
  std::uint16_t chosen[kTeamWarps];  // a bit each
  std::uint16_t scaled[kTeamWarps];  // not 0: any has a factor that is not 1
};
struct PrefillKeys {                                            // of a team
  alignas(16) std::uint32_t rows[kPageTokens][kPaddedRow];      // rotated
  alignas(16) std::uint32_t weights[kTeamWarps][kWarpVectors];  // of tokens in a mean, twice each
  uint2 sums[2][kTeamWarps][32];                                // of a warp's rows, in a round
  alignas(16) float centre[kPrefillDim];                        // not the page's own mean
  alignas(16) float scratch[16];
  alignas(16) float factors[kTeamWarps];  // of a warp's tokens the least, where any is not 1
  TeamNews news[2];                       // in a round
  WarpCentre centres[kTeamWarps];
};
// Where a thread stands in its team.
struct Team {
  int number;  // 0 .. 3
  Group group;
  int warp;   // 0 .. 3, of the team
  int token;  // of this lane, of keys
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

// Which tokens a quarter of a page's values are: those whose codes share words, so that a warp makes whole
// words and needs no other. (Of keys: 16 in a row.)
__device__ inline int value_token(int value_bits, int quarter, int vector) {
  const int first = 8 * (vector / 2 % 4) + vector % 2, half = vector / 8;
  return value_bits == 4 ? first + 32 * (quarter / 2) + 4 * (quarter % 2) + 2 * half
                         : first + 2 * quarter + 32 * half;
}

// A page of the call. A block makes a list of its next ones. Each team does its share of their keys; then, or
// meanwhile, a warp takes a quarter of some page's values, whatever comes next, until none is left.
struct PrefillTask {
  Part part;
  std::uint8_t* page;
  const std::uint16_t *keys, *values;  // of slot 0, were it of the call
  int head;
  bool exists;
  bool is_whole;      // all of the page's tokens are the part's
  bool has_own_mean;  // is opened, with its keys' mean as its centre
  bool leads;         // its keys wait for no page of the call
  bool followed;  // its keys are followed by those of the next page, which wait for it: task kTasks further
  int next;       // of the same team for keys: a task or kNoTask
};
// Tells that it is global memory's: else its stores would ask.
__device__ inline std::uint8_t* page_of(const PrefillTask& task) {
  std::uint8_t* page = task.page;
  __builtin_assume(__isGlobal(page));
  return page;
}
inline constexpr int kTasks = 64, kNoTask = -1;  // of a list

// Which task, and quarter of its values, a warp works on, and which task or unit comes next. It lies in
// shared memory and is read anew wherever it is used: across a search no register is left for it.
struct PrefillTurn {
  int task, quarter, next;
};

struct PrefillShared {
  PrefillTask tasks[2 * kTasks];
  PrefillTurn turns[kPrefillWarps];  // each warp's own
  WarpInput inputs[kPrefillWarps];
  alignas(16) std::uint32_t flips[kPrefillWarps][kPrefillDim];  // sign bits of a page's signs
  alignas(16) std::uint32_t zeros[kSidePairs];
  std::uint8_t value_tokens[kTeamWarps][kWarpVectors];
  std::uint32_t leading[kTasks / 32];  // a bit for each task of the list that leads
  int value_units;                     // that warps have taken: quarter u % 4 of task u / 4
  PrefillKeys keys[kTeams];
  alignas(16) TokenCodes codes[kPrefillWarps];

  __device__ volatile PrefillTurn& turn() { return turns[this_thread() / 32]; }
  __device__ const PrefillTask& task() { return tasks[turn().task]; }
  __device__ int next() { return turn().next; }
  __device__ WarpInput& input() { return inputs[this_thread() / 32]; }
  __device__ void begin_turn(int task, int quarter, int next) {
    __syncwarp();
    turn().task = task;
    turn().quarter = quarter;
    turn().next = next;
    __syncwarp();
  }
  // A warp: the next unit of values, or kNoTask.
  __device__ int take_values() {
    constexpr int kUnits = kTeamWarps * kTasks;
    int unit = 0;
    do {
      if ((this_thread() & 31) == 0) unit = atomicAdd(&value_units, 1);
      unit = __shfl_sync(~0u, unit, 0);
    } while (is_for_warp(unit < kUnits && !tasks[unit / kTeamWarps].exists));
    return unit < kUnits ? unit : kNoTask;
  }
};

static_assert(sizeof(PrefillShared) <= 227 * 1024);  // of an H100's block

// The lane's token's scale into an area of its page, or 0 where a page is opened without the token.
__device__ inline void store_side_scale(const PrefillTask& task, unsigned token, std::uint32_t scale,
                                        std::uint8_t* area) {
  auto* scales = reinterpret_cast<std::uint16_t*>(area);
  bool stores = this_side() == 0;
  if (!is_for_warp(task.is_whole)) {
    const bool present =
        static_cast<int>(token) >= task.part.begin && static_cast<int>(token) < task.part.end;
    stores = stores && (task.part.opens || present);
    if (!present) scale = 0;
  }
  if (stores) scales[8 * (token % 8) + token / 8] = static_cast<std::uint16_t>(scale);
}

}  // namespace turboquant::kernels::cuda
