// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/tables.h"

// core/tables.h by level: everything the scale search wants to know of one coordinate.
namespace turboquant::kernels::cuda {

// Halfword s: what the level costs at search scale s (core::search_error). Costs of a whole vector of 128
// coordinates fit a halfword (core/tables.h), so rows are added word by word.
struct alignas(16) ErrorRow {
  std::uint32_t words[4];
};
static_assert(core::kSearchScales == 8);
// Row 256 is row 255 again, for kernels that clamp to 256.
inline constexpr int kLevels = core::kMaxLevel + 1, kLevelRows = kLevels + 1;
struct LevelTable {
  ErrorRow errors[kLevelRows];
  std::uint32_t indices[kLevelRows];  // nibble s: the magnitude's index at search scale s, which is the code
  std::uint32_t padding[3];           // to a multiple of 16 bytes
};

constexpr LevelTable make_level_table(const core::CodeTable& table) {
  LevelTable out{};
  for (int r = 0; r < kLevelRows; ++r) {
    const int level = r < kLevels ? r : kLevels - 1;
    for (int s = 0; s < core::kSearchScales; ++s) {
      const int index = core::index_of(table, s, level);
      const auto error = static_cast<std::uint32_t>(core::search_error(table, s, level, index));
      out.errors[r].words[s / 2] |= error << (16 * (s % 2));
      out.indices[r] |= static_cast<std::uint32_t>(index) << (4 * s);
    }
  }
  return out;
}

// [0] 4-bit keys, [1] 4-bit values, [2] 3 bits, [3] 2 bits.
__device__ const LevelTable kLevelTables[4] = {make_level_table(core::kKey4), make_level_table(core::kValue4),
                                               make_level_table(core::kEither3),
                                               make_level_table(core::kEither2)};

__host__ __device__ constexpr int level_table_index(int bits, bool is_key) {
  return bits == 4 ? (is_key ? 0 : 1) : bits == 3 ? 2 : 3;
}

// The magnitudes of a width, index 0 in the lowest byte: operands of a byte permute.
struct Magnitudes {
  std::uint32_t low, high;
};
__host__ __device__ constexpr std::uint32_t four_magnitudes(const core::CodeTable& table, int first) {
  std::uint32_t word = 0;
  for (int k = 0; k < 4; ++k) word |= static_cast<std::uint32_t>(table.magnitudes[first + k]) << (8 * k);
  return word;
}
__host__ __device__ constexpr Magnitudes magnitudes_of(const core::CodeTable& table) {
  return {four_magnitudes(table, 0), four_magnitudes(table, 4)};
}
__device__ inline Magnitudes magnitudes_of(int bits, bool is_key) {
  constexpr Magnitudes key4 = magnitudes_of(core::kKey4), value4 = magnitudes_of(core::kValue4);
  constexpr Magnitudes either3 = magnitudes_of(core::kEither3), either2 = magnitudes_of(core::kEither2);
  Magnitudes out = either2;
  if (bits == 3) out = either3;
  if (bits == 4) out = value4;
  if (bits == 4 && is_key) out = key4;
  return out;
}

// 64 half_steps: the unit of a stored scale over the norm of the codes (rule 6).
__host__ __device__ constexpr float stored_scale_unit(int bits, bool is_key) {
  return core::kScaleUnit * static_cast<float>(bits == 4 && !is_key ? core::kValue4.half_steps : 1);
}
static_assert(core::kKey4.half_steps == 1 && core::kEither3.half_steps == 1 &&
              core::kEither2.half_steps == 1);

}  // namespace turboquant::kernels::cuda
