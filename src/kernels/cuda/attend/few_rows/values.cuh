// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/softmax.cuh"

// Weights times the values of a page: A = 16 coordinates x 32 tokens of V transposed, made from packed codes;
// B = 32 tokens x 8 columns of weights. Sums are exact integers, added to the running ones once a page.
namespace turboquant::kernels::cuda::few_rows {

// The units of a block of 32 coordinates (or a last one of 16) that this lane reads, for both halves of
// tokens.
template <class S, int kBits, int kUnits>
struct ValueBlock {
  Words half[2];  // 4 bits: of tokens 0 - 31 and 32 - 63; 2 bits: half[0] holds both
  Words signs;    // 3 bits: 16 bits a unit

  __device__ __forceinline__ ValueBlock(const std::uint8_t* area, int block, int lane) {
    const int unit = 128 * block + lane * kUnits;
    half[0] = load_words<4 * kUnits>(area + unit * 4);
    if constexpr (kBits == 4) half[1] = load_words<4 * kUnits>(area + 16 * S::kDim + unit * 4);
    if constexpr (kBits == 3) signs = load_words<2 * kUnits>(area + 16 * S::kDim + unit * 2);
  }

  // Codes of unit j, tokens 32 i + 8 n + 2 q + h for h = 0 and 1, as bytes.
  __device__ __forceinline__ void bytes(const ByteTable& table, int j, int i, std::uint32_t& even,
                                        std::uint32_t& odd) const {
    if constexpr (kBits == 4) {  // m, or its complement -m - 1 where the sign bit is set
      const std::uint32_t w = half[i].word[j], m = w & 0x77777777u, up = w << 4;
      even = prmt(table.low, table.high, m) ^ prmt(up, w, 0xd9c8);
      odd = prmt(table.low, table.high, m >> 16) ^ prmt(up, w, 0xfbea);
    } else {
      std::uint32_t w = half[0].word[j] >> (2 * i) & 0x33333333u;
      if constexpr (kBits == 3) {
        const Words unit{{signs.word[j / 2] >> (16 * (j % 2)) & 0xffffu}};
        w |= selectors<16, 1>(unit, i) << 2;
      }
      even = prmt(table.low, table.high, w);
      odd = prmt(table.low, table.high, w >> 16);
    }
  }
};

template <class S, int kBits, int kUnits>
__device__ __forceinline__ void add_value_block(const std::uint8_t* area, const ByteTable& table, int block,
                                                const Weights<S>& weights, Running<S>& running) {
  const ValueBlock<S, kBits, kUnits> codes(area, block, static_cast<int>(threadIdx.x & 31));
#pragma unroll
  for (int half = 0; half < kUnits / 2; ++half) {  // tiles of 16 coordinates
    OperandA a[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      codes.bytes(table, 2 * half, i, a[i].x[0], a[i].x[2]);
      codes.bytes(table, 2 * half + 1, i, a[i].x[1], a[i].x[3]);
    }
    const int at = 2 * (2 * block + half);
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      int c[4];
      mma_s8_u8<true>(c, a[0], weights.words[t][0][0], weights.words[t][0][1]);
      mma_s8_u8<false>(c, a[1], weights.words[t][1][0], weights.words[t][1][1]);
      running.values[t][at] =
          fmaf(static_cast<float>(c[0] * 256 + c[1]), weights.gain[t], running.values[t][at]);
      running.values[t][at + 1] =
          fmaf(static_cast<float>(c[2] * 256 + c[3]), weights.gain[t], running.values[t][at + 1]);
    }
  }
}

template <class S>
__device__ __forceinline__ void add_page_values(const Params& p, const Tables& tables,
                                                const std::uint8_t* page, const Weights<S>& weights,
                                                Running<S>& running) {
  with_bits(p.a.pages.format.v_bits, [&](auto bits) {
    const std::uint8_t* area = page + p.v_codes;
#pragma unroll
    for (int block = 0; block < S::kDim / 32; ++block)
      add_value_block<S, bits.value, 4>(area, tables.values, block, weights, running);
    if constexpr (S::kDim % 32 != 0)
      add_value_block<S, bits.value, 2>(area, tables.values, S::kDim / 32, weights, running);
  });
}

}  // namespace turboquant::kernels::cuda::few_rows
