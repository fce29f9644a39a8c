// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/encode/block.cuh"

// Rules 2 and 3: a page's centre. All threads of block.group call each of these, which end with its sync().
namespace turboquant::kernels::cuda {

// The stored centre's step next to keys that are not yet over sqrt(d).
template <class Call>
__device__ inline float centre_step(const Call& call, const Block& block) {
  return __fmul_rn(float_of_half(*block.step), call.centre_scale);
}

// Rule 3, in integers: y is a multiple of 2^-24 below 2^16.
template <int C, class Call>
__device__ inline bool is_nearer(const Call& call, const float (&y)[C], float factor, const Block& block) {
  double dot = 0.0;
  int squares = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const int n = block.steps[lane_id() * C + j];
    dot += static_cast<double>(__fmul_rn(y[j], static_cast<float>(n)));
    squares += n * n;
  }
  squares = __reduce_add_sync(~0u, squares);
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) dot += __shfl_xor_sync(~0u, dot, apart);
  return 2.0 * dot >= static_cast<double>(centre_step(call, block)) * static_cast<double>(factor) *
                          static_cast<double>(squares);
}

// Rounds block.centre to what a page stores: block.steps and block.step.
__device__ inline void round_centre(int n, const Block& block) {
  float largest = 0.0f;
  for (int e = lane_id(); e < n; e += 32) largest = fmaxf(largest, fabsf(block.centre[e]));
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
  const std::uint32_t half = centre_step_bits(largest);
  const float inverse = inverse_of(float_of_half(half));
  for (int e = block.group.thread(); e < n; e += block.group.threads)
    block.steps[e] = static_cast<std::int8_t>(steps_in(block.centre[e], inverse));
  if (block.group.thread() == 0) *block.step = half;
  block.group.sync();
}

// The mean of the part's keys in two rounds, rounded. If all of them fit in block.rows they stay there,
// rotated; else they are rotated again in each round.
template <int C>
__device__ inline void own_centre(const EncodeCall& call, const Part& part, int head, const BlockPlan& plan,
                                  const Block& block) {
  constexpr int n = 32 * C;
  const int warp = block.group.thread() / 32, lane = lane_id();
  const int threads = block.group.threads, thread = block.group.thread();
  const bool resident = part.tokens() <= plan.row_count;
  for (int t = part.begin + warp; t < part.end; t += plan.warps) {
    float x[C];
    load_signed(call, part, true, head, t, x);
    const Rotated scaled = scale_of(call, x);
    if (lane != 0) continue;
    block.factors[t] = scaled.factor;
    block.chosen[t] = scaled.finite ? 1 : 0;
  }
  block.group.sync();
  float least = 0x1p127f;
  for (int t = part.begin; t < part.end; ++t)
    if (block.chosen[t] != 0) least = fminf(least, block.factors[t]);
  const float unit = __fmul_rn(64.0f, one_over_power(least));
  for (int round = 0; round < 2; ++round) {
    for (int e = thread; e < 4 * n; e += threads) block.sums[e] = 0.0f;
    int count = 0;
    for (int from = part.begin; from < part.end; from += plan.row_count) {
      const int to = part.end < from + plan.row_count ? part.end : from + plan.row_count;
      for (int t = from + warp; t < to; t += plan.warps) {
        float y[C];
        float* row = block.rows + (t - from) * n + lane * C;
        if (round == 0 || !resident) {
          load_rotated(call, part, true, head, t, block.scratch + warp * n, y);
#pragma unroll
          for (int j = 0; j < C; ++j) row[j] = y[j];
        } else {
#pragma unroll
          for (int j = 0; j < C; ++j) y[j] = row[j];
        }
        const bool chosen = round == 0 || is_nearer(call, y, block.factors[t], block);
        if (lane == 0 && !chosen) block.chosen[t] = 0;
      }
      block.group.sync();
      for (int e = thread; e < n; e += threads) {
        for (int t = from; t < to; ++t) {
          if (block.chosen[t] == 0) continue;
          float& sum = block.sums[t / kMeanSlots * n + e];
          const float weight = round_to_half(weight_of(block.factors[t], least));
          sum = round_to_half(__fadd_rn(sum, __fmul_rn(block.rows[(t - from) * n + e], weight)));
        }
      }
      for (int t = from; t < to; ++t) count += block.chosen[t];
      block.group.sync();
    }
    const float per_unit =
        count > 0 ? __fmul_rn(unit, __fdiv_rn(call.rotation_scale, static_cast<float>(count))) : 0.0f;
    for (int e = thread; e < n; e += threads) {
      const float* sum = block.sums + e;
      const auto add = [](float a, float b) { return round_to_half(__fadd_rn(a, b)); };
      block.centre[e] = __fmul_rn(add(add(sum[0], sum[n]), add(sum[2 * n], sum[3 * n])), per_unit);
    }
    block.group.sync();
    round_centre(n, block);
  }
}

// The page's stored centre.
__device__ inline void load_centre(const std::uint8_t* page, const PageFormat& format, int n,
                                   const Block& block) {
  const auto* row = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  for (int e = block.group.thread(); e < n; e += block.group.threads)
    block.steps[e] = e < format.head_dim ? row[e] : std::int8_t{0};
  if (block.group.thread() == 0)
    *block.step = *reinterpret_cast<const std::uint16_t*>(page + format.centre_step_offset());
  block.group.sync();
}

