// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/tables.h"

// The thresholds of core/tables.h as GPUs meet them: two coordinates at a time in fp16, without a compare.
// With
//   w = min(1, max(0, slope level + start)),   t = top - w w,   each fused and rounded to fp16,
// the low byte of t is the magnitude's index: fp16's step is 1/8 from 128 to 256, where top is 192 + 8/8 at 4
// bits and 192 + 5/8 at 3, and 1/4 from 256 to 512, where it is 384 + 1/4 at 2. At 3 bits 4 and 5 mean 3. A
// level is fp16's 1024 + level. Level by level that is what index_of() says
// (tests/unit/kernels/curve_test.cc).
namespace turboquant::kernels::cuda {

// All as fp16 bits.
struct Curve {
  std::uint16_t slope, start;
};
struct Curves {
  std::uint16_t top;
  Curve of[core::kMaxCandidates];
};

static constexpr Curves kKey4Curves{0x5a08, {{0x998c, 0x439f}, {0x99f9, 0x4406}, {0x9a4f, 0x4431}}};
static constexpr Curves kValue4Curves{0x5a08, {{0x998d, 0x439f}, {0x99e5, 0x43f7}, {0x9a3f, 0x4428}}};
static constexpr Curves kEither3Curves{0x5a05,
                                       {{0x9542, 0x4047},
                                        {0x95db, 0x4095},
                                        {0x9660, 0x40d7},
                                        {0x96d9, 0x4113},
                                        {0x976c, 0x415d},
                                        {0x982b, 0x41d3}}};
static constexpr Curves kEither2Curves{0x5e01,
                                       {{0x9296, 0x3d1a},
                                        {0x928e, 0x3d09},
                                        {0x9296, 0x3d03},
                                        {0x928e, 0x3cf7},
                                        {0x928e, 0x3cf1},
                                        {0x928e, 0x3ce8}}};

static inline constexpr const Curves& key_curves(int bits) {
  return bits == 4 ? kKey4Curves : bits == 3 ? kEither3Curves : kEither2Curves;
}
static inline constexpr const Curves& value_curves(int bits) {
  return bits == 4 ? kValue4Curves : bits == 3 ? kEither3Curves : kEither2Curves;
}

// What kernels want of a table, ready for use: a kernel's parameter. Words of a Curve hold it twice. All that
// a candidate's pass needs is in its Candidate: read with the loop's index it takes registers once, not a
// move wherever it is used.
struct Candidate {
  std::uint32_t slope, start, top;
  std::uint32_t low_magnitudes, high_magnitudes;  // index 0 in the lowest byte: operands of a byte permute
};
struct Coder {
  Candidate of[core::kMaxCandidates];
  float unit;  // core::scale_unit()
  int candidates, bits;
  bool unbiased;
};
constexpr Coder make_coder(const core::CodeTable& table, const Curves& curves) {
  Coder out{};
  const auto twice = [](std::uint16_t x) { return 0x10001u * x; };
  for (int j = 0; j < table.candidates; ++j) {
    Candidate& candidate = out.of[j];
    candidate.slope = twice(curves.of[j].slope);
    candidate.start = twice(curves.of[j].start);
    candidate.top = twice(curves.top);
    for (int k = 0; k < 4; ++k) {
      const int high = table.bits == 3 ? 3 : 4 + k;
      candidate.low_magnitudes |= static_cast<std::uint32_t>(table.magnitudes[k]) << (8 * k);
      candidate.high_magnitudes |= static_cast<std::uint32_t>(table.magnitudes[high]) << (8 * k);
    }
  }
  out.unit = core::scale_unit(table);
  out.candidates = table.candidates;
  out.bits = table.bits;
  out.unbiased = table.unbiased;
  return out;
}

}  // namespace turboquant::kernels::cuda
