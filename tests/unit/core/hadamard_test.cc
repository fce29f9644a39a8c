// SPDX-License-Identifier: Apache-2.0
#include "core/hadamard.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/random.h"
#include "turboquant/rotation.h"

namespace turboquant {
namespace {

std::vector<int> supported_head_dims() {
  std::vector<int> dims;
  for (int d = 1; d <= kMaxRotationDim; ++d) {
    if (hadamard_plan(d).ok()) dims.push_back(d);
  }
  return dims;
}

HadamardPlan plan_of(int head_dim) {
  return hadamard_plan(head_dim).value();
}

TEST(HadamardPlan, ExistsForEveryMultipleOfSixteenUpTo512AndEveryPaleyMultipleUpTo1024) {
  std::vector<bool> wanted(kMaxRotationDim + 1, false);
  for (const int base : {1, 12, 20, 28}) {
    for (int d = base; d <= kMaxRotationDim; d *= 2) wanted[static_cast<std::size_t>(d)] = true;
  }
  for (int d = 16; d <= 512; d += 16) wanted[static_cast<std::size_t>(d)] = true;
  for (int d = 1; d <= kMaxRotationDim; ++d) {
    const auto plan = hadamard_plan(d);
    const auto base = hadamard_base(d);
    EXPECT_EQ(plan.ok(), wanted[static_cast<std::size_t>(d)]) << d;
    ASSERT_EQ(base.ok(), plan.ok()) << d;
    EXPECT_EQ(base.ok() ? base.value() : 0, plan.ok() ? plan.value().base : 0) << d;
  }
}

TEST(HadamardPlan, SplitsHeadDimAsTheTableSays) {
  struct Row {
    int head_dim, base, power;
  };
  for (const Row row : {Row{64, 1, 64},
                        {80, 20, 4},
                        {96, 12, 8},
                        {112, 28, 4},
                        {128, 1, 128},
                        {144, 9, 16},
                        {160, 20, 8},
                        {192, 12, 16},
                        {240, 15, 16},
                        {256, 1, 256},
                        {288, 9, 32},
                        {320, 20, 16},
                        {448, 28, 16},
                        {496, 31, 16},
                        {768, 12, 64},
                        {1024, 1, 1024},
                        {12, 12, 1},
                        {1, 1, 1}}) {
    const HadamardPlan plan = plan_of(row.head_dim);
    EXPECT_EQ(plan.head_dim, row.head_dim);
    EXPECT_EQ(plan.base, row.base) << row.head_dim;
    EXPECT_EQ(plan.power, row.power) << row.head_dim;
    EXPECT_EQ(plan.base_matrix.size(), row.base == 1 ? 0u : static_cast<std::size_t>(row.base * row.base));
  }
}

TEST(HadamardPlan, NamesTheNearestSupportedHeadDim) {
  EXPECT_EQ(hadamard_plan(100).error().message, "head_dim=100 has no Hadamard rotation; use 96 or 112");
  EXPECT_EQ(hadamard_plan(100).error().code, Code::kUnsupported);
  EXPECT_EQ(hadamard_plan(528).error().message, "head_dim=528 has no Hadamard rotation; use 512 or 640");
  EXPECT_EQ(hadamard_plan(2048).error().message, "head_dim=2048 has no Hadamard rotation; use at most 1024");
  EXPECT_EQ(hadamard_plan(0).error().message, "head_dim=0 is not positive; use 1 to 1024");
  EXPECT_EQ(hadamard_plan(0).error().code, Code::kInvalidArgument);
}

TEST(HadamardPlan, PaleyBasesAreHadamardMatrices) {
  for (const int m : {12, 20, 28}) {
    const std::vector<float> matrix = plan_of(m).base_matrix;
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < m; ++j) {
        float dot = 0.0f;
        for (int k = 0; k < m; ++k) {
          const float a = matrix[static_cast<std::size_t>(i * m + k)];
          ASSERT_EQ(std::fabs(a), 1.0f);
          dot += a * matrix[static_cast<std::size_t>(j * m + k)];
        }
        ASSERT_EQ(dot, i == j ? static_cast<float>(m) : 0.0f) << "order " << m << ", rows " << i << ", " << j;
      }
    }
  }
}

