// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/scores.cuh"

// More than 4 rows: fp16 tensor cores, an MMA's 16 rows being 8 or 16 of the warp's. Codes are the B operand
// of both products, expanded once however many rows there are, and sums are floats that nothing is brought
// into between pages.
//
// A lane 4 g + q of the C operands holds columns 2 q and 2 q + 1 of rows g (half 0) and g + 8 (half 1).
namespace turboquant::kernels::cuda::few_rows {

// kRows_: 16 or 32 rows of a warp. kSharing: warps that read one stream of pages, each for its own rows.
// kBits_: as in Shape.
template <int kHeadDim, int kRows_, int kSharing_, int kBits_>
struct WideShape {
  static constexpr bool kWide = true;
  static constexpr int kBits = kBits_;
  static constexpr bool kTeams = true;
  static constexpr bool kAppends = false;
  static constexpr int kDim = kHeadDim, kRows = kRows_, kSharing = kSharing_;
  static constexpr int kSplit = 1, kStreams = kWarps / kSharing;
  static constexpr int kSlots = 2 * kSharing, kRegisterWarps = kWarps;  // as in Shape
  static constexpr int kTileTotal = kRows * kSharing;                   // rows of a row tile
  static constexpr int kBlocks = kRows / 16;                            // MMAs' rows
  static constexpr int kQueryRows = kTileRows;                          // that a warp rotates at a time
  static constexpr int kSteps = kDim / 16;                              // of a score product
  static constexpr int kFinishRows = kTileRows;               // that a warp merges and finishes at a time
  static constexpr int kStride = (kDim + 31) / 32 * 32 + 16;  // of staged rows, in floats
  static constexpr bool kPipelined = kBits != 0 && kDim % 32 == 0 && kBlocks == 1;  // values.cuh
  static constexpr bool kQueriesInRegisters = kBlocks == 1 && kDim <= 128;
  static constexpr int kQueryTiles = kRows / kTileRows;
  static constexpr int kQueryOperands = kSteps * kBlocks * 32;               // of 16 bytes
  static constexpr int kQueryBytes = kQueryOperands * 16 + kQueryTiles * 4;  // a warp
  static constexpr int kPartStride = (kDim + 31) / 32 * 32 + 8;              // of a part: Shape
  static constexpr int kPartFloats = kTileTotal * kPartStride;
  static_assert(kDim % 16 == 0 && kWarps % kSharing == 0 && kTileTotal <= kMostTileRows);
};
inline constexpr int kWideStep = 32;  // tokens whose scores are in registers at once

// Magnitudes, in steps of the table, as bytes; narrow codes' signs are their table entry's.
struct WideTables {
  ByteTable keys, values;
};
constexpr ByteTable magnitude_table(const core::CodeTable& table) {
  ByteTable out;
  for (int code = 0; code < 8; ++code) {
    const auto magnitude = static_cast<std::uint32_t>(table.magnitudes[code % table.magnitude_count]);
    (code < 4 ? out.low : out.high) |= magnitude << code % 4 * 8;
  }
  return out;
}
template <Wide S>
__device__ __forceinline__ WideTables tables_of(const PageFormat& format) {
  constexpr ByteTable kKeys[] = {magnitude_table(core::kEither2), magnitude_table(core::kEither3),
                                 magnitude_table(core::kKey4)};
  constexpr ByteTable kValues[] = {magnitude_table(core::kEither2), magnitude_table(core::kEither3),
                                   magnitude_table(core::kValue4)};
  const auto choose = [](int bits, const ByteTable(&of)[3]) {
    return bits == 4 ? of[2] : bits == 3 ? of[1] : of[0];
  };
  return {in_registers(choose(format.k_bits, kKeys)), in_registers(choose(format.v_bits, kValues))};
}

// As in_register() of a word: a sum that is to be added up once, not where it is chosen.
__device__ __forceinline__ float in_register(float x) {
  asm volatile("mov.f32 %0, %0;" : "+f"(x));
  return x;
}

// Eight codes as fp16: two k-steps' B registers. A table's step is 2^-24, fp16's least subnormal, so that a
// magnitude is the low byte and a sign the high one.
inline constexpr float kStepsOfOne = 16777216.0f;
struct WideCodes {
  std::uint32_t x[4];  // codes (0, 2), (1, 3), (4, 6), (5, 7)
};
template <int kBits>
__device__ __forceinline__ WideCodes expand(const ByteTable& table, std::uint32_t selector) {
  if constexpr (kBits == 4) {
    const std::uint32_t m = selector & 0x77777777u;
    const std::uint32_t low = prmt(table.low, table.high, m), high = prmt(table.low, table.high, m >> 16);
    const std::uint32_t even = selector << 4 & 0x80808080u, odd = selector & 0x80808080u;
    return {
        {prmt(low, even, 0x5240), prmt(low, odd, 0x5341), prmt(high, even, 0x7260), prmt(high, odd, 0x7361)}};
  } else {
    constexpr std::uint32_t kLow = kBits == 3 ? 0u : 0x80800000u, kHigh = kBits == 3 ? 0x80808080u : 0u;
    const std::uint32_t upper = selector >> 16;
    const std::uint32_t low = prmt(table.low, table.high, selector),
                        high = prmt(table.low, table.high, upper);
    const std::uint32_t sign = prmt(kLow, kHigh, selector), high_sign = prmt(kLow, kHigh, upper);
    return {{prmt(low, sign, 0x6240), prmt(low, sign, 0x7351), prmt(high, high_sign, 0x6240),
             prmt(high, high_sign, 0x7351)}};
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
