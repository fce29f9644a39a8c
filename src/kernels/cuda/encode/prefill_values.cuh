// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill.cuh"

// The values of a page by one warp: twice 32 tokens, then one transpose of nibbles.
namespace turboquant::kernels::cuda {

// The bytes of four words, transposed: byte k of out[s] is byte s of in[k].
__device__ inline void transpose_bytes(const std::uint32_t (&in)[4], std::uint32_t (&out)[4]) {
  const std::uint32_t low01 = __byte_perm(in[0], in[1], 0x5140), high01 = __byte_perm(in[0], in[1], 0x7362);
  const std::uint32_t low23 = __byte_perm(in[2], in[3], 0x5140), high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

// Nibble x of word m becomes nibble m of word x.
__device__ inline void transpose_nibbles(std::uint32_t (&words)[8]) {
#pragma unroll
  for (int m = 0; m < 8; m += 2) {
    const std::uint32_t a = words[m], b = words[m + 1];
    words[m] = (a & 0x0f0f0f0fu) | (b << 4 & 0xf0f0f0f0u);
    words[m + 1] = (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u);
  }
  // Bytes: byte y of word 2 m + p now belongs to byte m of word 2 y + p.
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const std::uint32_t in[4] = {words[p], words[2 + p], words[4 + p], words[6 + p]};
    std::uint32_t out[4];
    transpose_bytes(in, out);
#pragma unroll
    for (int y = 0; y < 4; ++y) words[2 * y + p] = out[y];
  }
}

// Codes of the page's 64 tokens into its V area. Lane 16 i + 4 q + block makes the words of (i, q) of 32
// coordinates: units 4 (4 x + q) + 0..3 of the block hold coordinates x, 8 + x, 16 + x, 24 + x.
__device__ inline void store_value_codes(const PrefillValues& values, const Part& part, int bits,
                                         std::uint8_t* area) {
  const int lane = static_cast<int>(threadIdx.x & 31), i = lane >> 4, q = lane >> 2 & 3, block = lane & 3;
  std::uint32_t out[4][8];
  std::uint32_t valid = 0;  // nibbles of tokens that the call has
  uint4 rows[8];
#pragma unroll
  for (int m = 0; m < 8; ++m) {
    const int t = 32 * i + 8 * (m & 3) + 2 * q + (m >> 2);
    rows[m] = *reinterpret_cast<const uint4*>(&values.codes[t][4 * block]);
    if (t >= part.begin && t < part.end) valid |= 15u << (4 * m);
  }
#pragma unroll
  for (int m = 0; m < 8; ++m) {
    out[0][m] = rows[m].x;
    out[1][m] = rows[m].y;
    out[2][m] = rows[m].z;
    out[3][m] = rows[m].w;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) transpose_nibbles(out[j]);
  auto* words = reinterpret_cast<std::uint32_t*>(area);
  const int unit = 128 * block + 4 * q;
  if (bits == 4) {
#pragma unroll
    for (int x = 0; x < 8; ++x) {
      auto* to = reinterpret_cast<uint4*>(words + 4 * kLaneDim * i + unit + 16 * x);
      uint4 four{out[0][x], out[1][x], out[2][x], out[3][x]};
      if (!part.opens && valid != ~0u) {
        const uint4 old = *to;
        four = {(old.x & ~valid) | (four.x & valid), (old.y & ~valid) | (four.y & valid),
                (old.z & ~valid) | (four.z & valid), (old.w & ~valid) | (four.w & valid)};
      }
      *to = four;
    }
    return;
  }
  // 2 bits: both halves of the tokens in one word. 1 bit: 16 in half a word.
  const auto narrow = [](std::uint32_t w, int half) { return (w & 0x33333333u) << (2 * half); };
  const auto top = [](std::uint32_t w, int half) {
    return (w >> 2 & 0x1111u) << (2 * half) | (w >> 18 & 0x1111u) << (2 * half + 1);
  };
  const std::uint32_t valid2 = narrow(valid, i) | __shfl_xor_sync(~0u, narrow(valid, i), 16);
  const std::uint32_t valid1 = top(valid, i) | __shfl_xor_sync(~0u, top(valid, i), 16);
  auto* tops = reinterpret_cast<std::uint16_t*>(area + 16 * kLaneDim);
  const bool merges = !part.opens && valid2 != ~0u;
#pragma unroll
  for (int x = 0; x < 8; ++x) {
    std::uint32_t low[4], high[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      low[j] = narrow(out[j][x], i);
      low[j] |= __shfl_xor_sync(~0u, low[j], 16);
      high[j] = top(out[j][x], i);
      high[j] |= __shfl_xor_sync(~0u, high[j], 16);
    }
    if ((x & 1) != i) continue;  // each half stores every second one
    const int at = unit + 16 * x;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      words[at + j] = merges ? (words[at + j] & ~valid2) | (low[j] & valid2) : low[j];
      if (bits == 3)
        tops[at + j] =
            static_cast<std::uint16_t>(merges ? (tops[at + j] & ~valid1) | (high[j] & valid1) : high[j]);
    }
  }
}

