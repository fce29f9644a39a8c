// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "turboquant/format.h"

// How many_rows cuts its work and lays out shared memory.
//
// A CTA owns kRows rows of one sequence and KV head and walks over tiles of 64 tokens. A tile of keys is
// [64 tokens][head_dim] of fp16, a tile of values its transpose, [head_dim][64 tokens]; both operands of
// mma.sync are then read by ldmatrix without a transposition.
//
// Both orders follow from the words of a page, eight codes of which become one 16-byte chunk of a tile:
//   row r of a tile of keys (and element r of a row of values) is token     32 i + 8 n + 2 q + h
//                                                  where r = 32 i + 8 q + 4 h + n
//   element x of a row of keys (and of queries) is coordinate               32 i + 16 h + 4 q + n
//                                                  where x = 32 i + 8 q + 4 h + n
// with n < 4, h < 2, q < 4; the last 16 coordinates of head_dim 80 stay in order.
namespace turboquant::kernels::cuda::many {

static_assert(kPageTokens == 64);

__host__ __device__ constexpr int tile_row(int token) {
  return (token & 32) | (token >> 1 & 3) << 3 | (token & 1) << 2 | (token >> 3 & 3);
}
__host__ __device__ constexpr int tile_token(int row) {
  return (row & 32) | (row & 3) << 3 | (row >> 3 & 3) << 1 | (row >> 2 & 1);
}
static_assert(tile_token(tile_row(43)) == 43 && tile_row(8) == 1 && tile_row(1) == 4 && tile_row(2) == 8);

template <int D>
__host__ __device__ constexpr int stored_coordinate(int x) {
  if (x >= D / 32 * 32) return x;
  return (x & ~31) | (x >> 2 & 1) << 4 | (x >> 3 & 3) << 2 | (x & 3);
}
template <int D>
__host__ __device__ constexpr int stored_position(int coordinate) {
  if (coordinate >= D / 32 * 32) return coordinate;
  return (coordinate & ~31) | (coordinate >> 2 & 3) << 3 | (coordinate >> 4 & 1) << 2 | (coordinate & 3);
}
static_assert(stored_position<128>(stored_coordinate<128>(77)) == 77);

constexpr int kCentreBatch = 8;  // pages whose centres meet the queries at once: the columns of one MMA

template <int D>
struct Layout {
  static constexpr int kMmaRows = D <= 128 ? 2 : 1;  // blocks of 16 rows a warp: what 255 registers hold
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = 16 * kMmaRows;
  static constexpr int kRows = kWarps * kWarpRows;

  // Rows of an odd number of 16-byte chunks: the 8 rows of an ldmatrix lie in different banks.
  static constexpr int kPitch = 2 * D + 16;
  static_assert(kPitch / 16 % 2 == 1);
  static constexpr int kValuePitch = 2 * kPageTokens;  // swizzled: value_chunk()

  static constexpr int kCentrePitch = D + 16;  // int8 centre, fp16 step, padding: as in the page
  static constexpr int kMaxPageBytes = static_cast<int>(PageFormat{D, 4, 4}.page_bytes());

  // Byte offsets in shared memory.
  static constexpr int kQueries = 0;
  static constexpr int kKeys = kQueries + kRows * kPitch;
  static constexpr int kValues = kKeys + kPageTokens * kPitch;
  static constexpr int kPacked = kValues + D * kValuePitch;
  static constexpr int kCentres = kPacked + kMaxPageBytes;                          // two batches
  static constexpr int kCentreScores = kCentres + 2 * kCentreBatch * kCentrePitch;  // float [kRows][8]
  static constexpr int kCentred = kCentreScores + kRows * kCentreBatch * 4;         // float [64]
  static constexpr int kRowScale = kCentred + kPageTokens * 4;                      // float [kRows]
  static constexpr int kRowToken = kRowScale + kRows * 4;                           // int [kRows]
  static constexpr int kFlags = kRowToken + kRows * 4;                              // see Flags
  static constexpr int kBytes = kFlags + 128;
};

// Chunk c of row `coordinate` of a tile of values lies at chunk c ^ value_swizzle(coordinate): the rows of an
// ldmatrix lie in different banks, and so do the chunks that 8 lanes write (two neighbouring coordinates).
__host__ __device__ constexpr int value_swizzle(int coordinate) {
  return (coordinate & 1) << 2 | (coordinate >> 1 & 3);
}

// Words of shared memory that warps leave each other. Two of each: one is cleared while the other is in use.
struct Flags {
  std::uint32_t not_finite[2][2];  // 64 bits by token: values that are NaN or infinite
  std::uint32_t largest[2][2];     // bits of the largest |key|, |value| of a tile of raw rows
  int sequence, tile;              // what find_tile() found
};
static_assert(sizeof(Flags) <= 128);

}  // namespace turboquant::kernels::cuda::many
