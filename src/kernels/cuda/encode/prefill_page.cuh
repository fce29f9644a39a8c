// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill_keys.cuh"
#include "kernels/cuda/encode/prefill_values.cuh"

// The keys of a page by a team, and a quarter of its values by a warp: a lane keeps its side of a rotated
// token in registers.
namespace turboquant::kernels::cuda {

// Of keys: of a task, by a team. Of values: of a unit, by a warp.
__device__ inline void fetch_keys(const EncodeCall& call, PrefillShared& shared, int task) {
  const PrefillTask& t = shared.tasks[task];
  const EncodeArgs& a = call.args;
  fetch(t.keys, a.keys.token_stride, a.basis.key_signs + t.head * kPrefillDim, t.part,
        kWarpVectors * this_team().warp + (this_thread() & 31) / 4, 8, shared.input());
}
__device__ inline void fetch_values(const EncodeCall& call, PrefillShared& shared, int unit) {
  const PrefillTask& t = shared.tasks[unit / kTeamWarps];
  const EncodeArgs& a = call.args;
  fetch(t.values, a.values.token_stride, a.basis.value_signs + t.head * kPrefillDim, t.part,
        shared.value_tokens[unit % kTeamWarps][(this_thread() & 31) / 4], a.pages.format.v_bits == 4 ? 2 : 32,
        shared.input());
}

// The lane's side of its fetched vector times its signs.
template <DType kType>
__device__ inline void rotate(PrefillShared& shared, SideVector& y) {
  std::uint32_t* flips = shared.flips[this_thread() / 32];
  if (take_flips(shared.input(), flips)) load_flipped<kType>(shared.input(), flips, y);
  else load_products<kType>(shared.input(), y);
  side_hadamard(y);
}

// The task's keys are being fetched; then the next one's are. Rotated ones lie in shared memory, from where
// they come back when their centre is known: meanwhile none of them takes a register, so both kinds of
// rotations can go on in one code, whose barriers are the same for all warps of a team.
template <DType kType>
__device__ inline void encode_keys(const EncodeCall& call, PrefillShared& shared) {
  const Team team = this_team();
  PrefillKeys& keys = shared.keys[team.number];
  SideVector y;
  wait_for_fetch();
  rotate<kType>(shared, y);
  keep_row(team, y, keys);
  float largest = side_largest(y);
  Rotated scaled{1.0f, true};
  if (!__all_sync(~0u, is_unscaled(largest))) {
    SideVector again;
    scaled = rotate_scaled<kType>(shared.input(), again);
    keep_row(team, again, keys);
    largest = side_largest(again);
  }
  __syncwarp();
  if (is_for_warp(shared.next() != kNoTask)) fetch_keys(call, shared, shared.next());

  const Choice choice = choose_centre(call, shared, largest, scaled);
  const bool centred = choice.nearer && scaled.finite;
  take_row(team, keys, y);
  subtract_centre(y, centred, scaled.factor, choice.measure, keys.centres[team.warp], shared.zeros);
  SideCodes codes =
      code_side<KeyOrder, false>(y, side_largest(y), scaled, call.rotation_scale, call.key_coder);
  if (!centred && codes.scale != kNanScale) codes.scale |= kReferenceIsZero;
  const PageFormat& format = call.args.pages.format;
  const PrefillTask& task = shared.task();
  std::uint8_t* page = page_of(task);
  store_side_scale(task, team.token, codes.scale, page + key_scales_at(format));
  store_key_codes(codes, team.token, task.part, format.k_bits, page);
}

// Codes of a unit's rotated values. What comes next is fetched first. kPlain: all of them have a factor of 1
// and are large. What is known of them is known where they are coded: two copies of the code, but one has no
// moves of registers and fewer branches.
template <bool kPlain, class FetchNext>
__device__ inline void code_values(const EncodeCall& call, PrefillShared& shared, SideVector& y,
                                   float largest, Rotated scaled, const FetchNext& fetch_next) {
  __syncwarp();
  fetch_next();
  const SideCodes codes =
      code_side<ValueOrder, kPlain>(y, largest, scaled, call.rotation_scale, call.value_coder);
  const PageFormat& format = call.args.pages.format;
  const PrefillTask& task = shared.task();
  const int quarter = shared.turn().quarter;
  std::uint8_t* page = page_of(task);
  store_side_scale(task, shared.value_tokens[quarter][this_thread() % kWarpVectors], codes.scale,
                   page + value_scales_at(format));
  store_values(codes, quarter, task.part, format.v_bits, page + value_codes_at(format),
               shared.codes[this_thread() / 32]);
}
template <DType kType, class FetchNext>
__device__ inline void encode_values(const EncodeCall& call, PrefillShared& shared,
                                     const FetchNext& fetch_next) {
  SideVector y;
  wait_for_fetch();
  rotate<kType>(shared, y);
  const float largest = side_largest(y);
  if (__all_sync(~0u, is_unscaled(largest)))
    return code_values<true>(call, shared, y, largest, {1.0f, true}, fetch_next);
  SideVector again;
  const Rotated scaled = rotate_scaled<kType>(shared.input(), again);
  code_values<false>(call, shared, again, side_largest(again), scaled, fetch_next);
}

}  // namespace turboquant::kernels::cuda
