// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/code.cuh"
#include "kernels/cuda/encode/pack.cuh"

// One token of a page, by a warp: what a decode step appends. All but the stores is done before the wait for
// the previous kernel, which may still be reading the page.
namespace turboquant::kernels::cuda {

// Bytes of a V area of width b that hold a lane's coordinates of one token, with the token's bits put in.
template <int C>
struct ValueBytes {
  std::uint32_t at[C];
  std::uint8_t bytes[C];

  // bits b of codes >> from; the other bits are those that the page has, or zeros.
  __device__ void fill(const std::uint32_t (&codes)[C], int head_dim, int b, int from, int slot,
                       const std::uint8_t* page_area) {
    const int first = lane_id() * C;
    if (first >= head_dim) return;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const core::CodePosition position = core::value_position(head_dim, b, slot, first + j);
      const std::uint32_t mask = (1u << b) - 1;
      at[j] = static_cast<std::uint32_t>(position.byte);
      const std::uint32_t old = page_area != nullptr ? page_area[position.byte] : 0u;
      bytes[j] = static_cast<std::uint8_t>((old & ~(mask << position.shift)) | (codes[j] >> from & mask)
                                                                                   << position.shift);
    }
  }
  __device__ void store(int head_dim, std::uint8_t* area) const {
    if (lane_id() * C >= head_dim) return;
#pragma unroll
    for (int j = 0; j < C; ++j) area[at[j]] = bytes[j];
  }
};

template <int C>
__device__ inline void encode_token(const EncodeCall& call, const Part& part, bool is_key, int head,
                                    const BlockPlan& plan, const Block& block) {
  const PageFormat& format = call.args.pages.format;
  const int d = format.head_dim, bits = is_key ? format.k_bits : format.v_bits, slot = part.begin;
  std::uint8_t* page = page_of(call.args, part, part.page, head);
  const Target target{page + (is_key ? format.k_codes_offset() : format.v_codes_offset()),
                      page + (is_key ? format.k_scales_offset() : format.v_scales_offset())};
  float y[C];
  load_rotated(call, part, is_key, head, slot, block.scratch, y);
  if (is_key) prepare_centre<C>(call, part, head, plan, block);
  const SearchTable table{block.table, bits, stored_scale_unit(bits, is_key)};
  const Coded<C> token = is_key ? code_key(call, y, block, table) : code_value(call, y, table);
  ValueBytes<C> low, top;
  auto* codes = reinterpret_cast<std::uint8_t*>(block.scratch);
  if (is_key) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < C; ++j) codes[lane_id() * C + j] = static_cast<std::uint8_t>(token.codes[j]);
    __syncwarp();
  } else {
    const std::uint8_t* old = part.opens ? nullptr : target.codes;
    low.fill(token.codes, d, bits == 4 ? 4 : 2, 0, slot, old);
    if (bits == 3) top.fill(token.codes, d, 1, 2, slot, old == nullptr ? nullptr : old + 16 * d);
  }

  wait_for_previous_kernel();
  let_next_kernel_start();
  if (part.opens) {
    zero_16(block.group, target.codes, 8 * d * bits);
    zero_16(block.group, target.scales, 2 * kPageTokens);
    if (is_key) store_centre(page, format, block);
    __syncwarp();
  }
  if (is_key) {
    pack_key(codes, d, bits, slot, target.codes);
  } else {
    low.store(d, target.codes);
    if (bits == 3) top.store(d, target.codes + 16 * d);
  }
  if (lane_id() == 0) store_scale(target, slot, token.scale);
  store_fringe(call, part, is_key, head, slot, y);
}

}  // namespace turboquant::kernels::cuda
