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

// Rows as 16-bit integers in shared memory, with 128 added so that the high byte is rounded: q's, then -q's.
// The largest of a row, in the padding behind it, is what 32,639 stands for.
template <Narrow S>
struct RoundedRows {
  static constexpr int kStride = S::kDim + 16;
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
    std::int16_t *plus = out.row(first_row + r), *minus = out.minus_row(first_row + r);
    int integers[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) integers[i] = __float2int_rn(x[r][i] * to_integer);
    if constexpr (S::kAdjacent) {
      const auto pair = [](int low, int high) {
        return prmt(static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(high), 0x5410);
      };
      std::uint32_t words[kN / 2], negated[kN / 2];
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) {
        words[i] = pair(128 + integers[2 * i], 128 + integers[2 * i + 1]);
        negated[i] = pair(128 - integers[2 * i], 128 - integers[2 * i + 1]);
      }
      store_words_at(reinterpret_cast<std::uint32_t*>(plus) + lane * (kN / 2), words);
      store_words_at(reinterpret_cast<std::uint32_t*>(minus) + lane * (kN / 2), negated);
    } else {
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        if (!has<S::kDim>(i)) continue;
        plus[lane + 32 * i] = static_cast<std::int16_t>(128 + integers[i]);
        minus[lane + 32 * i] = static_cast<std::int16_t>(128 - integers[i]);
      }
    }
  }
}

// Takes a rounded tile as operands.
template <Narrow S>
__device__ __forceinline__ void take_tile(const Params& p, int tile, const float* staged, Queries<S>& out) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  const RoundedRows<S> rows{reinterpret_cast<std::int16_t*>(const_cast<float*>(staged))};
  const std::int16_t *mine = rows.row(g >> 1) + 4 * q, *minus = rows.minus_row(g >> 1) + 4 * q;
  const bool low = (g & 1) != 0;
#pragma unroll
  for (int w = 0; w < S::kQueryWords; ++w) {
    out.words[tile][w] = query_bytes(*reinterpret_cast<const uint2*>(mine + 16 * w), low);
    out.negated[tile][w] = query_bytes(*reinterpret_cast<const uint2*>(minus + 16 * w), low);
  }
  out.unit[tile] = rows.largest(q) * (p.query_unit / 32639.0f);
}

// Makes a warp's queries, by tiles through its staged rows; first_row: of the sequence. given: the first
// tile. A team's first members do it for all.
template <Narrow S>
__device__ __forceinline__ void make_queries(const Params& p, const Sequence& sequence, int first_row,
                                             int kv_head, const Team& team, GivenRows<S>& given,
                                             const float* signs, float* staged, Queries<S>& out) {
  const int warp = static_cast<int>(threadIdx.x >> 5), makers = team.makers<S>();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
    if (tile > 0) {
      __syncwarp();
      std::int64_t at[S::kQueryRows];
      find_rows<S>(p, sequence, first_row + tile * kTileRows, kv_head, at);
      given.load(p.a.query, at);
    }
    float* at = staged + (team.slot - warp) * kTileRows * S::kStride;
    if (team.member < makers) {
      const int first = team.member * (kTileRows / makers);
      // Where it goes through memory, two warps that rotate at once do it where the second one's rows are
      // staged.
      float* scratch = S::kSplit == 1 ? staged : at + (kTileRows + first) * S::kStride;
      if constexpr (!S::kSpreads) {
        round_rows<S::kQueryRows, S>(p, given, first, signs, scratch, at);
      } else {
        if (makers == 4) round_rows<1, S>(p, given, first, signs, scratch, at);
        else if (S::kSplit == 2 || makers == 2) round_rows<2, S>(p, given, first, signs, scratch, at);
        else if constexpr (S::kSplit == 1) round_rows<4, S>(p, given, first, signs, scratch, at);
      }
    }
    team.sync<S>();
    take_tile<S>(p, tile, at, out);
  }
  __syncwarp();
}

}  // namespace turboquant::kernels::cuda::few_rows
