// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/tables.h"

// The thresholds of core/tables.h as GPUs meet them: two coordinates at a time in fp16, without a compare.
// With
//   x = max(0, level - b) / 256,   t = (c1 x + c0) x + 1536,   each fused and rounded to fp16,
// the low byte of t is the magnitude's index, as fp16's step is 1 from 1,024 to 2,048. Level by level that is
// what index_of() says (tests/unit/kernels/curve_test.cc).
namespace turboquant::kernels::cuda {

// All as fp16 bits.
struct Curve {
  std::uint16_t c0, c1;
};
struct Curves {
  std::uint16_t shift;  // -(1024 + b) / 256
  Curve of[core::kMaxCandidates];
};

static constexpr Curves kKey4Curves{0xc40d, {{0x498c, 0xc3d7}, {0x4a0a, 0xc4b8}, {0x4a9d, 0xc5ca}}};
static constexpr Curves kValue4Curves{0xc40d, {{0x499d, 0xc41c}, {0x4a10, 0xc4d1}, {0x4aa1, 0xc5d8}}};
static constexpr Curves kEither3Curves{0xc418,
                                       {{0x4407, 0xb9f2},
                                        {0x449f, 0xbc7f},
                                        {0x4546, 0xbebd},
                                        {0x45f3, 0xc098},
                                        {0x46b9, 0xc273},
                                        {0x47f9, 0xc51a}}};
static constexpr Curves kEither2Curves{0xc400,
                                       {{0x3ce1, 0xb5db},
                                        {0x3d71, 0xb687},
                                        {0x3d71, 0x8000},
                                        {0x3e00, 0x8000},
                                        {0x3f48, 0xb85e},
                                        {0x4029, 0xb8fe}}};

static inline constexpr const Curves& key_curves(int bits) {
  return bits == 4 ? kKey4Curves : bits == 3 ? kEither3Curves : kEither2Curves;
}
static inline constexpr const Curves& value_curves(int bits) {
  return bits == 4 ? kValue4Curves : bits == 3 ? kEither3Curves : kEither2Curves;
}

// What kernels want of a table, ready for use: a kernel's parameter. Words of a Curve hold it twice.
struct Coder {
  std::uint32_t shift;
  std::uint32_t c0[core::kMaxCandidates], c1[core::kMaxCandidates];
  std::uint32_t low_magnitudes, high_magnitudes;  // index 0 in the lowest byte: operands of a byte permute
  float unit;                                     // core::scale_unit()
  int candidates, bits;
};
inline Coder make_coder(const core::CodeTable& table, const Curves& curves) {
  Coder out{};
  const auto twice = [](std::uint16_t x) { return 0x10001u * x; };
  out.shift = twice(curves.shift);
  for (int j = 0; j < table.candidates; ++j) {
    out.c0[j] = twice(curves.of[j].c0);
    out.c1[j] = twice(curves.of[j].c1);
  }
  for (int k = 0; k < 4; ++k) {
    out.low_magnitudes |= static_cast<std::uint32_t>(table.magnitudes[k]) << (8 * k);
    out.high_magnitudes |= static_cast<std::uint32_t>(table.magnitudes[4 + k]) << (8 * k);
  }
  out.unit = core::scale_unit(table);
  out.candidates = table.candidates;
  out.bits = table.bits;
  return out;
}

}  // namespace turboquant::kernels::cuda
