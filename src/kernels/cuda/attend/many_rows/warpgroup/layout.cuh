// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/layout.cuh"

// The kernel of sm_90a, head_dim 128: a CTA is two warpgroups that multiply, 64 rows each, and one that makes
// the tiles of both. Tiles hold the same rows in the same order as those of Layout<128>, as `wgmma` reads
// them: rows of 128 bytes, whose 16-byte chunk c lies at chunk c ^ (row % 8), in groups of 8 rows ("128-byte
// swizzle"). Rows of 256 bytes are cut into two such blocks.
namespace turboquant::kernels::cuda::many {

struct WarpgroupLayout {
  static constexpr int kDim = 128;
  static constexpr int kMmaRows = 1, kWarpRows = 16;  // of a warp: rows 16 w .. 16 w + 15 of its warpgroup
  static constexpr int kStepTokens = kPageTokens;
  static constexpr int kExpandUnroll = 2;  // a thread's tokens and blocks of a page at once

  static constexpr int kWarpgroupThreads = 128, kWarpgroupRows = 64, kWarpgroups = 2;
  static constexpr int kRows = kWarpgroups * kWarpgroupRows;
  static constexpr int kConsumers = kWarpgroups * kWarpgroupThreads;
  static constexpr int kThreads = kConsumers + kWarpgroupThreads;

  static constexpr int kRowBytes = 128, kGroupBytes = 8 * kRowBytes;
  static constexpr int kQueryBlock = kWarpgroupRows * kRowBytes;
  static constexpr int kQueryBytes = 2 * kQueryBlock;  // of a warpgroup
  // Eight rows more than tokens, the first of which is the page's centre: its score is one more column.
  static constexpr int kCentreRow = kPageTokens;
  static constexpr int kKeyRows = kPageTokens + 8;
  static constexpr int kKeyBlock = kKeyRows * kRowBytes;
  // Eight rows more than coordinates, all ones: the sum of weights is one more column.
  static constexpr int kOnesRow = kDim;
  static constexpr int kValueRows = kDim + 8;

  static __host__ __device__ constexpr int swizzled(int row, int chunk) {
    return row * kRowBytes + (chunk ^ (row & 7)) * 16;
  }
  static __host__ __device__ constexpr int query_at(int row, int chunk) {
    return row / kWarpgroupRows * kQueryBytes + chunk / 8 * kQueryBlock +
           swizzled(row % kWarpgroupRows, chunk % 8);
  }
  static __host__ __device__ constexpr int key_at(int row, int chunk) {
    return chunk / 8 * kKeyBlock + swizzled(row, chunk % 8);
  }
  static __host__ __device__ constexpr int value_at(int coordinate, int chunk) {
    return swizzled(coordinate, chunk);
  }
  static_assert(2 * kPageTokens == kRowBytes);
  // Eight lanes that write at once have coordinates g and g ^ 5: they read 128 consecutive bytes' worth of
  // banks of a page, and write all eight chunks.
  static __host__ __device__ constexpr int value_lane(int lane) {
    const int pair = lane >> 3, g = (lane >> 2 & 1) != 0 ? pair ^ 5 : pair;
    return 4 * g + (lane & 3);
  }

  // Shared memory.
  static constexpr int kStages = 3;  // tiles
  static constexpr int kSlots = 3;   // packed pages
  static constexpr int kQueries = 4096;
  static constexpr int kTiles = kQueries + kWarpgroups * kQueryBytes;
  static constexpr int kKeys = 0;  // of a tile
  static constexpr int kValues = 2 * kKeyBlock;
  static constexpr int kTileBytes = kValues + kValueRows * kRowBytes;
  static constexpr int kPacked = kTiles + kStages * kTileBytes;
  static constexpr int kPackedBytes = static_cast<int>(PageFormat{kDim, 4, 4}.page_bytes());
  static constexpr int kBytes = kPacked + kSlots * kPackedBytes;
  static_assert(kQueries % kGroupBytes == 0 && kQueryBlock % kGroupBytes == 0 && kTiles % kGroupBytes == 0 &&
                kKeyBlock % kGroupBytes == 0 && kValues % kGroupBytes == 0 && kTileBytes % kGroupBytes == 0);
};

// Whether each eight lanes that access shared memory at once read and write eight different 16-byte columns
// of its banks, as lanes expand values of tokens 32 i + ...
constexpr bool values_are_without_conflicts(int i) {
  for (int first = 0; first < 32; first += 8) {
    unsigned reads = 0, writes = 0;
    for (int lane = first; lane < first + 8; ++lane) {
      const int of = WarpgroupLayout::value_lane(lane);
      reads |= 1u << of % 8;
      writes |= 1u << WarpgroupLayout::value_at(of / 4, 4 * i + of % 4) / 16 % 8;
    }
    if (reads != 255 || writes != 255) return false;
  }
  return true;
}
static_assert(values_are_without_conflicts(0) && values_are_without_conflicts(1));

}  // namespace turboquant::kernels::cuda::many
