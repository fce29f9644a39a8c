// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <climits>

#include "kernels/cuda/attend/few_rows/rotate.cuh"
#include "kernels/cuda/attend/few_rows/schedule.cuh"
#include "kernels/cuda/attend/ptx.cuh"

// A segment's queries as the B operand of the score products: rotated, scaled, and rounded to 16 bits of
// their row's maximum, of which column 2 r is the high byte and column 2 r + 1 the low one (q = 256 high +
// low).
namespace turboquant::kernels::cuda::few_rows {

// 32 coordinates of a column, as registers b0 and b1; of q, and of -q, because 4-bit keys come as two
// products.
struct QueryOperand {
  std::uint32_t q0, q1, minus0, minus1;
};

template <class S>
struct Queries;
template <Narrow S>
struct Queries<S> {
  // Lane 4 g + q has column g; word w: coordinates 16 w + 4 q .. + 3.
  std::uint32_t words[S::kTiles][S::kQueryWords], negated[S::kTiles][S::kQueryWords];
  uint4* shared;  // not used

  // Words 2 pair and 2 pair + 1; where there is no such second word, its products are with zeros of the keys.
  __device__ __forceinline__ QueryOperand get(int tile, int pair) const {
    const int w = 2 * pair, next = w + 1 < S::kQueryWords ? w + 1 : w;
    return {words[tile][w], words[tile][next], negated[tile][w], negated[tile][next]};
  }
  // Of row q of each tile, as lane 4 g + q holds its scores:
  float unit[S::kTiles];              // what an integer score stands for
  int lowest[S::kTiles];              // first position it sees; INT_MAX: there is no such row
  int lowest_of_all, highest_of_all;  // over the warp's rows

  // What the rows from first_row of the sequence on see.
  __device__ __forceinline__ void see(const Params& p, const Sequence& sequence, int first_row) {
    lowest_of_all = INT_MAX;
    highest_of_all = 0;
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
      const int row = first_row + tile * kTileRows + static_cast<int>(threadIdx.x & 3),
                token = divide(row, p.group_inverse);
      const int first =
          p.a.window > 0 ? max(sequence.start, sequence.length + token - p.a.window + 1) : sequence.start;
      lowest[tile] = row < sequence.tokens * p.group ? first : INT_MAX;
      lowest_of_all = min(lowest_of_all, lowest[tile]);
      highest_of_all = max(highest_of_all, first);
    }
    lowest_of_all = __reduce_min_sync(~0u, lowest_of_all);
    highest_of_all = __reduce_max_sync(~0u, highest_of_all);
  }
};

// Four 16-bit integers, each with 128 added so that its high byte is rounded: the bytes this lane's column
// holds.
__device__ __forceinline__ std::uint32_t query_bytes(uint2 shifted, bool low) {
  return prmt(shifted.x, shifted.y, low ? 0x6420 : 0x7531) ^ (low ? 0x80808080u : 0u);
}

// A tile's rows as they are given, where a warp rotates them.
template <class S>
struct GivenRowsOf {
  using Type = RawRows<S::kDim, S::kQueryRows>;
};
template <Narrow S>
requires(S::kAdjacent) struct GivenRowsOf<S> {
  using Type = AdjacentRows<S::kDim, S::kQueryRows>;
};
template <class S>
using GivenRows = typename GivenRowsOf<S>::Type;

// Where the `rows` rows of a tile that a warp rotates begin. The first tile's are asked for before the pages:
// behind them they would wait for all of their bytes.
template <class S>
__device__ __forceinline__ void find_rows(const Params& p, const Sequence& sequence, int first_row,
                                          int kv_head, std::int64_t (&at)[S::kQueryRows],
                                          int rows = S::kQueryRows) {
#pragma unroll
  for (int r = 0; r < S::kQueryRows; ++r) {
    const int row = first_row + r, token = divide(row, p.group_inverse);
    at[r] = r < rows && row < sequence.tokens * p.group
                ? row_at(p.a.query, sequence.first_token + token, kv_head * p.group + row - token * p.group)
                : -1;
  }
}

