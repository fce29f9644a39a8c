// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/append.cuh"
#include "kernels/cuda/encode/pivot.cuh"

// encode of any format and any ragged call: one block for the keys, one for the values of each page (and KV
// head) that the call touches, one warp a token.
namespace turboquant::kernels::cuda {

// Prepares what a block writes into: its image gets the page's bytes, or zeros where the page is opened. With
// `direct`, zeros the page. Before any thread of the block writes a code.
__device__ inline Target open_target(std::uint8_t* page, const PageFormat& format, bool is_key, bool opens,
                                     const BlockPlan& plan, const Block& block) {
  std::uint8_t* codes = page + (is_key ? format.k_codes_offset() : format.v_codes_offset());
  std::uint8_t* scales = page + (is_key ? format.k_scales_offset() : format.v_scales_offset());
  const int code_bytes = 8 * format.head_dim * (is_key ? format.k_bits : format.v_bits);
  Target target{codes, scales};
  if (!plan.direct) {
    target = {block.image, block.image + code_bytes};
    if (!opens) {
      copy_16(block.group, target.codes, codes, code_bytes);
      copy_16(block.group, target.scales, scales, 2 * kPageTokens);
    }
  }
  if (opens) {
    zero_16(block.group, target.codes, code_bytes);
    zero_16(block.group, target.scales, 2 * kPageTokens);
  }
  return target;
}

__device__ inline void close_target(std::uint8_t* page, const PageFormat& format, bool is_key,
                                    const BlockPlan& plan, const Block& block, const Target& target) {
  if (plan.direct) return;
  const int code_bytes = 8 * format.head_dim * (is_key ? format.k_bits : format.v_bits);
  copy_16(block.group, page + (is_key ? format.k_codes_offset() : format.v_codes_offset()), target.codes,
          code_bytes);
  copy_16(block.group, page + (is_key ? format.k_scales_offset() : format.v_scales_offset()), target.scales,
          2 * kPageTokens);
}

// The part's keys or values: all warps code a token each, then all threads store. Nothing is written before
// the previous kernel has ended.
template <bool kFlip, int C>
__device__ inline void encode_part(const EncodeCall& call, const Part& part, bool is_key, int head,
                                   const BlockPlan& plan, const Block& block) {
  constexpr int n = 32 * C;
  const PageFormat& format = call.args.pages.format;
  const int d = format.head_dim, bits = is_key ? format.k_bits : format.v_bits;
  const int warp = block.group.thread() / 32, lane = lane_id();
  std::uint8_t* page = page_of(call.args, part, part.page, head);
  const bool resident = is_key && part.opens && part.has_own_centre() && part.tokens() <= plan.row_count;
  if (is_key) prepare_centre<C>(call, part, head, plan, block);
  int pivot = -1;
  if (kFlip && is_key && part.moves_centre()) pivot = move_own_centre<C>(call, part, head, plan, block);

  float* scratch = block.scratch + warp * n;
  auto* codes = reinterpret_cast<std::uint8_t*>(scratch);
  Target target{};
  for (int from = part.begin; from < part.end; from += plan.warps) {
    const int slot = from + warp;
    Coded<C> token;
    if (slot < part.end) {
      if (kFlip && slot == pivot) {
        token = Pivot<C>::of(block).coded();
      } else {
        float x[C], y[C];
        load_signed(call, part, is_key, head, slot, x);
        Rotated scaled;
        if (resident) {
          scaled = scale_of(call, x);
#pragma unroll
          for (int j = 0; j < C; ++j) y[j] = block.rows[(slot - part.begin) * n + lane * C + j];
        } else {
          scaled = rotate_to_half(call, x, scratch, y);
        }
        token = code_vector<kFlip>(call, is_key, head, scaled, y, block);
      }
      __syncwarp();
#pragma unroll
      for (int j = 0; j < C; ++j) codes[lane * C + j] = static_cast<std::uint8_t>(token.codes[j]);
    }
    if (from == part.begin) {
      wait_for_previous_kernel();
      target = open_target(page, format, is_key, part.opens, plan, block);
      if (is_key && part.opens) store_centre(page, format, block);
    }
    block.group.sync();
    if (slot < part.end) {
      if (lane == 0) store_scale(target, slot, token.scale);
      if (is_key) pack_key(codes, d, bits, slot, target.codes);
    }
    if (!is_key) {
      for (int e = block.group.thread(); e < d; e += block.group.threads)
        for (int w = 0; w < plan.warps && from + w < part.end; ++w)
          pack_value(reinterpret_cast<const std::uint8_t*>(block.scratch + w * n)[e], d, bits, from + w, e,
                     target.codes);
      block.group.sync();
    }
    __syncwarp();
    if (slot < part.end) make_fringe<C>(call, part, is_key, head, slot, scratch);
  }
  block.group.sync();
  close_target(page, format, is_key, plan, block, target);
}

// The same as a call: where a page gets one token, as most do, a kernel shall not pay for what others need.
template <int C>
__device__ __noinline__ void encode_part_apart(const EncodeCall& call, const Part part, bool is_key, int head,
                                               const BlockPlan plan, const Block block) {
  encode_part<true, C>(call, part, is_key, head, plan, block);
}

// Blocks an SM, at least.
template <int C, bool kDirect, bool kFlip>
inline constexpr int kPageBlocks = C > 4     ? 1
                                   : kDirect ? (kFlip ? 8 : 12)
                                   : kFlip   ? 2
                                             : 1;
// Grid: (slots, 2 kv_heads); blockIdx.y = 2 head + (0 keys, 1 values). With kDirect, which is plan.direct,
// (slots, kv_heads): warp 0 keys, warp 1 values, and few registers, for a place beside a running attend.
// kFlip: there is a key_metric.
template <int C, bool kDirect, bool kFlip>
__global__ void __launch_bounds__(kDirect ? 64 : 256, kPageBlocks<C, kDirect, kFlip>)
    encode_pages(const __grid_constant__ EncodeCall call, const BlockPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  if (!call.args.settled) wait_for_previous_kernel();
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int head = static_cast<int>(kDirect ? blockIdx.y : blockIdx.y / 2);
  const bool is_key = (kDirect ? warp : static_cast<int>(blockIdx.y % 2)) == 0;
  Part part;
  // The block of the page before also encodes keys that follow it.
  if (!find_slot(call, blockIdx.x, part) || (is_key && part.follows() && part.previous_in_call)) {
    wait_for_previous_kernel();
    return;
  }
  Block block = carve_block<C>(shared, plan);
  if constexpr (kDirect) {
    block.group.first = 32 * warp;
    if (!is_key) block.scratch = reinterpret_cast<float*>(shared + plan.bytes(32 * C));
  }
  for (;;) {
    if constexpr (kDirect) {
      if (part.tokens() == 1) encode_token<kFlip, C>(call, part, is_key, head, block);
      else if constexpr (kFlip) encode_part_apart<C>(call, part, is_key, head, plan, block);
      else encode_part<kFlip, C>(call, part, is_key, head, plan, block);
    } else {
      encode_part<kFlip, C>(call, part, is_key, head, plan, block);
    }
    Part next;
    if (!is_key || !find_part(call.args.sequences, part.sequence, part.page + 1, next) || !next.follows())
      break;
    block.group.sync();
    part = next;
  }
}

}  // namespace turboquant::kernels::cuda
