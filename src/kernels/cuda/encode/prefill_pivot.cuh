// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/pivot.cuh"
#include "kernels/cuda/encode/prefill_keys.cuh"

// Rule 2a in a prefill: a team's warps choose, one of them codes the pivot and moves the centre.
namespace turboquant::kernels::cuda {

// A page's centre, before it is moved and after, and its pivot; by tokens, what it is chosen by.
struct alignas(16) TeamPivot {
  std::int8_t steps[kPrefillDim];
  std::uint16_t codes[2][kSideDim / 4];  // of a side: halves of SideCodes' words
  std::uint32_t step, scale;
  int slot;                    // kPageTokens: none
  float factors[kPageTokens];  // 0: not finite
  float largest[kPageTokens];  // of the rotated key
  float lengths[kPageTokens];  // |u . v|, about; -1: no candidate
  float bounds[kPageTokens];   // by how much at most it is off
};
__device__ inline bool moves_centre(const PrefillTask& task) {
  return is_for_warp(task.has_own_mean);
}
// The warp of the team that codes pivots: a scheduler has one such warp.
__device__ inline bool codes_pivots(const Team& team) {
  return is_for_warp(team.warp == team.number % kTeamWarps);
}

// A warp measures its tokens along the head's direction v. chose: the lane's token counts and has chosen the
// page's mean. What a key of another factor than 1 measures is left to measure_exactly().
__device__ inline void measure_along(const EncodeCall& call, const Team& team, const std::int8_t* v,
                                     const Choice& choice, bool chose, float largest, float factor,
                                     PrefillKeys& keys, TeamPivot& pivot) {
  const Stored direction{reinterpret_cast<const std::uint32_t*>(v)[this_thread() & 31], 0};
  float n[4];
  find_steps(direction, n);
  const Measure along = take_centre(direction, n, 0.0f, keys.centres[team.warp]);
  const int steps = __reduce_add_sync(
      ~0u, __dp4a(static_cast<int>(choice.stored.steps), static_cast<int>(direction.steps), 0));
  const float centre = __fmul_rn(choice.measure.step, __int2float_rn(steps));
  const float length = fabsf(__fadd_rn(dot_with_steps(keys, team), -centre));
  // The product as in is_nearer(); what is left as fp32 rounds it.
  const float bound = 0x1p-14f * largest * root_about(along.squares) + 0x1p-20f * fabsf(centre);
  if (this_side() != 0) return;
  pivot.lengths[team.token] = !chose ? -1.0f : factor == 1.0f ? length : 0.0f;
  pivot.bounds[team.token] = factor == 1.0f ? bound : __uint_as_float(0x7f800000u);
}
// A warp: |u . v| of a token, as the rule has it.
__device__ inline double measure_exactly(int slot, const std::int8_t* v, float centre_scale,
                                         const PrefillKeys& keys, const TeamPivot& pivot) {
  const int lane = this_thread() & 31;
  const std::uint32_t steps = reinterpret_cast<const std::uint32_t*>(v)[lane];
  float n[4];
  find_steps({steps, 0}, n);
  const uint2 two = reinterpret_cast<const uint2*>(keys.rows[slot])[lane];
  const float2 even = __half22float2(as_half2(two.x)), odd = __half22float2(as_half2(two.y));
  double dot = static_cast<double>(even.x * n[0]) + static_cast<double>(odd.x * n[1]) +
               static_cast<double>(even.y * n[2]) + static_cast<double>(odd.y * n[3]);
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) dot += __shfl_xor_sync(~0u, dot, apart);
  const auto centre = static_cast<int>(reinterpret_cast<const std::uint32_t*>(pivot.steps)[lane]);
  const int along = __reduce_add_sync(~0u, __dp4a(centre, static_cast<int>(steps), 0));
  const float factor = pivot.factors[slot], step = __fmul_rn(float_of_half(pivot.step), centre_scale);
  return fabs(dot - static_cast<double>(step) * static_cast<double>(factor) * static_cast<double>(along)) *
         static_cast<double>(one_over_power(factor));
}
// A warp, when all have measured theirs: the first of the longest; kPageTokens if there is no candidate.
__device__ inline int choose_pivot(const std::int8_t* v, float centre_scale, const PrefillKeys& keys,
                                   const TeamPivot& pivot) {
  const int lane = this_thread() & 31;
  float length[2], bound[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    length[k] = pivot.lengths[lane + 32 * k];
    bound[k] = pivot.bounds[lane + 32 * k];
  }
  const auto least = [&](int k) { return fmaxf(length[k] - bound[k], 0.0f); };  // bits are in order
  const float most = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(fmaxf(least(0), least(1)))));
  std::uint32_t candidates[2];
