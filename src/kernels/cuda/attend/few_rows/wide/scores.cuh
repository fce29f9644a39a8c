// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/wide/queries.cuh"

// Queries x codes of 32 tokens: B = 16 coordinates x 8 tokens of K. Tile 2 h + x of a step has tokens h + 8 x
// + 2 q + (0, 16) as this lane's columns: the order in which a V word holds pairs.
namespace turboquant::kernels::cuda::few_rows {

template <class S>
using WideScores = float[S::kBlocks][4][4];

// beside(i): what is to go on beside the i-th 32 coordinates, and does not depend on them.
template <class S, int kBits, int kFirst, class Beside>
__device__ __forceinline__ void add_wide_plane(const std::uint8_t* page, int token, const ByteTable& table,
                                               const Queries<S>& queries, WideScores<S>& c, Beside beside) {
  constexpr int kWidth = core::plane_of(S::kDim, kFirst).width;
  using Chunk = KeyChunk<S, kBits, kFirst, kWidth>;
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  const int row = token + (g >> 1) * 2 + (g & 1) * 16;
  Chunk chunks[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) chunks[j] = Chunk(page, row + (j >> 1) + (j & 1) * 8, q);
#pragma unroll
  for (int i = 0; i < (kWidth + 31) / 32; ++i) {
    WideCodes codes[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) codes[j] = expand<kBits>(table, chunks[j].selector(i));
#pragma unroll
    for (int h = 0; h < (kWidth == 16 ? 1 : 2); ++h) {
      const int step = (kFirst + 32 * i) / 16 + h;
#pragma unroll
      for (int b = 0; b < S::kBlocks; ++b) {
        const OperandA a = queries.get(step, b);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (step == 0) mma_f16<true>(c[b][j], a, codes[j].x[2 * h], codes[j].x[2 * h + 1]);
          else mma_f16<false>(c[b][j], a, codes[j].x[2 * h], codes[j].x[2 * h + 1]);
        }
      }
    }
    beside(kFirst / 32 + i);
  }
  if constexpr (kFirst + kWidth < S::kDim)
    add_wide_plane<S, kBits, kFirst + kWidth>(page, token, table, queries, c, beside);
}

// Rows against a page's centre. All columns of B are the centre, so that every lane has its rows' products.
template <class S>
struct CentreScores {
  float c[S::kBlocks][4];

  // Step s of the products.
  __device__ __forceinline__ void add(const Params& p, const std::uint8_t* page, const Queries<S>& queries,
                                      int s) {
    const std::uint8_t* centre = page + p.centre + 4 * (threadIdx.x & 3);
    const __half2 bias = __floats2half2_rn(1152.0f, 1152.0f);
    const std::uint32_t biased = *reinterpret_cast<const std::uint32_t*>(centre + 16 * s) ^ 0x80808080u;
    const std::uint32_t pairs[2] = {prmt(biased, 0x64646464u, 0x4240), prmt(biased, 0x64646464u, 0x4341)};
    const __half2 b0 = __hsub2(reinterpret_cast<const __half2&>(pairs[0]), bias),
                  b1 = __hsub2(reinterpret_cast<const __half2&>(pairs[1]), bias);
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b) {
      const OperandA a = queries.get(s, b);
      if (s == 0)
        mma_f16<true>(c[b], a, reinterpret_cast<const std::uint32_t&>(b0),
                      reinterpret_cast<const std::uint32_t&>(b1));
      else
        mma_f16<false>(c[b], a, reinterpret_cast<const std::uint32_t&>(b0),
                       reinterpret_cast<const std::uint32_t&>(b1));
    }
  }
  // All steps added: out[b][half] is of row 8 half + g of block b, times query_unit.
  __device__ __forceinline__ void get(const Params& p, const std::uint8_t* page, const Queries<S>& queries,
                                      float (&out)[S::kBlocks][2]) const {
    const float step =
        half_bits_to_float(*reinterpret_cast<const std::uint16_t*>(page + p.centre_step)) * queries.unit;
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) out[b][half] = c[b][2 * half] * step;
  }
};

}  // namespace turboquant::kernels::cuda::few_rows
