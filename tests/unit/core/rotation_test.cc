// SPDX-License-Identifier: Apache-2.0
#include "turboquant/rotation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/random.h"

namespace turboquant {
namespace {

std::vector<float> gaussian_vectors(std::size_t count, std::uint64_t seed) {
  core::Gaussian gaussian(seed);
  std::vector<float> x(count);
  for (float& v : x) v = static_cast<float>(gaussian.next());
  return x;
}

double norm(const std::vector<float>& x) {
  double sum = 0.0;
  for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum);
}

double distance(const std::vector<float>& x, const std::vector<float>& y) {
  std::vector<float> difference(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) difference[i] = x[i] - y[i];
  return norm(difference);
}

// Relative rounding error of one rotation in the 2-norm, u = 2^-24: log2(power) u of the butterflies, m
// sqrt(m) u of the base, sqrt(m) u of its rounded entries, 2 u of the scale (hadamard_test.cc derives the
// first two).
double relative_bound(int head_dim) {
  const HadamardPlan plan = hadamard_plan(head_dim).value();
  const double m = plan.base == 1 ? 0.0 : plan.base;
  return 1.01 * 0x1p-24 * (std::log2(plan.power) + m * std::sqrt(m) + std::sqrt(m) + 2.0);
}

TEST(RandomSigns, AreTheTopBitsOfSplitMix64) {
  // SplitMix64's published first outputs for seed 1234567: 6457827717110365317, 3203168211198807973,
  // 9817491932198370423, 4593380528125082431, 16408922859458223821.
  core::SplitMix64 bits(1234567);
  EXPECT_EQ(bits.next(), 6457827717110365317u);
  EXPECT_EQ(bits.next(), 3203168211198807973u);
  EXPECT_EQ(bits.next(), 9817491932198370423u);
  EXPECT_EQ(random_signs(5, 1234567), (std::vector<float>{1, 1, -1, 1, -1}));
  EXPECT_EQ(random_signs(8, 0), (std::vector<float>{-1, 1, 1, -1, 1, 1, 1, -1}));
  EXPECT_TRUE(random_signs(0, 1).empty());
}

TEST(HadamardRotation, RoundTripsAndKeepsNormsForEverySupportedHeadDim) {
  for (int d = 1; d <= kMaxRotationDim; ++d) {
    const Result<Rotation> rotation = Rotation::hadamard(d, 3);
    if (!rotation.ok()) continue;
    EXPECT_EQ(rotation.value().head_dim(), d);
    const std::vector<float> x = gaussian_vectors(static_cast<std::size_t>(d), static_cast<std::uint64_t>(d));
    std::vector<float> y(x.size()), back(x.size());
    rotation.value().apply(x.data(), y.data());
    rotation.value().apply_inverse(y.data(), back.data());
    const double bound = relative_bound(d) * norm(x);
    EXPECT_NEAR(norm(y), norm(x), bound) << "head_dim " << d;
    EXPECT_LE(distance(x, back), 2.0 * bound) << "head_dim " << d;
  }
}

TEST(HadamardRotation, SpreadsOneHotVectorsFlat) {
  for (const int d : {64, 80, 96, 112, 128, 144, 192, 256, 496}) {
    const Rotation rotation = Rotation::hadamard(d, 9).value();
    const float flat = 1.0f / std::sqrt(static_cast<float>(d));
    const bool signs_only = hadamard_plan(d).value().base % 2 == 0 || hadamard_plan(d).value().base == 1;
    for (int hot = 0; hot < d; ++hot) {
      std::vector<float> x(static_cast<std::size_t>(d), 0.0f);
      x[static_cast<std::size_t>(hot)] = 1.0f;
      rotation.apply(x.data(), x.data());
      for (const float y : x) {
        if (signs_only) {
          ASSERT_FLOAT_EQ(std::fabs(y), flat) << "head_dim " << d;
        } else {
          ASSERT_LE(std::fabs(y), std::sqrt(2.0f) * flat * 1.000001f) << "head_dim " << d;
        }
      }
    }
  }
}

TEST(HadamardRotation, WorksInPlaceAndOnBatchesWithTheSameBits) {
  const Rotation rotation = Rotation::hadamard(96, 21).value();
  const std::vector<float> x = gaussian_vectors(96 * 5, 4);
  std::vector<float> batch(x.size()), one(x), back(x.size());
  ASSERT_TRUE(rotation.apply(x, batch).ok());
  for (std::size_t row = 0; row < x.size(); row += 96) rotation.apply(one.data() + row, one.data() + row);
  EXPECT_EQ(one, batch);
  ASSERT_TRUE(rotation.apply_inverse(batch, back).ok());
  for (std::size_t row = 0; row < x.size(); row += 96)
    rotation.apply_inverse(one.data() + row, one.data() + row);
  EXPECT_EQ(one, back);
}

TEST(HadamardRotation, KeepsNanInsideItsVector) {
  const Rotation rotation = Rotation::hadamard(64, 2).value();
  std::vector<float> x = gaussian_vectors(64 * 3, 8), y(x.size()), clean(x.size());
  ASSERT_TRUE(rotation.apply(x, clean).ok());
  x[64 + 7] = std::numeric_limits<float>::quiet_NaN();
  ASSERT_TRUE(rotation.apply(x, y).ok());
  for (std::size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(y[i], clean[i]);
    EXPECT_TRUE(std::isnan(y[64 + i]));
    EXPECT_EQ(y[128 + i], clean[128 + i]);
  }
}

TEST(HaarRotation, IsOrthogonalAndRoundTrips) {
  for (const int d : {1, 2, 3, 5, 64, 100, 128, 257}) {
    const Rotation rotation = Rotation::haar(d, 17).value();
    const auto n = static_cast<std::size_t>(d);
    std::vector<std::vector<float>> columns(n, std::vector<float>(n, 0.0f));
    for (std::size_t i = 0; i < n; ++i) {
      std::vector<float> back(n);
      columns[i][i] = 1.0f;
      rotation.apply(columns[i].data(), columns[i].data());
      rotation.apply_inverse(columns[i].data(), back.data());
      back[i] -= 1.0f;
      ASSERT_LE(norm(back), 3 * 0x1p-24) << d;  // rounded once each way; the sums are in double
    }
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t j = 0; j <= i; ++j) {
        double dot = 0.0;
        for (std::size_t k = 0; k < n; ++k)
          dot += static_cast<double>(columns[i][k]) * static_cast<double>(columns[j][k]);
        ASSERT_NEAR(dot, i == j ? 1.0 : 0.0, 3 * 0x1p-24) << d;
      }
    }
  }
}

