// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/softmax.cuh"

// Weights times the values of a page: A = 16 coordinates x 32 tokens of V transposed, made from packed codes;
// B = 32 tokens x 8 columns of weights. Sums are exact integers, added to the running ones once a step.
namespace turboquant::kernels::cuda::few_rows {

// The units of a block of 32 coordinates (or a last one of 16) that this lane reads.
template <int kBits, int kUnits>
struct ValueBlock {
  Words units;  // 4 bits: of 32 tokens; 2 bits: of all 64
  Words signs;  // 3 bits: 16 bits a unit

  // area: V codes; half: which 32 tokens.
  template <int kDim>
  __device__ __forceinline__ void load(const std::uint8_t* area, int block, int half) {
    const int unit = 128 * block + static_cast<int>(threadIdx.x & 31) * kUnits;
    units = load_words<4 * kUnits>(area + (kBits == 4 ? 16 * kDim * half : 0) + unit * 4);
    if constexpr (kBits == 3) signs = load_words<2 * kUnits>(area + 16 * kDim + unit * 2);
  }

  // PRMT selectors of unit j: tokens 32 half + 8 n + 2 q + h at nibble 4 h + n.
  __device__ __forceinline__ std::uint32_t selector(int j, int half) const {
    if constexpr (kBits == 4) return units.word[j];
    std::uint32_t w = units.word[j] >> (2 * half) & 0x33333333u;
    if constexpr (kBits == 3) {
      const Words unit{{signs.word[j / 2] >> (16 * (j % 2)) & 0xffffu}};
      w |= selectors<16, 1>(unit, half) << 2;
    }
    return w;
  }

  // Codes of unit j, tokens 32 half + 8 n + 2 q + h for h = 0 and 1, as bytes.
  __device__ __forceinline__ void bytes(const ByteTable& table, int j, int half, std::uint32_t& even,
                                        std::uint32_t& odd) const {
    const std::uint32_t w = selector(j, half);
    if constexpr (kBits == 4) {  // m, or its complement -m - 1 where the sign bit is set
      const std::uint32_t m = w & 0x77777777u, up = w << 4;
      even = prmt(table.low, table.high, m) ^ prmt(up, w, 0xd9c8);
      odd = prmt(table.low, table.high, m >> 16) ^ prmt(up, w, 0xfbea);
    } else {
      even = prmt(table.low, table.high, w);
      odd = prmt(table.low, table.high, w >> 16);
    }
  }
};

template <class S, int kBits, int kUnits>
__device__ __forceinline__ void add_value_block(const std::uint8_t* area, const ByteTable& table, int block,
                                                int token, const Weights<S>& weights, Running<S>& running) {
  constexpr int kHalves = S::kStep / 32;
  const int first_half = token / 32;
  ValueBlock<kBits, kUnits> codes[kHalves];
#pragma unroll
  for (int i = 0; i < kHalves; ++i) codes[i].template load<S::kDim>(area, block, first_half + i);
#pragma unroll
  for (int tile = 0; tile < kUnits / 2; ++tile) {  // of 16 coordinates
    OperandA a[kHalves];
#pragma unroll
    for (int i = 0; i < kHalves; ++i) {
      codes[i].bytes(table, 2 * tile, first_half + i, a[i].x[0], a[i].x[2]);
      codes[i].bytes(table, 2 * tile + 1, first_half + i, a[i].x[1], a[i].x[3]);
    }
    const int at = 2 * (2 * block + tile);
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      int c[4];
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
        if (i == 0) mma_s8_u8<true>(c, a[i], weights.words[t][i][0], weights.words[t][i][1]);
        else mma_s8_u8<false>(c, a[i], weights.words[t][i][0], weights.words[t][i][1]);
      }
      running.values[t][at] =
          fmaf(static_cast<float>(c[0] * 256 + c[1]), weights.gain[t], running.values[t][at]);
      running.values[t][at + 1] =
          fmaf(static_cast<float>(c[2] * 256 + c[3]), weights.gain[t], running.values[t][at + 1]);
    }
  }
}

template <class S>
__device__ __forceinline__ void add_values(const Params& p, const Tables& tables, const std::uint8_t* page,
                                           int token, const Weights<S>& weights, Running<S>& running) {
  with_bits<S>(p.a.pages.format.v_bits, [&](auto bits) {
    const std::uint8_t* area = page + p.v_codes;
#pragma unroll
    for (int block = 0; block < S::kDim / 32; ++block)
      add_value_block<S, bits.value, 4>(area, tables.values, block, token, weights, running);
    if constexpr (S::kDim % 32 != 0)
      add_value_block<S, bits.value, 2>(area, tables.values, S::kDim / 32, token, weights, running);
  });
}

// A page, or the part of its tokens that is this one's of the kSplit warps that share it. Its slots [begin,
// end) are its own (the fringe holds the others); `position` is slot 0's.
template <Narrow S>
__device__ __forceinline__ void attend_page(const Params& p, const Tables& tables, const std::uint8_t* page,
                                            int position, int begin, int end, int in_stream,
                                            const Queries<S>& queries, Running<S>& running) {
  constexpr int kTokens = kPageTokens / S::kSplit;
  const int first = S::kSplit == 1 ? 0 : in_stream * kTokens;
  float about_centre[S::kTiles];
  centre_scores<S>(p, page, queries, about_centre);
#pragma unroll 1
  for (int token = first; token < first + kTokens; token += S::kStep) {
    float scores[S::kTiles][S::kScores];
    Weights<S> weights;
    step_scores<S>(p, tables, page, token, queries, about_centre, scores);
    weigh<S>(p, page, token, queries, position, begin, end, scores, running, weights);
    add_values<S>(p, tables, page, token, weights, running);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
