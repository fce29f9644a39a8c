// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/code.cuh"
#include "kernels/cuda/encode/direction.cuh"

// Rule 2a: a page's own mean moved so that one of its keys, the pivot, is decoded at what it is.
namespace turboquant::kernels::cuda {

// A warp codes a pivot, which has chosen the block's stored centre; these are its codes. Then it moves the
// centre: block.steps and block.step.
template <int kDim = 0, int C, class Call>
__device__ inline Coded<C> move_centre(const Call& call, int head, float factor, const float (&y)[C],
                                       const Block& block) {
  const auto& a = call.args;
  const int d = kDim == 0 ? a.pages.format.head_dim : kDim, first = lane_id() * C;
  const std::int8_t* metric = a.basis.key_metric + std::int64_t{head} * d * d;
  const float centre = centre_step(call, block);
  float u[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const float n = block.steps[first + j];
    u[j] = round_to_half(__fadd_rn(y[j], -round_to_half(centre_at(centre, n, factor))));
  }
  constexpr int kRows = kDim == 0 ? 1 : 2;  // others wait for a prefill's: more loads at a time
  const Coded<C> pivot = search<true, kDim, kRows>(u, largest_of(u), factor, call, call.key_coder, metric);
  const Steps steps = steps_of(a.pages.format.k_bits, true);
  const float unit = __fmul_rn(float_of_half(pivot.scale), 1.0f / core::kScaleUnit);
  float c[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const float key = __fmul_rn(__fmul_rn(y[j], one_over_power(factor)), call.rotation_scale);
    c[j] = first < d ? __fadd_rn(key, -__fmul_rn(unit, steps(pivot.codes[j]))) : 0.0f;
  }
  const std::uint32_t half = centre_step_bits(largest_of(c));
  const float inverse = inverse_of(float_of_half(half));
  constexpr auto kMost = static_cast<float>(kLargestError);
  int n[C], errors[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    n[j] = steps_in(c[j], inverse);
    const float off = __fadd_rn(__fmul_rn(c[j], inverse), -static_cast<float>(n[j]));
    const float error = rintf(__fmul_rn(2.0f * kMost, off));
    errors[j] = static_cast<int>(fminf(fmaxf(error, -kMost), kMost));
  }
  flip_steps<kRows>(metric, d, errors, n);
  __syncwarp();
#pragma unroll
  for (int j = 0; j < C; ++j) block.steps[first + j] = static_cast<std::int8_t>(n[j]);
  if (lane_id() == 0) *block.step = half;
  __syncwarp();
  return pivot;
}

// |u . v| of a key of a warp about the block's centre, n . v steps along v: exact, but for one rounding.
template <int C, class Call>
__device__ inline double length_along(const std::int8_t* v, int steps_along, const Call& call,
                                      const float (&y)[C], float factor, const Block& block) {
  double dot = 0.0;
#pragma unroll
  for (int j = 0; j < C; ++j)
    dot += static_cast<double>(__fmul_rn(y[j], static_cast<float>(v[lane_id() * C + j])));
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) dot += __shfl_xor_sync(~0u, dot, apart);
  const double centre = static_cast<double>(centre_step(call, block)) * static_cast<double>(factor) *
                        static_cast<double>(steps_along);
  return fabs(dot - centre) * static_cast<double>(one_over_power(factor));
}
// A warp: n . v.
template <int C>
__device__ inline int steps_along(const std::int8_t* v, const Block& block) {
  int sum = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) sum += v[lane_id() * C + j] * block.steps[lane_id() * C + j];
  return __reduce_add_sync(~0u, sum);
}

// A page's pivot, while it is chosen and while the other keys are coded: where the centre's sums were.
template <int C>
struct Pivot {
  static constexpr int n = 32 * C, kWarps = 8;
  double length[kWarps];  // of each warp's best
  int best[kWarps];       // its slot, -1: none
  int slot;               // the pivot's, -1: none
  std::uint32_t scale;
  alignas(16) std::int8_t direction[n];
  DirectionScratch<n> scratch;
  std::uint8_t codes[n];

