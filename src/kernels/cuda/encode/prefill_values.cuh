// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill.cuh"

// The codes of a page's values, by the warp that has their tokens: a transpose of nibbles.
namespace turboquant::kernels::cuda {

// The bytes of four words, transposed: byte k of out[s] is byte s of in[k].
__device__ inline void transpose_bytes(const std::uint32_t (&in)[4], std::uint32_t (&out)[4]) {
  const std::uint32_t low01 = permute(in[0], in[1], 0x5140), high01 = permute(in[0], in[1], 0x7362);
  const std::uint32_t low23 = permute(in[2], in[3], 0x5140), high23 = permute(in[2], in[3], 0x7362);
  out[0] = permute(low01, low23, 0x5410);
  out[1] = permute(low01, low23, 0x7632);
  out[2] = permute(high01, high23, 0x5410);
  out[3] = permute(high01, high23, 0x7632);
}

// Nibble x of word m becomes nibble m of word x.
__device__ inline void transpose_nibbles(std::uint32_t (&words)[8]) {
#pragma unroll
  for (int m = 0; m < 8; m += 2) {
    const std::uint32_t a = words[m], b = words[m + 1];
    words[m] = select_bits(b << 4, a, 0xf0f0f0f0u);
    words[m + 1] = select_bits(b, a >> 4, 0xf0f0f0f0u);
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

// Codes of a warp's tokens into the V area of their page. Lane 16 p + 4 block + j has words of the tokens 8 p
// .. 8 p + 7 of the warp, of (i, q), and of the coordinates 32 block + 8 j + x, which are units 4 (4 x + q) +
// j of the block.
__device__ inline void store_value_codes(const TokenCodes& codes, int quarter, const Part& part, int bits,
                                         std::uint8_t* area) {
  const int lane = this_thread() & 31, p = lane >> 4, block = lane >> 2 & 3, j = lane & 3;
  const int i = bits == 4 ? quarter / 2 : p, q = bits == 4 ? 2 * (quarter % 2) + p : quarter;
  const std::uint32_t* first = &codes[p][lane & 15];
  std::uint32_t out[8];
#pragma unroll
  for (int m = 0; m < 8; ++m) out[m] = first[(2 * (m & 3) + (m >> 2)) * kCodeRow];
  transpose_nibbles(out);
  std::uint32_t valid = ~0u;  // nibbles of tokens that the call has
  const bool merges = is_for_warp(!part.opens);
  if (merges) {
    valid = 0;
    for (int m = 0; m < 8; ++m) {
      const int t = 32 * i + 8 * (m & 3) + 2 * q + (m >> 2);
      if (t >= part.begin && t < part.end) valid |= 15u << (4 * m);
    }
  }

  const int unit = 128 * block + 4 * q + j;
  const auto merged = [&](std::uint32_t old, std::uint32_t x, std::uint32_t mask) {
    return (old & ~mask) | (x & mask);
  };
  if (bits == 4) {
    auto* words = reinterpret_cast<std::uint32_t*>(area) + 4 * kPrefillDim * i + unit;
    if (merges) {
#pragma unroll
      for (int x = 0; x < 8; ++x) out[x] = merged(words[16 * x], out[x], valid);
    }
#pragma unroll
    for (int x = 0; x < 8; ++x) words[16 * x] = out[x];

    return;
  }
  // 2 bits: both halves of the tokens in one word. 1 bit: 16 in half a word.
  const auto narrow = [&](std::uint32_t w) { return (w & 0x33333333u) << (2 * i); };
  const auto top = [&](std::uint32_t w) {
    return (w >> 2 & 0x1111u) << (2 * i) | (w >> 18 & 0x1111u) << (2 * i + 1);
  };
  const std::uint32_t valid2 = narrow(valid) | other_side(narrow(valid));
  const std::uint32_t valid1 = top(valid) | other_side(top(valid));
  auto* words = reinterpret_cast<std::uint32_t*>(area) + unit;
  auto* tops = reinterpret_cast<std::uint16_t*>(area + 16 * kPrefillDim) + unit;
#pragma unroll
  for (int x = 0; x < 8; ++x) {
    std::uint32_t low = narrow(out[x]), high = top(out[x]);
    low |= other_side(low);
    high |= other_side(high);
    if ((x & 1) != i) continue;  // each half stores every second one
    words[16 * x] = merges ? merged(words[16 * x], low, valid2) : low;
    if (bits == 3)
      tops[16 * x] = static_cast<std::uint16_t>(merges ? merged(tops[16 * x], high, valid1) : high);
  }
}

// The codes of the lane's token, then those of the warp's tokens into their page.
__device__ inline void store_values(const SideCodes& codes, int quarter, const Part& part, int bits,
                                    std::uint8_t* area, TokenCodes& warp_codes) {
  const int vector = this_thread() % kWarpVectors;
  std::uint32_t* row = &warp_codes[vector / 8][kCodeRow * (vector % 8) + kSideWords * this_side()];
#pragma unroll
  for (int w = 0; w < kSideWords; w += 4)
    *reinterpret_cast<uint4*>(row + w) =
        uint4{codes.words[w], codes.words[w + 1], codes.words[w + 2], codes.words[w + 3]};
  __syncwarp();
  store_value_codes(warp_codes, quarter, part, bits, area);
}

}  // namespace turboquant::kernels::cuda
