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

// The threads that do something together, and which of them this one is.
struct Crew {
  int thread, threads;
};
__device__ inline Crew whole_block() {
  return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
}

constexpr int kCentreBatch = 8;  // pages whose centres meet the queries at once: the columns of one MMA

// Chunk c of row `coordinate` of a tile of values lies at chunk c ^ value_swizzle(coordinate): the rows of an
// ldmatrix lie in different banks, and so do the chunks that 8 lanes write (two neighbouring coordinates).
__host__ __device__ constexpr int value_swizzle(int coordinate) {
  return (coordinate & 1) << 2 | (coordinate >> 1 & 3);
}

template <int D>
struct Layout {
  static constexpr int kDim = D;
  static constexpr int kMmaRows = D <= 128 ? 2 : 1;  // blocks of 16 rows a warp: what 255 registers hold
  static constexpr int kWarpRows = 16 * kMmaRows;
  static constexpr int kMaxWarps = 8;
  // A tile is done in steps: 64 tokens at once would not leave the sums their registers.
  static constexpr int kStepTokens = 32;

  // Rows of an odd number of 16-byte chunks: the 8 rows of an ldmatrix lie in different banks.
  static constexpr int kPitch = 2 * D + 16;
  static_assert(kPitch / 16 % 2 == 1);
  static constexpr int kValuePitch = 2 * kPageTokens;  // swizzled: value_swizzle()

  // Where 16-byte chunk `chunk` of a row lies in its tile.
  static __host__ __device__ constexpr int query_at(int row, int chunk) { return row * kPitch + 16 * chunk; }
  static __host__ __device__ constexpr int key_at(int row, int chunk) { return row * kPitch + 16 * chunk; }
  static __host__ __device__ constexpr int value_at(int coordinate, int chunk) {
    return coordinate * kValuePitch + (chunk ^ value_swizzle(coordinate)) * 16;
  }
  static constexpr int kExpandUnroll = 1;  // no registers are left for more
  // The lane of the page's order whose values a lane expands.
  static __host__ __device__ constexpr int value_lane(int lane) { return lane; }

  static constexpr int kCentrePitch = D + 16;  // int8 centre, fp16 step, padding: as in the page

  // Shared memory: what follows, then one or two stages, then what grows with the rows.
  static constexpr int kFlags = 0;
  static constexpr int kCentred = 128;                             // float [2][64]
  static constexpr int kCentres = kCentred + 2 * kPageTokens * 4;  // [kCentreBatch]
  static constexpr int kStages = kCentres + kCentreBatch * kCentrePitch;
  // A stage: a tile, and a page's codes and scales.
  static constexpr int kKeys = 0;
  static constexpr int kValues = kKeys + kPageTokens * kPitch;
  static constexpr int kPacked = kValues + D * kValuePitch;
  static constexpr int kStageBytes = kPacked + static_cast<int>(PageFormat{D, 4, 4}.centre_offset());
  // A row: its query, 8 centre scores, scale and token.
  static constexpr int kRowBytes = kPitch + 4 * (kCentreBatch + 2);

  static constexpr int bytes(int warps, int stages) {
    return kStages + stages * kStageBytes + warps * kWarpRows * kRowBytes;
  }
  static_assert(kStages % 128 == 0 && kStageBytes % 128 == 0);
};

// Words of shared memory that warps leave each other.
struct Flags {                     // of tile n in [n % 4]
  std::uint32_t not_finite[4][2];  // 64 bits by token: values that are NaN or infinite
  std::uint32_t largest[4][2];     // of a raw tile: the bits of the largest |key|, |value|
};
static_assert(sizeof(Flags) <= 128);

}  // namespace turboquant::kernels::cuda::many