// Brings a tile's rows and the sequence's first own tokens into the L2, where the previous kernel may still
// write them.
template <class S>
__device__ __forceinline__ void prefetch_rows(const Params& p, const Sequence& sequence, int first_row,
                                              int kv_head) {
  constexpr int kLines = (2 * S::kDim + 127) / 128;  // of a row
  const int lane = static_cast<int>(threadIdx.x & 31), which = lane / kLines, row = first_row + which;
  const Rows* from = &p.a.query;
  std::int64_t at = -1;
  if (which < kTileRows) {
    const int token = divide(row, p.group_inverse);
    if (row < sequence.tokens * p.group)
      at = row_at(p.a.query, sequence.first_token + token, kv_head * p.group + row - token * p.group);
  } else if (which < kTileRows + 2 * sequence.tokens && p.a.keys.data != nullptr) {
    from = which % 2 == 0 ? &p.a.keys : &p.a.values;
    at = row_at(*from, sequence.first_token + (which - kTileRows) / 2, kv_head);
  }
  if (at >= 0) prefetch_l2(static_cast<const std::uint8_t*>(from->data) + 2 * at + lane % kLines * 128);
}

// Rows as 16-bit integers in shared memory, with 128 added so that the high byte is rounded: q's, then, of
// one tile, -q's. The largest of a row, in the padding behind it, is what 32,639 stands for.
template <Narrow S>
struct RoundedRows {
  static constexpr int kStride = S::kDim + 16;
  static constexpr bool kHasMinus = S::kTiles == 1;
  static_assert(2 * kTileRows * kStride * 2 <= kTileRows * S::kStride * 4);
  std::int16_t* data;
  __device__ std::int16_t* row(int r) const { return data + r * kStride; }
  __device__ std::int16_t* minus_row(int r) const { return row(kTileRows + r); }
  __device__ float& largest(int r) const { return *reinterpret_cast<float*>(row(r) + S::kDim); }
};

// Rotates and rounds the first kRows of the rows that are given, rows of a tile from first_row on. signs: of
// the head, in shared memory.
template <int kRows, Narrow S>
__device__ __forceinline__ void round_rows(const Params& p, const GivenRows<S>& given, int first_row,
                                           const float* signs, float* scratch, float* staged) {
  constexpr int kN = kEach<S::kDim>;
  const int lane = static_cast<int>(threadIdx.x & 31);
  float signs_here[kN];
  if constexpr (S::kAdjacent) load_lane<S::kDim>(signs, signs_here);
  else load_signs<S::kDim>(signs, signs_here);
  RowsInLanes<S::kDim, kRows> x;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int i = 0; i < kN; ++i) x[r][i] = given.get(p.a.query.dtype == DType::kF16, r, i) * signs_here[i];
  if constexpr (S::kAdjacent) hadamard_adjacent<S::kDim, kRows>(x);
  else hadamard<S::kDim, kRows, false>(x, p.a.basis.base_matrix, scratch, S::kStride);
  const RoundedRows<S> out{reinterpret_cast<std::int16_t*>(staged)};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    std::uint32_t bits = 0;  // as bits, so that a NaN is the largest
#pragma unroll
    for (int i = 0; i < kN; ++i)
      if (has<S::kDim>(i)) bits = max(bits, __float_as_uint(x[r][i]) & 0x7fffffffu);
    const float largest = __uint_as_float(__reduce_max_sync(~0u, bits));
    if (lane == 0) out.largest(first_row + r) = largest;
    const float to_integer = __fdividef(32639.0f, fmaxf(largest, 1e-30f));
    std::int16_t* plus = out.row(first_row + r);
    int integers[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) integers[i] = __float2int_rn(x[r][i] * to_integer);
    if constexpr (S::kAdjacent) {
      const auto pair = [](int low, int high) {
        return prmt(static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(high), 0x5410);
      };
      std::uint32_t words[kN / 2], negated[kN / 2];  // the latter of one tile
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        words[i] = pair(128 + integers[2 * i], 128 + integers[2 * i + 1]);
        negated[i] = pair(128 - integers[2 * i], 128 - integers[2 * i + 1]);
      }
      store_words_at(reinterpret_cast<std::uint32_t*>(plus) + lane * (kN / 2), words);
      if constexpr (RoundedRows<S>::kHasMinus)
        store_words_at(reinterpret_cast<std::uint32_t*>(out.minus_row(first_row + r)) + lane * (kN / 2),
                       negated);
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (!has<S::kDim>(i)) continue;
        plus[lane + 32 * i] = static_cast<std::int16_t>(128 + integers[i]);
        if constexpr (RoundedRows<S>::kHasMinus)
          out.minus_row(first_row + r)[lane + 32 * i] = static_cast<std::int16_t>(128 - integers[i]);
      }
    }
  }
}