// A libm's error of a few double ulps must not change the float: every entry is at least 2^-44 of its
// size away from the middle between two floats (a double ulp is 2^-53 to 2^-52).
TEST(HadamardPlan, HartleyEntriesRoundToTheSameFloatOnEveryMachine) {
  for (int m = 9; m <= 31; m += 2) {
    for (int k = 0; k < m; ++k) {
      const double angle = 2.0 * M_PI * k / m;
      const double exact = std::cos(angle) + std::sin(angle);
      const double size = std::fabs(exact);
      for (const double nudge : {-0x1p-44, 0x1p-44}) {
        ASSERT_EQ(static_cast<float>(exact + size * nudge), static_cast<float>(exact)) << k << " / " << m;
      }
    }
  }
}

// The columns of H are the transforms of the unit vectors. For +-1 the products are whole numbers: exact.
// For Hartley each entry is off by at most 2^-24 of itself, so a product of two rows by 2 * 2^-24 * d at
// first order (Cauchy-Schwarz), and the fp32 sum of `base` products adds at most base * 2^-24 to an entry's
// sqrt(2).
TEST(HadamardForward, IsOrthogonalForEverySupportedHeadDim) {
  for (const int d : supported_head_dims()) {
    const HadamardPlan plan = plan_of(d);
    const auto n = static_cast<std::size_t>(d);
    std::vector<std::vector<float>> columns(n, std::vector<float>(n, 0.0f));
    std::vector<float> scratch(static_cast<std::size_t>(plan.base));
    const bool whole = plan.base == 1 || plan.base == 12 || plan.base == 20 || plan.base == 28;
    for (std::size_t i = 0; i < n; ++i) {
      columns[i][i] = 1.0f;
      core::hadamard_forward(columns[i].data(), plan.base, plan.power, plan.base_matrix.data(),
                             scratch.data());
      for (const float x : columns[i]) {
        if (whole) {
          ASSERT_EQ(std::fabs(x), 1.0f) << "head_dim " << d;
        } else {
          ASSERT_LE(std::fabs(x), std::sqrt(2.0f) * 1.0000001f) << "head_dim " << d;
        }
      }
    }
    const double bound = whole ? 0.0 : 2.1 * 0x1p-24 * d;
    const std::size_t step = n > 256 ? 37 : n > 64 ? 7 : 1;  // every column against a sample of the others
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = i % step; j < n; j += step) {
        double dot = 0.0;
        for (std::size_t k = 0; k < n; ++k)
          dot += static_cast<double>(columns[i][k]) * static_cast<double>(columns[j][k]);
        ASSERT_NEAR(dot, i == j ? static_cast<double>(d) : 0.0, bound)
            << "head_dim " << d << ", columns " << i << ", " << j;
      }
    }
  }
}

// Relative error in the 2-norm, u = 2^-24: a butterfly stage rounds each output once (u); a base product is a
// dot product of m terms, (m u) sum |b||x| <= m u sqrt(m) |x| an output, so m sqrt(m) u against an output
// norm of sqrt(m) |x| over m outputs. Higher orders of u are below 1 % of this.
double relative_bound(const HadamardPlan& plan) {
  const double m = plan.base == 1 ? 0.0 : plan.base;
  return 1.01 * 0x1p-24 * (std::log2(plan.power) + m * std::sqrt(m));
}

