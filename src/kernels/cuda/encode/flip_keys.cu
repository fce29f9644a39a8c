// SPDX-License-Identifier: Apache-2.0
// Rule 5a behind the prefill kernel, which has coded as if there were no key_metric: a warp takes a key once
// more, with the codes that its page has. Keys whose centre is the mean of such a page's are encoded anew.
#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/launch_pages.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kC = 4;  // coordinates a lane: head_dim 128

// The part's keys, which lie in its page.
__device__ inline void flip_part(const EncodeCall& call, const Part& part, int head, const BlockPlan& plan,
                                 const Block& block) {
  const PageFormat& format = call.args.pages.format;
  const int d = format.head_dim, bits = format.k_bits, warp = block.group.thread() / 32,
            first = lane_id() * kC;
  std::uint8_t* page = page_of(call.args, part, part.page, head);
  const Target target{page + format.k_codes_offset(), page + format.k_scales_offset()};
  const std::int8_t* metric = call.args.basis.key_metric + std::int64_t{head} * d * d;
  const Coder& coder = call.key_coder;
  float* scratch = block.scratch + warp * 32 * kC;
  auto* bytes = reinterpret_cast<std::uint8_t*>(scratch);
  load_centre(page, format, 32 * kC, block);
  for (int slot = part.begin + warp; slot < part.end; slot += plan.warps) {
    float u[kC];
    const Rotated scaled = load_rotated(call, part, true, head, slot, scratch, u);
    if (!scaled.finite) continue;
    const std::uint32_t reference =
        reinterpret_cast<const std::uint16_t*>(target.scales)[core::scale_index(slot)] & kReferenceIsZero;
#pragma unroll
    for (int j = 0; j < kC; ++j) {
      if (reference != 0) continue;
      const float c =
          centre_at(centre_step(call, block), static_cast<float>(block.steps[first + j]), scaled.factor);
      u[j] = round_to_half(__fadd_rn(u[j], -round_to_half(c)));
    }
    const float largest = largest_of(u);
    if (largest == 0.0f) continue;
    const float levels_per_unit = round_to_11_bits(__fdiv_rn(static_cast<float>(core::kMaxLevel), largest));
    const std::uint32_t four = four_key_codes(target.codes, d, bits, slot, first);
    std::uint32_t levels[kC], codes[kC], sum_n = 0, sum_b = 0;
#pragma unroll
    for (int j = 0; j < kC; ++j) {
      const float level = round_to_11_bits(__fmul_rn(fabsf(u[j]), levels_per_unit));
      levels[j] = __float_as_uint(__fadd_rn(level, 0x1p23f)) & 0xffu;
      codes[j] = four >> (4 * j) & ((1u << (bits - 1)) - 1);
      const std::uint32_t magnitude = magnitudes_at(coder.of[0], codes[j]) & 0xffu;
      sum_n += levels[j] * levels[j];
      sum_b += magnitude * magnitude;
    }
    sum_n = __reduce_add_sync(~0u, sum_n);
    sum_b = __reduce_add_sync(~0u, sum_b);
    const float b = flip_codes(metric, levels, u, d, coder, sum_n, __uint2float_rn(sum_b), codes);
    const float unit = __fmul_rn(
        __fmul_rn(__fmul_rn(largest, one_over_power(scaled.factor)), call.rotation_scale), coder.unit);
    const std::uint32_t scale =
        half_bits_clamped(__fmul_rn(unit, __fsqrt_rn(__fdiv_rn(__uint2float_rn(sum_n), b))));
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kC; ++j) bytes[first + j] = static_cast<std::uint8_t>(codes[j]);
    __syncwarp();
    pack_key(bytes, d, bits, slot, target.codes);
    if (lane_id() == 0) store_scale(target, slot, scale | reference);
    __syncwarp();
  }
}

// Grid: (slots, kv_heads).
__global__ void __launch_bounds__(32 * kPageWarps, 2)
    flip_keys(const __grid_constant__ EncodeCall call, const BlockPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int head = static_cast<int>(blockIdx.y);
  Part part;
  if (!find_slot(call, blockIdx.x, part) || (part.follows() && part.previous_in_call)) return;
  const Block block = carve_block<kC>(shared, plan);
  flip_part(call, part, head, plan, block);
  for (Part next; find_part(call.args.sequences, part.sequence, part.page + 1, next) && next.follows();) {
    block.group.sync();
    part = next;
    encode_part<true, kC>(call, part, true, head, plan, block);
  }
}

}  // namespace

Status launch_flip_keys(const EncodeCall& call, std::int64_t slots, const Context& context) {
  const BlockPlan plan = plan_of(call.args.pages.format, 32 * kC, false);
  const dim3 grid(static_cast<unsigned>(slots), static_cast<unsigned>(call.args.pages.kv_heads));
  const Launch how{"encode", grid, dim3(32 * kPageWarps), static_cast<std::size_t>(plan.bytes(32 * kC)),
                   true};
  return launch(how, context, &flip_keys, call, plan);
}

}  // namespace turboquant::kernels::cuda