#pragma unroll
  for (int k = 0; k < 2; ++k)
    candidates[k] = __ballot_sync(~0u, length[k] >= 0.0f && length[k] + bound[k] >= most);
  const int count = __popc(candidates[0]) + __popc(candidates[1]);
  if (is_for_warp(count <= 1))
    return candidates[0] != 0   ? __ffs(static_cast<int>(candidates[0])) - 1
           : candidates[1] != 0 ? __ffs(static_cast<int>(candidates[1])) + 31
                                : kPageTokens;
  double longest = -1.0;
  int slot = kPageTokens;
#pragma unroll 1
  for (int t = 0; t < kPageTokens; ++t) {
    if (is_for_warp(((t < 32 ? candidates[0] : candidates[1]) >> (t % 32) & 1) == 0)) continue;
    const double exact = measure_exactly(t, v, centre_scale, keys, pivot);
    if (is_for_warp(exact > longest)) {
      longest = exact;
      slot = t;
    }
  }
  return slot;
}
// A warp: chooses the pivot, codes it and moves the centre.
__device__ inline void code_pivot(const EncodeCall& call, int head, const std::int8_t* v,
                                  const PrefillKeys& keys, TeamPivot& pivot) {
  const int slot = choose_pivot(v, call.centre_scale, keys, pivot), lane = this_thread() & 31;
  if (lane == 0) pivot.slot = slot;
  if (is_for_warp(slot == kPageTokens)) return;
  Block block{};
  block.steps = pivot.steps;
  block.step = &pivot.step;
  const uint2 two = reinterpret_cast<const uint2*>(keys.rows[slot])[lane];
  const float2 even = __half22float2(as_half2(two.x)), odd = __half22float2(as_half2(two.y));
  const Coded<4> coded =
      move_centre<kPrefillDim>(call, head, pivot.factors[slot], {even.x, odd.x, even.y, odd.y}, block);
  // Coordinates 32 i + 16 h + 4 q + n of a side: KeyOrder.
  const int i = lane / 8 % 2, h = lane / 4 % 2, q = lane % 4;
  pivot.codes[lane / 16][2 * (2 * q + i) + h] = static_cast<std::uint16_t>(
      coded.codes[0] | coded.codes[1] << 4 | coded.codes[2] << 8 | coded.codes[3] << 12);
  if (lane == 0) pivot.scale = coded.scale;
}
// The lane's token's codes, where it is the pivot.
__device__ inline void take_pivot(const Team& team, const TeamPivot& pivot, SideCodes& codes) {
  if (team.token != pivot.slot) return;
  const auto* words = reinterpret_cast<const uint4*>(pivot.codes[this_side()]);
#pragma unroll
  for (int w = 0; w < kSideWords; w += 4) {
    const uint4 four = words[w / 4];
    codes.words[w] = four.x;
    codes.words[w + 1] = four.y;
    codes.words[w + 2] = four.z;
    codes.words[w + 3] = four.w;
  }
  codes.scale = pivot.scale;
}

// What encode/flip_keys.cu finds behind the centre's step of a page it goes on with, and makes 0.
__device__ inline std::uint32_t pivot_mark(int slot) {
  return slot < kPageTokens ? static_cast<std::uint32_t>(slot + 1) << 16 : 0;
}
__device__ inline int marked_pivot(std::uint32_t step_and_mark) {
  return static_cast<int>(step_and_mark >> 16) - 1;
}

}  // namespace turboquant::kernels::cuda