TEST(HadamardForward, AgreesWithTheDoubleTransformForEverySupportedHeadDim) {
  core::Gaussian gaussian(11);
  for (const int d : supported_head_dims()) {
    const HadamardPlan plan = plan_of(d);
    for (const bool transposed : {false, true}) {
      std::vector<float> x(static_cast<std::size_t>(d)), scratch(static_cast<std::size_t>(plan.base));
      std::vector<double> wide(x.size()), wide_scratch(scratch.size());
      for (std::size_t i = 0; i < x.size(); ++i)
        wide[i] = static_cast<double>(x[i] = static_cast<float>(gaussian.next()));
      (transposed ? core::hadamard_transposed : core::hadamard_forward)(
          x.data(), plan.base, plan.power, plan.base_matrix.data(), scratch.data());
      core::hadamard_double(wide.data(), plan.base, plan.power, plan.base_matrix.data(), wide_scratch.data(),
                            transposed);
      double error = 0.0, size = 0.0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        error += std::pow(static_cast<double>(x[i]) - wide[i], 2);
        size += wide[i] * wide[i];
      }
      ASSERT_LE(std::sqrt(error), relative_bound(plan) * std::sqrt(size)) << "head_dim " << d;
    }
  }
}

// The double transform against the definition H = base (x) Sylvester, entry by entry.
TEST(HadamardDouble, IsTheKroneckerProductOfBaseAndSylvester) {
  for (const int d : {8, 24, 40, 56, 144, 176}) {
    const HadamardPlan plan = plan_of(d);
    std::vector<double> scratch(static_cast<std::size_t>(plan.base));
    for (int column = 0; column < d; ++column) {
      std::vector<double> x(static_cast<std::size_t>(d), 0.0), y(x);
      x[static_cast<std::size_t>(column)] = y[static_cast<std::size_t>(column)] = 1.0;
      core::hadamard_double(x.data(), plan.base, plan.power, plan.base_matrix.data(), scratch.data(), false);
      core::hadamard_double(y.data(), plan.base, plan.power, plan.base_matrix.data(), scratch.data(), true);
      for (int row = 0; row < d; ++row) {
        const int i = row / plan.power, j = column / plan.power;
        const auto both = static_cast<unsigned>((row % plan.power) & (column % plan.power));
        const double sylvester = std::popcount(both) % 2 == 0 ? 1.0 : -1.0;
        const auto entry = [&](int r, int c) {
          return plan.base == 1
                     ? 1.0
                     : static_cast<double>(plan.base_matrix[static_cast<std::size_t>(r * plan.base + c)]);
        };
        ASSERT_EQ(x[static_cast<std::size_t>(row)], entry(i, j) * sylvester)
            << d << ": " << row << ", " << column;
        ASSERT_EQ(y[static_cast<std::size_t>(row)], entry(j, i) * sylvester)
            << d << ": " << row << ", " << column;
      }
    }
  }
}

// The order of the fp32 operations is part of the format: one vector per kind of base, all bits.
std::uint64_t fingerprint(int head_dim, bool transposed) {
  const HadamardPlan plan = plan_of(head_dim);
  core::SplitMix64 bits(5);
  std::vector<float> x, scratch(static_cast<std::size_t>(plan.base));
  for (int i = 0; i < head_dim; ++i) x.push_back(static_cast<float>(bits.next_uniform() - 0.5));
  (transposed ? core::hadamard_transposed : core::hadamard_forward)(x.data(), plan.base, plan.power,
                                                                    plan.base_matrix.data(), scratch.data());
  std::uint64_t hash = 14695981039346656037u;  // FNV-1a over the floats' words
  for (const float f : x) hash = (hash ^ std::bit_cast<std::uint32_t>(f)) * 1099511628211u;
  return hash;
}

TEST(HadamardForward, GivesTheSameBitsOnEveryMachine) {
  EXPECT_EQ(fingerprint(128, false), 13764761989133362161u);
  EXPECT_EQ(fingerprint(80, false), 3515809809138910542u);
  EXPECT_EQ(fingerprint(80, true), 88306327142268410u);
  EXPECT_EQ(fingerprint(112, true), 4154137105900994859u);
  EXPECT_EQ(fingerprint(144, false), 9702637746401900675u);
}

}  // namespace
}  // namespace turboquant
