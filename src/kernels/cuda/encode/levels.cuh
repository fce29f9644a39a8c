// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/tables.h"

// core/tables.h by level: everything the scale search wants to know of one coordinate in one 16-byte load.
//
//   bytes 0..8   T_s, the magnitude at search scale s
//   byte 9       the level itself
//   bytes 12..15 bits 3s .. 3s + 2: the index of T_s among the table's magnitudes, in other words the code
namespace turboquant::kernels::cuda {

struct alignas(16) LevelRow {
  std::uint32_t words[4];
};
// Row 256 is row 255 again, for kernels that clamp to 256.
inline constexpr int kLevels = core::kMaxLevel + 1, kLevelRows = kLevels + 1;
struct LevelTable {
  LevelRow rows[kLevelRows];
};

constexpr LevelTable make_level_table(const core::CodeTable& table) {
  LevelTable out{};
  for (int r = 0; r < kLevelRows; ++r) {
    const int level = r < kLevels ? r : kLevels - 1;
    std::uint32_t* words = out.rows[r].words;
    for (int s = 0; s < core::kSearchScales; ++s) {
      std::uint32_t index = 0;
      while (index + 1 < static_cast<std::uint32_t>(table.magnitude_count) &&
             level >= table.thresholds[s][index])
        ++index;
      words[s / 4] |= static_cast<std::uint32_t>(table.magnitudes[index]) << (8 * (s % 4));
      words[3] |= index << (3 * s);
    }
    words[2] |= static_cast<std::uint32_t>(level) << 8;
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
// 64 half_steps: the unit of a stored scale over the norm of the codes (rule 6).
__host__ __device__ constexpr float stored_scale_unit(int bits, bool is_key) {
  return core::kScaleUnit * static_cast<float>(bits == 4 && !is_key ? core::kValue4.half_steps : 1);
}
static_assert(core::kKey4.half_steps == 1 && core::kEither3.half_steps == 1 &&
              core::kEither2.half_steps == 1);

}  // namespace turboquant::kernels::cuda