// Four coordinates' sums over a page's decoded keys that chose its centre. All lanes of a warp call it.
struct KeySums {
  float centre[4], sum[4];
  int count;

  // `codes_at`(t): the coordinates' codes of token t, of kAhead tokens at once: one after another, each would
  // wait for memory. `scales`: those of tokens lane_id() and lane_id() + 32.
  template <int kAhead, class CodesAt>
  __device__ void add(int begin, const std::uint32_t (&scales)[2], const float* steps,
                      const CodesAt& codes_at) {
#pragma unroll 1
    for (int from = begin / kAhead * kAhead; from < kPageTokens; from += kAhead) {
      std::uint32_t codes[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) codes[i] = codes_at(from + i);
      __syncwarp();  // all are on their way before the first is used
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int t = from + i;
        const std::uint32_t scale = __shfl_sync(~0u, t < 32 ? scales[0] : scales[1], t % 32);
        const bool counts = t >= begin && (scale & kReferenceIsZero) == 0 && scale != kNanScale;
        count += counts ? 1 : 0;
        const float step = __fmul_rn(float_of_half(scale), 1.0f / core::kScaleUnit);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float key = __fadd_rn(centre[k], __fmul_rn(step, steps[codes[i] >> (4 * k) & 15u]));
          sum[k] = counts ? __fadd_rn(sum[k], key) : sum[k];
        }
      }
    }
  }
};

struct AnyKeyCodes {
  const std::uint8_t* area;
  int head_dim, bits, e;
  __device__ std::uint32_t operator()(int t) const { return four_key_codes(area, head_dim, bits, t, e); }
};

// The mean of the previous page's decoded keys that chose its centre. That page's writes are seen. Four
// coordinates a thread; block.sums holds what codes stand for. kAhead: KeySums.
template <int kAhead>
__device__ inline void previous_centre(const std::uint8_t* page, const PageFormat& format, int begin, int n,
                                       const Block& block) {
  const int d = format.head_dim, bits = format.k_bits, thread = block.group.thread();
  if (thread < 16)
    block.sums[thread] = steps_of(bits, true)(static_cast<std::uint32_t>(thread & ((1 << bits) - 1)));
  block.group.sync();
  const float centre_step =
      float_of_half(*reinterpret_cast<const std::uint16_t*>(page + format.centre_step_offset()));
  const auto* row = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  const auto* stored = reinterpret_cast<const std::uint16_t*>(page + format.k_scales_offset());
  const std::uint32_t scales[2] = {stored[core::scale_index(lane_id())],
                                   stored[core::scale_index(lane_id() + 32)]};
  for (int first = 128 * (thread / 32); first < n; first += 4 * block.group.threads) {
    const int own = first + 4 * lane_id(), e = own < d ? own : d - 4;
    KeySums sums{};
#pragma unroll
    for (int k = 0; k < 4; ++k) sums.centre[k] = __fmul_rn(centre_step, static_cast<float>(row[e + k]));
    if (bits == 4 || narrow_codes_on_lines(d))
      sums.add<kAhead>(begin, scales, block.sums, KeyColumn(page, d, bits, e));
    else sums.add<1>(begin, scales, block.sums, AnyKeyCodes{page, d, bits, e});
    if (own >= n) continue;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      block.centre[own + k] =
          own < d && sums.count > 0 ? __fdiv_rn(sums.sum[k], static_cast<float>(sums.count)) : 0.0f;
  }
  block.group.sync();
}

// The centre that the part's keys are measured about, of a part without one of its own: block.steps and
// block.step. kAhead: less is shorter code.
template <int C, int kAhead = 16, class Call>
__device__ inline void prepare_given_centre(const Call& call, const PageFormat& format, const Part& part,
                                            int head, const Block& block) {
  constexpr int n = 32 * C;
  if (!part.opens) return load_centre(page_of(call.args, part, part.page, head), format, n, block);
  if (part.has_previous) {
    previous_centre<kAhead>(page_of(call.args, part, part.page - 1, head), format, part.previous_begin(), n,
                            block);
  } else {
    for (int e = block.group.thread(); e < n; e += block.group.threads) block.centre[e] = 0.0f;
    block.group.sync();
  }
  round_centre(n, block);
}
// Of any part.
template <int C>
__device__ inline void prepare_centre(const EncodeCall& call, const Part& part, int head,
                                      const BlockPlan& plan, const Block& block) {
  if (part.opens && part.has_own_centre()) own_centre<C>(call, part, head, plan, block);
  else prepare_given_centre<C>(call, call.args.pages.format, part, head, block);
}

// The rounded centre into its page, and zeros after it.
__device__ inline void store_centre(std::uint8_t* page, const PageFormat& format, const Block& block) {
  const int d = format.head_dim;
  const int bytes = static_cast<int>(format.page_bytes() - format.centre_offset());
  std::uint8_t* row = page + format.centre_offset();
  for (int x = block.group.thread(); x < bytes; x += block.group.threads)
    row[x] = x < d       ? static_cast<std::uint8_t>(block.steps[x])
             : x < d + 2 ? static_cast<std::uint8_t>(*block.step >> (8 * (x - d)))
                         : std::uint8_t{0};
}

}  // namespace turboquant::kernels::cuda
