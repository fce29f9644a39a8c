// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/code.cuh"
#include "kernels/cuda/encode/pack.cuh"

// One token of a page, by a warp: what a decode step appends. All but the stores is done before the wait for
// the previous kernel, which may still be reading the page; they then go straight from registers.
namespace turboquant::kernels::cuda {

// Bytes of a token's row of a K area of width b: lane L has bytes L, 32 + L, ...
template <int C>
struct KeyBytes {
  static constexpr int kCount = (C + 1) / 2;
  std::uint32_t at[kCount];  // ~0: none
  std::uint8_t bytes[kCount];

  // codes [head_dim] in shared memory, of which bits b of codes >> from are meant.
  __device__ void fill(const std::uint8_t* codes, int head_dim, int b, int from, int slot) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int x = 32 * j + lane_id();
      at[j] = ~0u;
      bytes[j] = 0;
      if (8 * x >= head_dim * b) continue;
      const core::Plane plane = core::plane_of(head_dim, 8 * x / b);
      const int in_row = x - plane.first * b / 8;
      at[j] = static_cast<std::uint32_t>((plane.first * kPageTokens + slot * plane.width) * b / 8 + in_row);
      bytes[j] = key_row_byte(codes + plane.first, plane.width, b, from, in_row);
    }
  }
  __device__ void store(std::uint8_t* area) const {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (at[j] != ~0u) area[at[j]] = bytes[j];
  }
};

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

// A token on its way into its page. `top` is the 1-bit area of 3 bits.
template <class Bytes>
struct Token {
  Target target;
  std::uint32_t scale;
  Bytes low, top;
  FringeSlots fringe;
  bool opens, has_top;
};

// What follows the wait. Keys and values differ in `store`, which puts one area's bytes.
template <int C, class Bytes, class Store>
__device__ inline void store_token(const EncodeCall& call, const Token<Bytes>& token, bool is_key, int slot,
                                   const float (&x)[C], const Block& block, const Store& store) {
  const PageFormat& format = call.args.pages.format;
  const int d = format.head_dim;
  if (token.opens) {
    zero_16(block.group, token.target.codes, 8 * d * (is_key ? format.k_bits : format.v_bits));
    zero_16(block.group, token.target.scales, 2 * kPageTokens);
    if (is_key) store_centre(token.target.codes - format.k_codes_offset(), format, block);
    __syncwarp();
  }
  store(token.low, token.target.codes);
  if (token.has_top) store(token.top, token.target.codes + 16 * d);
  if (lane_id() == 0) store_scale(token.target, slot, token.scale);
  store_fringe(token.fringe, is_key, call, x);
}

template <bool kFlip, int C>
__device__ inline void encode_token(const EncodeCall& call, const Part& part, bool is_key, int head,
                                    const Block& block) {
  const PageFormat& format = call.args.pages.format;
  const int d = format.head_dim, bits = is_key ? format.k_bits : format.v_bits, slot = part.begin;
  std::uint8_t* page = page_of(call.args, part, part.page, head);
  const Target target{page + (is_key ? format.k_codes_offset() : format.v_codes_offset()),
                      page + (is_key ? format.k_scales_offset() : format.v_scales_offset())};
  float x[C];
  load_signed(call, part, is_key, head, slot, x);
  Coded<C> coded;
  {
    float y[C];
    const Rotated scaled = rotate_to_half(call, x, block.scratch, y);
    if (is_key) prepare_given_centre<C>(call, format, part, head, block);
    coded = code_vector<kFlip>(call, is_key, head, scaled, y, block);
  }
  const FringeSlots fringe = fringe_slots(call.args, part, head, part.position(slot));
  if (fringe.first != nullptr || fringe.recent != nullptr) rotate_exactly(call, block.scratch, x);
  const int low_bits = bits == 4 ? 4 : 2;
  if (is_key) {
    auto* codes = reinterpret_cast<std::uint8_t*>(block.scratch);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < C; ++j) codes[lane_id() * C + j] = static_cast<std::uint8_t>(coded.codes[j]);
    __syncwarp();
    Token<KeyBytes<C>> token{target, coded.scale, {}, {}, fringe, part.opens, bits == 3};
    token.low.fill(codes, d, low_bits, 0, slot);
    if (bits == 3) token.top.fill(codes, d, 1, 2, slot);
    wait_for_previous_kernel();
    store_token<C>(call, token, true, slot, x, block,
                   [](const KeyBytes<C>& bytes, std::uint8_t* area) { bytes.store(area); });
  } else {
    const std::uint8_t* old = part.opens ? nullptr : target.codes;
    Token<ValueBytes<C>> token{target, coded.scale, {}, {}, fringe, part.opens, bits == 3};
    token.low.fill(coded.codes, d, low_bits, 0, slot, old);
    if (bits == 3) token.top.fill(coded.codes, d, 1, 2, slot, old == nullptr ? nullptr : old + 16 * d);
    wait_for_previous_kernel();
    store_token<C>(call, token, false, slot, x, block,
                   [d](const ValueBytes<C>& bytes, std::uint8_t* area) { bytes.store(d, area); });
  }
}

}  // namespace turboquant::kernels::cuda
