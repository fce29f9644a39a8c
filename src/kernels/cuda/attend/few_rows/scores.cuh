// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/queries.cuh"

// Scores of a page: integer products of codes and queries on the tensor cores.
//
// A = 16 tokens x 32 coordinates of K, made from packed codes by byte permutes; B = 32 coordinates x 8
// columns of queries. Lane 4 g + q ends up with tokens g + 8 j (j < 8) of row q: both bytes of a score lie in
// one lane.
namespace turboquant::kernels::cuda::few_rows {

// `bytes` bytes as words, by one load.
struct Words {
  std::uint32_t word[4];
};
template <int kBytes>
__device__ __forceinline__ Words load_words(const std::uint8_t* from) {
  Words out{};
  if constexpr (kBytes == 16) {
    const uint4 x = *reinterpret_cast<const uint4*>(from);
    out = {{x.x, x.y, x.z, x.w}};
  } else if constexpr (kBytes == 8) {
    const uint2 x = *reinterpret_cast<const uint2*>(from);
    out = {{x.x, x.y, 0, 0}};
  } else if constexpr (kBytes == 4) {
    out.word[0] = *reinterpret_cast<const std::uint32_t*>(from);
  } else if constexpr (kBytes == 2) {
    out.word[0] = *reinterpret_cast<const std::uint16_t*>(from);
  } else {
    out.word[0] = *from;
  }
  return out;
}

// PRMT selectors of codes 8 i .. 8 i + 3 (low half) and 8 i + 4 .. 8 i + 7 (high half) of a chunk of kCodes
// codes of kBits bits (turboquant/format.h, nibble-strided packing). Only 4-bit selectors carry a sign.
template <int kCodes, int kBits>
__device__ __forceinline__ std::uint32_t selectors(const Words& x, int i) {
  const std::uint32_t w = x.word[0];
  if constexpr (kBits == 4) return x.word[i];
  if constexpr (kBits == 2) {
    if constexpr (kCodes == 32) return x.word[i % 2] >> (2 * (i / 2)) & 0x33333333u;
    if constexpr (kCodes == 16) return w >> (2 * i) & 0x33333333u;
    if constexpr (kCodes == 8) return (w & 0x3333u) | (w << 14 & 0x33330000u);
    return (w | w << 6) & 0x3333u;
  }
  if constexpr (kCodes == 32) return w >> i & 0x11111111u;
  if constexpr (kCodes == 16) return (w >> (2 * i) & 0x1111u) | (w << 15 >> (2 * i) & 0x11110000u);
  if constexpr (kCodes == 8) {
    const std::uint32_t even = (w | w << 7) & 0x1111u, odd = (w >> 2 | w << 5) & 0x1111u;
    return even | odd << 16;
  }
  const std::uint32_t pairs = (w | w << 6) & 0x303u;
  return (pairs | pairs << 3) & 0x1111u;
}

// The chunk of one token's codes that this lane reads, as selectors of its 4-code groups.
template <class S, int kBits, int kFirst, int kWidth>
struct KeyChunk {
  static constexpr int kCodes = kWidth / 4;
  static constexpr int kMainBits = kBits == 3 ? 2 : kBits;
  Words main, signs;

  template <int kAreaBits>
  static __device__ Words load(const std::uint8_t* area, int token, int q) {
    constexpr int kRowBits = kWidth * kAreaBits;
    const std::uint8_t* row = area + kFirst * 64 * kAreaBits / 8 + token * kRowBits / 8;
    if constexpr (kRowBits == 16) {  // a chunk is half a byte
      Words out{};
      out.word[0] = row[q / 2] >> (4 * (q % 2)) & 15u;
      return out;
    } else {
      return load_words<kRowBits / 32>(row + q * (kRowBits / 32));
    }
  }
  KeyChunk() = default;
  __device__ __forceinline__ KeyChunk(const std::uint8_t* page, int token, int q) {
    main = load<kMainBits>(page, token, q);
    if constexpr (kBits == 3) signs = load<1>(page + 16 * S::kDim, token, q);
  }
  __device__ std::uint32_t selector(int i) const {
    std::uint32_t out = selectors<kCodes, kMainBits>(main, i);
    if constexpr (kBits == 3) out |= selectors<kCodes, 1>(signs, i) << 2;
    return out;
  }
};

// Adds the products of the plane of kWidth coordinates from kFirst on, and of those after it, with the step's
// tokens from `token` on. Tiles of 16 tokens are independent chains of products, which go side by side.
template <class S, int kBits, int kFirst>
__device__ __forceinline__ void add_plane(const std::uint8_t* page, int token, const ByteTable& table,
                                          const Queries<S>& queries, int (&c)[S::kStep / 16][S::kTiles][4]) {
  constexpr int kWidth = core::plane_of(S::kDim, kFirst).width, kChains = S::kStep / 16;
  constexpr bool kHalf = kWidth == 16;
  constexpr int kSigns = kBits == 4 ? 2 : 1;
  using Chunk = KeyChunk<S, kBits, kFirst, kWidth>;
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  Chunk upper[kChains], lower[kChains];
#pragma unroll
  for (int m = 0; m < kChains; ++m) {
    upper[m] = Chunk(page, token + 16 * m + g, q);
    lower[m] = Chunk(page, token + 16 * m + 8 + g, q);
  }
#pragma unroll
  for (int i = 0; i < (kWidth + 31) / 32; ++i) {
    QueryOperand b[S::kTiles];
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) b[t] = queries.get(t, kFirst / 32 + i);
#pragma unroll
    for (int sign = 0; sign < kSigns; ++sign) {
#pragma unroll
      for (int m = 0; m < kChains; ++m) {
        std::uint32_t x = upper[m].selector(i), y = lower[m].selector(i);
        if (sign == 1) {  // a magnitude is below 128: PRMT gives 0 where the sign bit is set
          x ^= 0x88888888u;
          y ^= 0x88888888u;
        }
        const OperandA a{{prmt(table.low, table.high, x), prmt(table.low, table.high, y),
                          kHalf ? 0 : prmt(table.low, table.high, x >> 16),
                          kHalf ? 0 : prmt(table.low, table.high, y >> 16)}};
#pragma unroll
        for (int t = 0; t < S::kTiles; ++t) {
          const std::uint32_t b0 = sign == 0 ? b[t].q0 : b[t].minus0, b1 = sign == 0 ? b[t].q1 : b[t].minus1;
          if (kFirst == 0 && i == 0 && sign == 0) mma_s8_s8<true>(c[m][t], a, b0, b1);
          else mma_s8_s8<false>(c[m][t], a, b0, b1);
        }
      }
    }
  }
  if constexpr (kFirst + kWidth < S::kDim)
    add_plane<S, kBits, kFirst + kWidth>(page, token, table, queries, c);
}

