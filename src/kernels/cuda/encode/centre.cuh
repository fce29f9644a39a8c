// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/encode/block.cuh"

// Rules 2 and 3: a page's centre. All threads of block.group call each of these, which end with its sync().
namespace turboquant::kernels::cuda {

template <int C>
__device__ inline void subtract(const float (&y)[C], const float* centre, float (&u)[C]) {
#pragma unroll
  for (int j = 0; j < C; ++j) u[j] = __fadd_rn(y[j], -centre[lane_id() * C + j]);
}

// The mean of the part's keys in two rounds, into block.centre. If all of them fit in block.rows they stay
// there, rotated; else they are rotated again in each round.
template <int C>
__device__ inline void own_centre(const EncodeCall& call, const Part& part, int head, const BlockPlan& plan,
                                  const Block& block) {
  constexpr int n = 32 * C;
  const int warp = block.group.thread() / 32, lane = lane_id();
  const int threads = block.group.threads, thread = block.group.thread();
  const bool resident = part.tokens() <= plan.row_count;
  for (int round = 0; round < 2; ++round) {
    for (int e = thread; e < n; e += threads) block.sums[e] = 0.0f;
    int count = 0;
    for (int from = part.begin; from < part.end; from += plan.row_count) {
      const int to = part.end < from + plan.row_count ? part.end : from + plan.row_count;
      for (int t = from + warp; t < to; t += plan.warps) {
        float y[C], u[C];
        float* row = block.rows + (t - from) * n + lane * C;
        if (round == 0 || !resident) {
          load_rotated(call, part, true, head, t, block.scratch + warp * n, y);
#pragma unroll
          for (int j = 0; j < C; ++j) row[j] = y[j];
        } else {
#pragma unroll
          for (int j = 0; j < C; ++j) y[j] = row[j];
        }
        bool chosen = largest_of(y) < kLargest;
        if (round == 1) {
          subtract(y, block.centre, u);
          chosen = tree_squared_norm(u) <= tree_squared_norm(y) && chosen;
        }
        if (lane == 0) block.chosen[t - from] = chosen ? 1 : 0;
      }
      block.group.sync();
      for (int e = thread; e < n; e += threads) {
        float sum = block.sums[e];
#pragma unroll 8
        for (int t = 0; t < to - from; ++t)
          if (block.chosen[t] != 0) sum = __fadd_rn(sum, block.rows[t * n + e]);
        block.sums[e] = sum;
      }
      for (int t = 0; t < to - from; ++t) count += block.chosen[t];
      block.group.sync();
    }
    for (int e = thread; e < n; e += threads)
      block.centre[e] = count > 0 ? __fdiv_rn(block.sums[e], static_cast<float>(count)) : 0.0f;
    block.group.sync();
  }
  for (int e = thread; e < n; e += threads) block.centre[e] = __fmul_rn(block.centre[e], call.rotation_scale);
  block.group.sync();
}

// The page's stored centre, times sqrt(d) as keys are.
__device__ inline void load_centre(const std::uint8_t* page, const EncodeCall& call, int n,
                                   const Block& block) {
  const PageFormat& format = call.args.pages.format;
  const float step =
      __fmul_rn(float_of_half(*reinterpret_cast<const std::uint16_t*>(page + format.centre_step_offset())),
                call.centre_scale);
  const auto* row = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  for (int e = block.group.thread(); e < n; e += block.group.threads)
    block.centre[e] = e < format.head_dim ? __fmul_rn(step, static_cast<float>(row[e])) : 0.0f;
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
// coordinates a thread; block.sums holds what codes stand for.
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
    if (bits == 4) sums.add<16>(begin, scales, block.sums, KeyColumn<4>(page, d, e));
    else if (!narrow_codes_on_lines(d)) sums.add<1>(begin, scales, block.sums, AnyKeyCodes{page, d, bits, e});
    else if (bits == 3) sums.add<16>(begin, scales, block.sums, KeyColumn<3>(page, d, e));
    else sums.add<16>(begin, scales, block.sums, KeyColumn<2>(page, d, e));
    if (own >= n) continue;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      block.centre[own + k] =
          own < d && sums.count > 0 ? __fdiv_rn(sums.sum[k], static_cast<float>(sums.count)) : 0.0f;
  }
  block.group.sync();
}

// Rounds block.centre to what a page stores: block.steps and block.step, and block.centre again from those,
// times sqrt(d).
__device__ inline void round_centre(const EncodeCall& call, int n, const Block& block) {
  float largest = 0.0f;
  for (int e = lane_id(); e < n; e += 32) largest = fmaxf(largest, fabsf(block.centre[e]));
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
  const std::uint32_t half = half_bits_clamped(__fdiv_rn(largest, 127.0f));
  const float step = float_of_half(half);
  block.group.sync();
  for (int e = block.group.thread(); e < n; e += block.group.threads) {
    const float steps = step > 0.0f ? rintf(__fdiv_rn(block.centre[e], step)) : 0.0f;
    const auto stored = static_cast<std::int8_t>(fminf(fmaxf(steps, -127.0f), 127.0f));
    block.steps[e] = stored;
    block.centre[e] = __fmul_rn(__fmul_rn(step, call.centre_scale), static_cast<float>(stored));
  }
  if (block.group.thread() == 0) *block.step = half;
  block.group.sync();
}

// The centre that the part's keys are measured about: block.centre, and where the part opens its page also
// block.steps and block.step.
template <int C>
__device__ inline void prepare_centre(const EncodeCall& call, const Part& part, int head,
                                      const BlockPlan& plan, const Block& block) {
  constexpr int n = 32 * C;
  const PageFormat& format = call.args.pages.format;
  if (!part.opens) return load_centre(page_of(call.args, part, part.page, head), call, n, block);
  if (part.has_own_centre()) {
    own_centre<C>(call, part, head, plan, block);
  } else if (part.has_previous) {
    previous_centre(page_of(call.args, part, part.page - 1, head), format, part.previous_begin(), n, block);
  } else {
    for (int e = block.group.thread(); e < n; e += block.group.threads) block.centre[e] = 0.0f;
    block.group.sync();
  }
  round_centre(call, n, block);
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
