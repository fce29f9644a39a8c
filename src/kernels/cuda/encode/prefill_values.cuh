// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill.cuh"

// The values of a page by one warp: eight times eight tokens, then one transpose of nibbles.
namespace turboquant::kernels::cuda {

// Vector g of round m is token 32 i + 8 n + 2 quarter + h, g = 4 i + quarter, m = 4 h + n: a round's eight
// tokens belong to eight different words, and m is the token's nibble in its word.
__device__ inline int value_token(int g, int m) {
  return 32 * (g >> 2) + 8 * (m & 3) + 2 * (g & 3) + (m >> 2);
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
      auto* to = reinterpret_cast<uint4*>(words + 4 * kQuadDim * i + unit + 16 * x);
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
  auto* tops = reinterpret_cast<std::uint16_t*>(area + 16 * kQuadDim);
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

__device__ inline void encode_values(const EncodeCall& call, const Part& part, int head,
                                     PrefillShared& shared) {
  const EncodeArgs& a = call.args;
  const PageFormat& format = a.pages.format;
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane >> 2, q = lane & 3;
  PrefillValues& values = shared.values(warp);
  const uint4* table = shared.value_table + (lane & (kTableCopies - 1));
  const auto present = [&](int m) {
    const int t = value_token(g, m);
    return t >= part.begin && t < part.end;
  };
  const auto fetch = [&](int m) {
    prefetch(a.values, part.row + value_token(g, m) - part.begin, head, present(m), shared);
  };
  fetch(0);
  const float* signs = a.basis.value_signs + static_cast<std::int64_t>(head) * kQuadDim;  // +-1
  for (int pair = lane; pair < kQuadDim / 2; pair += 32) {
    const float2 two = reinterpret_cast<const float2*>(signs)[pair];
    values.signs[pair] = __float_as_uint(two.x) >> 31 << 15 | __float_as_uint(two.y) >> 31 << 31;
  }
  __syncwarp();
  for (int m = 0; m < 8; ++m) {
    const int t = value_token(g, m);
    float y[kQuadLane];
    wait_for_prefetch();
#pragma unroll
    for (int piece = 0; piece < 4; ++piece) {
      uint4 raw = shared.raw[piece][threadIdx.x];
      const uint4 flip = *reinterpret_cast<const uint4*>(&values.signs[16 * q + 4 * piece]);
      raw = {raw.x ^ flip.x, raw.y ^ flip.y, raw.z ^ flip.z, raw.w ^ flip.w};
      unpack_eight(a.values.dtype, raw, y + 8 * piece);
    }
    if (m < 7) fetch(m + 1);
    quad_hadamard(y);
#pragma unroll
    for (int j = 0; j < kQuadLane; ++j) y[j] = __fmul_rn(y[j], call.rotation_scale);
    const float squared = quad_squared_norm([&](int j) { return y[j]; }), norm = square_root(squared);
#pragma unroll
    for (int j = 0; j < kQuadLane; ++j) y[j] = __fadd_rn(y[j], 0.0f);  // -0 is not below 0
    QuadCodes codes =
        quad_search<ValueOrder>(y, norm, call.levels_numerator, table, format.v_bits, shared.scores[warp]);
    const float2 settled = settle(codes, norm, is_finite(squared));
    *reinterpret_cast<uint4*>(&values.codes[t][4 * q]) =
        uint4{codes.words[0], codes.words[1], codes.words[2], codes.words[3]};
    if (q == 0) values.norms[t] = settled;
  }
  __syncwarp();
  std::uint8_t* page = page_of(a, part, part.page, head);
  store_value_codes(values, part, format.v_bits, page + format.v_codes_offset());
  auto* scales = reinterpret_cast<std::uint16_t*>(page + format.v_scales_offset());
#pragma unroll
  for (int t = lane; t < kPageTokens; t += 32)
    if (part.opens || (t >= part.begin && t < part.end))
      scales[core::scale_index(t)] =
          static_cast<std::uint16_t>(scale_of(values.norms[t], stored_scale_unit(format.v_bits, false)));
  __syncwarp();
}

}  // namespace turboquant::kernels::cuda