// Without QR's sign fix the diagonal would lean to one side: with it every entry has mean 0 and mean square
// 1/d. Over n matrices a mean of entries has deviation 1/sqrt(d n); a mean square sqrt(2 (d-1)/(d^2 (d+2)
// n)). Five of each.
TEST(HaarRotation, HasEntriesOfMeanZeroAndMeanSquareOneOverDim) {
  constexpr int kDim = 4, kMatrices = 20000;
  double mean[kDim][kDim] = {}, square[kDim][kDim] = {};
  for (int seed = 0; seed < kMatrices; ++seed) {
    const Rotation rotation = Rotation::haar(kDim, static_cast<std::uint64_t>(seed) * 7919u).value();
    for (int i = 0; i < kDim; ++i) {
      float x[kDim] = {};
      x[i] = 1.0f;
      rotation.apply(x, x);
      for (int j = 0; j < kDim; ++j) {
        mean[i][j] += static_cast<double>(x[j]) / kMatrices;
        square[i][j] += static_cast<double>(x[j]) * static_cast<double>(x[j]) / kMatrices;
      }
    }
  }
  const double d = kDim, n = kMatrices;
  for (int i = 0; i < kDim; ++i) {
    for (int j = 0; j < kDim; ++j) {
      EXPECT_NEAR(mean[i][j], 0.0, 5.0 / std::sqrt(d * n)) << i << ", " << j;
      EXPECT_NEAR(square[i][j], 1.0 / d, 5.0 * std::sqrt(2.0 * (d - 1.0) / (d * d * (d + 2.0) * n)))
          << i << ", " << j;
    }
  }
}

// P(coordinate <= x) of a uniform unit vector of odd dimension d: the density (1 - t^2)^((d-3)/2) is a
// polynomial.
double law(int d, double x) {
  double integral = 0.0, whole = 0.0, term = 1.0;
  const int n = (d - 3) / 2;
  for (int k = 0; k <= n; ++k) {
    integral += term * (std::pow(x, 2 * k + 1) + 1.0) / (2 * k + 1);
    whole += term * 2.0 / (2 * k + 1);
    term *= -static_cast<double>(n - k) / (k + 1);
  }
  return integral / whole;
}

// Kolmogorov-Smirnov: n independent coordinates (one of each rotation of one fixed vector, a new seed each
// time) stay within 1.95 / sqrt(n) of the law except with probability 0.001 (2 exp(-2 * 1.95^2)); the seeds
// are fixed.
TEST(HaarRotation, SpreadsAFixedVectorByTheCoordinateLaw) {
  constexpr int kDim = 9;
  std::vector<float> coordinates;
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    const Rotation rotation = Rotation::haar(kDim, seed).value();
    float x[kDim] = {0.6f, 0.8f};
    rotation.apply(x, x);
    coordinates.push_back(x[seed % kDim]);
  }
  std::sort(coordinates.begin(), coordinates.end());
  const double n = static_cast<double>(coordinates.size());
  double gap = 0.0;
  for (std::size_t i = 0; i < coordinates.size(); ++i) {
    const double p = law(kDim, static_cast<double>(coordinates[i]));
    gap = std::max({gap, p - static_cast<double>(i) / n, static_cast<double>(i + 1) / n - p});
  }
  EXPECT_LE(gap, 1.95 / std::sqrt(n));
}

TEST(Rotation, RefusesShapesThatDoNotFit) {
  EXPECT_EQ(Rotation::haar(0, 1).error().message, "head_dim=0 has no Haar rotation; use 1 to 1024");
  EXPECT_EQ(Rotation::hadamard(100, 1).error().message,
            "head_dim=100 has no Hadamard rotation; use 96 or 112");
  const Rotation rotation = Rotation::hadamard(64, 1).value();
  std::vector<float> in(65), out(64);
  EXPECT_EQ(rotation.apply(in, out).error().message, "in has 65 elements, not a multiple of head_dim=64");
  in.resize(128);
  EXPECT_EQ(rotation.apply(in, out).error().message, "out has 64 elements; give it the 128 of in");
}

}  // namespace
}  // namespace turboquant