__device__ inline void fetch_values(const EncodeCall& call, const PrefillTask& task, int half,
                                    PrefillValues& values) {
  if (half == 0) prefetch_signs(call.args.basis.value_signs, task.head, values.signs);
  prefetch_rows(call.args.values, task.part, task.head, 32 * half, values.raw);
}

// Not in the template below: nvcc 13.0's front end fails on a template called from one.
__device__ inline LaneCodes search_values(const EncodeCall& call, const LaneVector& u, float norm,
                                          const LaneTable& table) {
  const int bits = call.args.pages.format.v_bits;
  return lane_search<ValueOrder>(u, norm, call.levels_numerator, table, magnitudes_of(bits, false), bits);
}

// The first half of the task's values has been fetched; then the next one's is.
template <DType kType>
__device__ inline void encode_values(const EncodeCall& call, const PrefillTurn& turn, const LaneTable& table,
                                     PrefillValues& values) {
  const PageFormat& format = call.args.pages.format;
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    LaneVector y;
    wait_for_prefetch();
    __syncwarp();
    if (half == 0) {
#pragma unroll
      for (int at = static_cast<int>(threadIdx.x & 31); at < kLaneDim / 2; at += 32) {
        const float2 two = reinterpret_cast<const float2*>(values.signs)[at];
        values.flips[at] = __float_as_uint(two.x) >> 31 << 15 | __float_as_uint(two.y) >> 31 << 31;
      }
      __syncwarp();
    }
#pragma unroll
    for (int piece = 0; piece < 16; ++piece) {
      uint4 raw = values.raw.piece(piece);
      const uint4 flip = *reinterpret_cast<const uint4*>(&values.flips[4 * piece]);
      raw = {raw.x ^ flip.x, raw.y ^ flip.y, raw.z ^ flip.z, raw.w ^ flip.w};
      unpack_eight(kType, raw, y + 8 * piece);
    }
    __syncwarp();
    if (half == 0) fetch_values(call, *turn.current(), 1, values);
    else if (turn.following() != nullptr) fetch_values(call, *turn.following(), 0, values);
    lane_hadamard(y);
#pragma unroll
    for (int j = 0; j < kLaneDim; ++j) y[j] = __fmaf_rn(y[j], call.rotation_scale, 0.0f);  // nowhere -0
    const float squared = lane_squared_norm([&](int j) { return y[j]; }), norm = square_root(squared);
    LaneCodes codes = search_values(call, y, norm, table);
    const std::uint32_t scale =
        settle(codes, norm, is_finite(squared), stored_scale_unit(format.v_bits, false));
    const int t = 32 * half + this_pair().token % 32;
    store_codes(codes, values.codes[t]);
    const PrefillTask* task = turn.current();
    const Part& part = task->part;
    const bool present = t >= part.begin && t < part.end;
    if (part.opens || present)
      reinterpret_cast<std::uint16_t*>(task->page + format.v_scales_offset())[core::scale_index(t)] =
          static_cast<std::uint16_t>(present ? scale : 0);
  }
  const PrefillTask* task = turn.current();
  __syncwarp();
  store_value_codes(values, task->part, format.v_bits, task->page + format.v_codes_offset());
  __syncwarp();
}

}  // namespace turboquant::kernels::cuda
