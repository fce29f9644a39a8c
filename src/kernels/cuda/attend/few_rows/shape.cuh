// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include "core/layout.h"
#include "core/tables.h"
#include "kernels/cuda/attend/few_rows/params.h"
#include "kernels/cuda/attend/few_rows/rotate.cuh"

// The compile-time facts of a few_rows kernel.
namespace turboquant::kernels::cuda::few_rows {

template <class S>
concept Narrow = !S::kWide;  // up to 8 rows: int8 tensor cores
template <class S>
concept Wide = S::kWide;  // 16 or 32: wide/shape.cuh

// kTiles: column tiles of 4 rows a warp computes, 1 or 2. kBits_: the width of all codes, 0 where the format
// says it. kSplit_: 2 where two warps take a page together, 32 of its tokens each. Few sequences are then cut
// more finely. And rings are half as large, so that a CTA of the next launch fits beside one of which half of
// the warps have ended: that CTA need not wait for those that merge.
template <int kHeadDim, int kTiles_, int kBits_, int kSplit_ = 1>
struct Shape {
  static constexpr bool kWide = false;
  static constexpr int kDim = kHeadDim;
  static constexpr int kTiles = kTiles_, kBits = kBits_, kSplit = kSplit_;
  static constexpr int kSharing = kSplit, kStreams = kWarps / kSharing;  // warps that read a stream of pages
  static constexpr int kSlots = 2;                                       // of a stream's ring, at most
  static constexpr bool kAppends = false;                                // see Appending
  static constexpr int kRegisterWarps = kSplit > 1 ? kWarps * 3 / 2 : kWarps;  // that an SM has registers for
  static constexpr int kStep =
      kSplit == 1 && (kTiles == 1 || kDim <= 128) ? 64 : 32;  // tokens whose scores are in registers at once
  static constexpr int kScores = kStep / 8;                   // of a row that a lane has in a step
  static constexpr int kRows = kTiles * kTileRows;            // of a warp
  static constexpr int kTileTotal = kRows;                    // of a row tile
  static constexpr int kFinishRows = 1;                       // that a warp merges and finishes at a time
  static constexpr int kQueryRows = kTileRows / kSplit;       // that a warp rotates at a time, at most
  static constexpr bool kAdjacent = rotates_adjacent(kDim);   // a lane's coordinates while it does
  static constexpr bool kSpreads = kAdjacent;                 // each of a team's warps rotates fewer
  // Warps that begin in one segment make its queries together. Of 8 rows that go through memory, both tiles
  // would be for the first of them.
  static constexpr bool kTeams = kTiles == 1 || kSpreads;
  static constexpr int kQueryWords = kDim / 16;  // registers of a query's B operand: 16 coordinates each
  static constexpr int kSums = kDim / 8;         // coordinates of a row a lane sums: 2 of each 16
  static constexpr int kStride = (kDim + 31) / 32 * 32 + 16;  // of staged rows, in floats
  static constexpr int kQueryBytes = 0;                       // they are in registers
  // A part: what was summed of a row tile, [rows][kPartStride]: values (kRowFloats), maximum, sum of weights.
  static constexpr int kPartStride = (kDim + 31) / 32 * 32 + 8;
  static constexpr int kPartFloats = kTileTotal * kPartStride;
  static_assert(kDim % 16 == 0 && kTileTotal <= kMostTileRows);
  static_assert(kSplit == 1 || (kSplit == 2 && kTiles == 1));
};

// The same, and more warps of a CTA encode the call's own tokens (append.cuh). A kernel of its own: attend
// alone would take longer for their code.
template <Narrow S>
struct Appending : S {
  static constexpr bool kAppends = true;
  static constexpr int kRegisterWarps = kWarps + kMostAppendWarps;  // a third warp a scheduler: 168 registers
};

// The magnitudes of 4-bit codes, or all values of 2- and 3-bit ones, as the bytes that PRMT chooses from.
struct ByteTable {
  std::uint32_t low = 0, high = 0;
};
constexpr ByteTable byte_table(const core::CodeTable& table) {
  ByteTable out;
  for (int code = 0; code < 8; ++code) {
    int value = 0;
    if (table.bits == 4) value = table.magnitudes[code] / table.half_steps;
    else if (code < 1 << table.bits)
      value = code < table.magnitude_count
                  ? table.magnitudes[code]
                  : -static_cast<int>(table.magnitudes[code - table.magnitude_count]);
    (code < 4 ? out.low : out.high) |= static_cast<std::uint32_t>(value & 255) << code % 4 * 8;
  }
  return out;
}

// The tables of a format, in registers that the compiler cannot see through: it would build constants anew,
// by a move, for each use.
struct Tables {
  ByteTable keys, values;
};
__device__ __forceinline__ std::uint32_t in_register(std::uint32_t x) {
  asm volatile("mov.b32 %0, %0;" : "+r"(x));
  return x;
}
__device__ __forceinline__ ByteTable in_registers(const ByteTable& table) {
  return {in_register(table.low), in_register(table.high)};
}
template <Narrow S>
__device__ __forceinline__ Tables tables_of(const PageFormat& format) {
  constexpr ByteTable kKeys[] = {byte_table(core::kEither2), byte_table(core::kEither3),
                                 byte_table(core::kKey4)};
  constexpr ByteTable kValues[] = {byte_table(core::kEither2), byte_table(core::kEither3),
                                   byte_table(core::kValue4)};
  const auto choose = [](int bits, const ByteTable(&of)[3]) {
    return bits == 4 ? of[2] : bits == 3 ? of[1] : of[0];
  };
  return {in_registers(choose(format.k_bits, kKeys)), in_registers(choose(format.v_bits, kValues))};
}

inline constexpr int kRecordBytes = 40;  // merge.cuh

// A dynamic shared memory block, cut into: rings, queries, staged rows, barriers, signs,
// records, sums of units.
template <class S>
struct SharedLayout {
  // Warps' last parts, where they are not in the rings.
  static constexpr int kPartsFloats = S::kSplit > 1 ? kWarps* S::kPartFloats : 0;
  static constexpr int staged_bytes() { return kWarps * kTileRows * S::kStride * 4; }
  static constexpr int barrier_bytes() { return kWarps * kMaxStages * 2 * 8; }
  static constexpr int fixed_bytes(int sequences) {
    return kWarps * S::kQueryBytes + staged_bytes() + kPartsFloats * 4 + barrier_bytes() +
           (2 * S::kDim + sequences + 1) * 4 + (S::kStreams + 1) * kRecordBytes;
  }
  static constexpr int ring_bytes(int stages, int slot_bytes) { return S::kStreams * stages * slot_bytes; }
};

// Calls f with the width of a page's codes as a constant: one branch a page at most, the same for all warps.
template <class S, class F>
__device__ __forceinline__ void with_bits(int bits, F f) {
  if constexpr (S::kBits != 0) f(std::integral_constant<int, S::kBits>{});
  else if (bits == 4) f(std::integral_constant<int, 4>{});
  else if (bits == 3) f(std::integral_constant<int, 3>{});
  else f(std::integral_constant<int, 2>{});
}

}  // namespace turboquant::kernels::cuda::few_rows