  __device__ static Pivot& of(const Block& block) { return *reinterpret_cast<Pivot*>(block.sums); }
  __device__ Coded<C> coded() const {
    Coded<C> out;
    out.scale = scale;
#pragma unroll
    for (int j = 0; j < C; ++j) out.codes[j] = codes[lane_id() * C + j];
    return out;
  }
};
static_assert(sizeof(Pivot<1>) <= 4 * 4 * Pivot<1>::n && sizeof(Pivot<2>) <= 4 * 4 * Pivot<2>::n);

// A key of a part with its own centre, whose keys lie in block.rows if they are `resident`.
template <int C>
__device__ inline Rotated load_kept(const EncodeCall& call, const Part& part, int head, int slot,
                                    bool resident, const Block& block, float (&y)[C]) {
  constexpr int n = 32 * C;
  float x[C];
  load_signed(call, part, true, head, slot, x);
  if (!resident) return rotate_to_half(call, x, block.scratch + block.group.thread() / 32 * n, y);
#pragma unroll
  for (int j = 0; j < C; ++j) y[j] = block.rows[(slot - part.begin) * n + lane_id() * C + j];
  return scale_of(call, x);
}
// A warp of the block: the slot of its longest key along the direction, among those that are finite and have
// chosen the centre, and its length; -1: there is none.
template <int C>
__device__ inline void choose_of_warp(const EncodeCall& call, const Part& part, int head,
                                      const BlockPlan& plan, const Block& block, Pivot<C>& pivot) {
  const int warp = block.group.thread() / 32;
  const bool resident = part.tokens() <= plan.row_count;
  const int along = steps_along<C>(pivot.direction, block);
  double most = -1.0;
  int best = -1;
  for (int t = part.begin + warp; t < part.end; t += plan.warps) {
    float y[C];
    const Rotated scaled = load_kept(call, part, head, t, resident, block, y);
    if (!scaled.finite || !is_nearer(call, y, scaled.factor, block)) continue;
    const double length = length_along(pivot.direction, along, call, y, scaled.factor, block);
    if (!(length > most)) continue;
    most = length;
    best = t;
  }
  if (lane_id() != 0) return;
  pivot.length[warp] = most;
  pivot.best[warp] = best;
}

// All threads of the group, where part.moves_centre(): the pivot's slot, or -1.
template <int C>
__device__ inline int move_own_centre(const EncodeCall& call, const Part& part, int head,
                                      const BlockPlan& plan, const Block& block) {
  const int d = call.args.pages.format.head_dim, lane = lane_id();
  Pivot<C>& pivot = Pivot<C>::of(block);
  find_direction(call.args.basis.key_metric + std::int64_t{head} * d * d, d, block.group, pivot.scratch,
                 pivot.direction);
  choose_of_warp(call, part, head, plan, block, pivot);
  block.group.sync();
  if (block.group.thread() < 32) {
    double most = -1.0;
    int slot = -1;
    for (int warp = 0; warp < plan.warps; ++warp) {
      const double length = pivot.length[warp];
      const int best = pivot.best[warp];
      if (best < 0 || length < most || (length == most && best > slot)) continue;
      most = length;
      slot = best;
    }
    Coded<C> coded{};
    if (slot >= 0) {
      float y[C];
      const Rotated scaled = load_kept(call, part, head, slot, part.tokens() <= plan.row_count, block, y);
      coded = move_centre(call, head, scaled.factor, y, block);
    }
    if (lane == 0) {
      pivot.slot = slot;
      pivot.scale = coded.scale;
    }
#pragma unroll
    for (int j = 0; j < C; ++j) pivot.codes[lane * C + j] = static_cast<std::uint8_t>(coded.codes[j]);
  }
  block.group.sync();
  return pivot.slot;
}

}  // namespace turboquant::kernels::cuda