// The centre's products with the queries: a tile of which only row 0 is used.
template <class S>
__device__ __forceinline__ void centre_products(const std::uint8_t* centre, const Queries<S>& queries,
                                                int (&c)[S::kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x & 31), q = lane & 3;
  const std::uint8_t* row = centre + 4 * q;
#pragma unroll
  for (int w = 0; w < S::kQueryWords; w += 2) {
    const bool whole = w + 1 < S::kQueryWords;
    OperandA a{};
    if (lane < 4) {
      a.x[0] = *reinterpret_cast<const std::uint32_t*>(row + 16 * w);
      if (whole) a.x[2] = *reinterpret_cast<const std::uint32_t*>(row + 16 * w + 16);
    }
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      const QueryOperand b = queries.get(t, w / 2);
      if (w == 0) mma_s8_s8<true>(c[t], a, b.q0, b.q1);
      else mma_s8_s8<false>(c[t], a, b.q0, b.q1);
    }
  }
}

__device__ __forceinline__ float half_bits_to_float(std::uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// out[t]: row q of tile t against the page's centre, times query_unit.
template <class S>
__device__ __forceinline__ void centre_scores(const Params& p, const std::uint8_t* page,
                                              const Queries<S>& queries, float (&out)[S::kTiles]) {
  const int q = static_cast<int>(threadIdx.x & 3);
  int c[S::kTiles][4];
  centre_products<S>(page + p.centre, queries, c);
  const float step = half_bits_to_float(*reinterpret_cast<const std::uint16_t*>(page + p.centre_step));
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t)
    out[t] = __shfl_sync(~0u, static_cast<float>(c[t][0] * 256 + c[t][1]) * step * queries.unit[t], q);
}

// A step's fp16 scales of one kind, of tokens token + g + 8 j, as floats.
template <class S>
__device__ __forceinline__ void load_scales(const std::uint8_t* area, int token, float (&out)[S::kScores]) {
  const int g = static_cast<int>(threadIdx.x & 31) >> 2;
  const Words packed = load_words<2 * S::kScores>(area + 16 * g + token / 4);
#pragma unroll
  for (int j = 0; j < S::kScores; ++j)
    out[j] = half_bits_to_float(packed.word[j / 2] >> (16 * (j % 2)) & 0xffffu);
}

// scores[t][j]: row q of tile t against token `token` + g + 8 j, times query_unit; before softcap and mask.
template <class S>
__device__ __forceinline__ void step_scores(const Params& p, const Tables& tables, const std::uint8_t* page,
                                            int token, const Queries<S>& queries,
                                            const float (&about_centre)[S::kTiles],
                                            float (&scores)[S::kTiles][S::kScores]) {
  int c[S::kStep / 16][S::kTiles][4];
  with_bits<S>(p.a.pages.format.k_bits,
               [&](auto bits) { add_plane<S, bits.value, 0>(page, token, tables.keys, queries, c); });
  float scales[S::kScores];
  load_scales<S>(page + p.k_scales, token, scales);
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    const float unit = queries.unit[t] * (1.0f / core::kScaleUnit);
#pragma unroll
    for (int j = 0; j < S::kScores; ++j) {
      const int* product = c[j / 2][t] + 2 * (j % 2);
      const float reference = __float_as_int(scales[j]) < 0 ? 0.0f : about_centre[t];  // its sign: no centre
      scores[t][j] =
          fmaf(static_cast<float>(product[0] * 256 + product[1]), fabsf(scales[j]) * unit, reference);
    }
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
