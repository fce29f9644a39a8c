// SPDX-License-Identifier: Apache-2.0
// The parabolas that GPUs evaluate in fp16 cross a half where the tables have their thresholds.
#include "kernels/cuda/encode/curve.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/half.h"

namespace turboquant::kernels::cuda {
namespace {

// The nearest fp16, ties to even, of a number in fp16's normal range or 0.
double to_half(double x) {
  if (x == 0.0) return 0.0;
  int exponent = 0;
  std::frexp(x, &exponent);
  const double step = std::ldexp(1.0, exponent - 11);
  return std::nearbyint(x / step) * step;
}
double of_bits(std::uint16_t half) {
  return static_cast<double>(core::half_to_float(half));
}

// A product of fp16 is exact in double, and so is its sum with an fp16 of these magnitudes.
int index_by_curve(const core::CodeTable& table, const Curves& curves, const Curve& curve, int level) {
  const double w =
      std::fmin(1.0, std::fmax(0.0, to_half(of_bits(curve.slope) * (1024.0 + level) + of_bits(curve.start))));
  const double t = to_half(of_bits(curves.top) - w * w), least = table.bits == 2 ? 384.0 : 192.0;
  const int index = static_cast<int>((t - least) * (table.bits == 2 ? 4.0 : 8.0));
  return table.bits == 3 && index > 3 && index < 6 ? 3 : index;
}

void expect_thresholds(const core::CodeTable& table, const Curves& curves) {
  for (int j = 0; j < table.candidates; ++j)
    for (int level = 0; level <= core::kMaxLevel; ++level)
      ASSERT_EQ(index_by_curve(table, curves, curves.of[j], level), core::index_of(table, j, level))
          << table.bits << " bits, candidate " << j << ", level " << level;
}

TEST(Curve, GivesEveryLevelTheIndexOfItsThresholds) {
  expect_thresholds(core::kKey4, kKey4Curves);
  expect_thresholds(core::kValue4, kValue4Curves);
  expect_thresholds(core::kEither3, kEither3Curves);
  expect_thresholds(core::kEither2, kEither2Curves);
}

}  // namespace
}  // namespace turboquant::kernels::cuda