// 256 - x of two 16-bit integers.
__device__ __forceinline__ std::uint32_t minus_256(std::uint32_t x) {
  return (0x81008100u - (x & 0x7fff7fffu)) ^ (~x & 0x80008000u);
}

// Takes a rounded tile as operands.
template <Narrow S>
__device__ __forceinline__ void take_tile(const Params& p, int tile, const float* staged, Queries<S>& out) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  const RoundedRows<S> rows{reinterpret_cast<std::int16_t*>(const_cast<float*>(staged))};
  const int row = kTileRows * tile + (g >> 1);
  const bool low = (g & 1) != 0;
#pragma unroll
  for (int w = 0; w < S::kQueryWords; ++w) {
    const uint2 x = *reinterpret_cast<const uint2*>(rows.row(row) + 4 * q + 16 * w);
    uint2 minus;
    if constexpr (RoundedRows<S>::kHasMinus)
      minus = *reinterpret_cast<const uint2*>(rows.minus_row(row) + 4 * q + 16 * w);
    else minus = {minus_256(x.x), minus_256(x.y)};
    out.words[tile][w] = query_bytes(x, low);
    out.negated[tile][w] = query_bytes(minus, low);
  }
  out.unit[tile] = rows.largest(kTileRows * tile + q) * (p.query_unit / 32639.0f);
}

// Makes a warp's queries through its team's staged rows; first_row: of the sequence. given: the first rows
// that this warp rotates, of a team whose first members make them for all. A warp by itself rotates one tile
// after the other.
template <Narrow S>
__device__ __forceinline__ void make_queries(const Params& p, const Sequence& sequence, int first_row,
                                             int kv_head, const Team& team, GivenRows<S>& given,
                                             const float* signs, float* staged, Queries<S>& out) {
  const int warp = static_cast<int>(threadIdx.x >> 5), makers = team.makers<S>();
  float* at = staged + (team.slot - warp) * kTileRows * S::kStride;
  const int passes = S::kTiles == 2 && makers == 1 ? 2 : 1;
#pragma unroll 1
  for (int pass = 0; pass < passes; ++pass) {
    if (pass > 0) {
      std::int64_t places[S::kQueryRows];
      find_rows<S>(p, sequence, first_row + kTileRows, kv_head, places);
      given.load(p.a.query, places);
    }
    if (team.member < makers) {
      const int first = makers == 1 ? kTileRows * pass : team.member * (S::kRows / makers);
      // Where it goes through memory, two warps that rotate at once do it where the second one's rows are
      // staged.
      float* scratch = S::kSplit == 1 ? staged : at + (kTileRows + first) * S::kStride;
      if constexpr (!S::kSpreads) {
        round_rows<S::kQueryRows, S>(p, given, first, signs, scratch, at);
      } else {
        const int rows = min(kTileRows, S::kRows / makers);
        if (rows == 1) round_rows<1, S>(p, given, first, signs, scratch, at);
        else if (S::kSplit == 2 || rows == 2) round_rows<2, S>(p, given, first, signs, scratch, at);
        else if constexpr (S::kSplit == 1) round_rows<4, S>(p, given, first, signs, scratch, at);
      }
    }
    if (pass + 1 < passes) __syncwarp();
    else team.sync<S>();
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile)
      if (passes == 1 || tile == pass) take_tile<S>(p, tile, at, out);
    __syncwarp();
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
