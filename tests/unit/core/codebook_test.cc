// SPDX-License-Identifier: Apache-2.0
#include "turboquant/codebook.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace turboquant {
namespace {

Codebook book_of(int head_dim, int bits) {
  return lloyd_max(head_dim, bits).value();
}

// Values computed to 20 digits by other means, here with all printed digits.
TEST(LloydMax, HasTheExactMseOfTheCoordinateLaw) {
  struct Row {
    int head_dim, bits;
    double mse, last_digit;
  };
  for (const Row row : {Row{128, 1, 0.360888593687, 1e-12},
                        {128, 2, 0.116000070275, 1e-12},
                        {128, 3, 0.0339659257939, 1e-13},
                        {128, 4, 0.0093147879538, 1e-13},
                        {128, 5, 0.00245146015525, 1e-14},
                        {64, 2, 0.114525756809, 1e-12},
                        {64, 3, 0.0333908340959, 1e-13},
                        {64, 4, 0.00913151760356, 1e-14}}) {
    EXPECT_NEAR(book_of(row.head_dim, row.bits).mse, row.mse, row.last_digit)
        << row.head_dim << ", " << row.bits;
  }
}

// One bit codes the sign: the centroid is E|x| = Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)), and the mse 1 - d
// E|x|^2.
TEST(LloydMax, AtOneBitIsTheMeanOfTheAbsoluteValue) {
  for (const int d : {2, 3, 4, 5, 8, 17, 64, 128, 511, 1024}) {
    const double mean = std::exp(std::lgamma(0.5 * d) - std::lgamma(0.5 * (d + 1))) / std::sqrt(M_PI);
    const Codebook book = book_of(d, 1);
    // lgamma at d/2 is up to 2700, so its own error is up to 2700 * 2^-52 = 6e-13.
    EXPECT_NEAR(book.centroids[1] / mean, 1.0, 2e-12) << d;
    EXPECT_NEAR(book.mse, 1.0 - d * mean * mean, 4e-12) << d;
    EXPECT_EQ(book.boundaries, std::vector<double>{0.0});
  }
  EXPECT_NEAR(book_of(2, 1).centroids[1], 2.0 / M_PI, 1e-15);
  EXPECT_NEAR(book_of(3, 1).centroids[1], 0.5, 1e-15);
}

// At d = 3 the law is uniform (Archimedes): equal cells, mse 3 (width^2 / 12) = 4^-bits, the lower bound
// itself.
TEST(LloydMax, IsTheUniformQuantiserInThreeDimensions) {
  for (int bits = 1; bits <= 8; ++bits) {
    const Codebook book = book_of(3, bits);
    const double width = 2.0 / static_cast<double>(book.centroids.size());
    for (std::size_t i = 0; i < book.centroids.size(); ++i) {
      EXPECT_NEAR(book.centroids[i], -1.0 + width * (static_cast<double>(i) + 0.5), 1e-13)
          << bits << ", " << i;
    }
    EXPECT_NEAR(book.mse * std::pow(4.0, bits), 1.0, 1e-10);
  }
}

// The law tends to N(0, 1/d) with corrections in powers of 1/d, so twice the dimension is half the distance
// to the Gaussian's centroids (Max 1960: 0.4528 and 1.510 at two bits); the next order is below 10/d of that.
TEST(LloydMax, TendsToTheGaussianCodebookLikeOneOverDim) {
  constexpr double kInner = 0.452780, kOuter = 1.510418;  // known to 1e-6
  for (const auto& [index, gaussian] : {std::pair<std::size_t, double>{2, kInner}, {3, kOuter}}) {
    const double at_256 = gaussian - std::sqrt(256.0) * book_of(256, 2).centroids[index];
    const double at_512 = gaussian - std::sqrt(512.0) * book_of(512, 2).centroids[index];
    EXPECT_NEAR(at_256, 2.0 * at_512, 10.0 / 256.0 * std::fabs(at_256) + 3e-6) << gaussian;
  }
}

// Conditional means and the mse by another quadrature than the library's: Simpson's rule in the angle, up to
// 12 standard deviations (exp(-72) of the mass lies beyond). An interval is at most 12 / 16000 of a
// deviation, and the density's fourth derivative at most 7^4 of itself where it counts: the error is below
// (12 / 16000)^4 7^4 / 180 = 5e-12.
struct CellIntegrals {
  double mass = 0.0, first = 0.0, second = 0.0;
};

CellIntegrals integrate(int head_dim, double low, double high, double centre) {
  const int intervals = high < 1.0 ? 2000 : 16000;
  const double from = std::asin(low), width = std::min(std::asin(high) - from, 12.0 / std::sqrt(head_dim));
  CellIntegrals sum;
  for (int i = 0; i <= intervals; ++i) {
    const double t = from + width * i / intervals;
    const double simpson = i == 0 || i == intervals ? 1.0 : i % 2 == 1 ? 4.0 : 2.0;
    const double mass = simpson * width / (3.0 * intervals) * std::pow(std::cos(t), head_dim - 2);
    sum.mass += mass;
    sum.first += mass * (std::sin(t) - centre);
    sum.second += mass * std::pow(std::sin(t) - centre, 2);
  }
  return sum;
}

TEST(LloydMax, MeetsLloydsConditionsAtEveryWidth) {
  for (const int d : {2, 3, 4, 7, 64, 96, 128, 500, 1024}) {
    for (int bits = 1; bits <= 8; ++bits) {
      const Codebook book = book_of(d, bits);
      const std::size_t levels = book.centroids.size();
      ASSERT_EQ(levels, std::size_t{1} << bits);
      ASSERT_EQ(book.boundaries.size(), levels - 1);
      for (std::size_t i = 0; i + 1 < levels; ++i) {
        ASSERT_EQ(book.boundaries[i], 0.5 * (book.centroids[i] + book.centroids[i + 1]));
      }
      double mass = 0.0, squared = 0.0;
      for (std::size_t i = levels / 2; i < levels; ++i) {
        const double high = i + 1 < levels ? book.boundaries[i] : 1.0;
        const CellIntegrals cell = integrate(d, book.boundaries[i - 1], high, book.centroids[i]);
        ASSERT_NEAR(cell.first / cell.mass / book.centroids[i], 0.0, 1e-11)
            << d << ", " << bits << ", cell " << i;
        mass += cell.mass;
        squared += cell.second;
      }
      ASSERT_NEAR(d * squared / mass / book.mse, 1.0, 1e-10) << d << ", " << bits;
    }
  }
}

TEST(LloydMax, IsSymmetricAndStrictlyAscending) {
  for (const int d : {2, 5, 80, 128, 1024}) {
    for (int bits = 1; bits <= 8; ++bits) {
      const Codebook book = book_of(d, bits);
      const std::size_t levels = book.centroids.size();
      for (std::size_t i = 0; i < levels; ++i) {
        ASSERT_EQ(book.centroids[i], -book.centroids[levels - 1 - i]);
        if (i > 0) {
          ASSERT_LT(book.centroids[i - 1], book.centroids[i]);
        }
      }
      for (std::size_t i = 0; i + 1 < levels; ++i)
        ASSERT_EQ(book.boundaries[i], -book.boundaries[levels - 2 - i]);
      EXPECT_LT(book.centroids.back(), 1.0);
    }
  }
}

// Above the information-theoretic bound of the sphere from d = 3 on (at d = 2 a circle needs less), below the
// paper's.
TEST(LloydMax, LiesBetweenThePapersBoundsAtEveryDimension) {
  for (int d = 3; d <= 1024; d += d < 40 ? 1 : 41) {
    for (int bits = 1; bits <= 8; ++bits) {
      const double scaled = book_of(d, bits).mse * std::pow(4.0, bits);
      EXPECT_GE(scaled, 1.0 - 1e-10) << d << ", " << bits;
      EXPECT_LE(scaled, 0.5 * std::sqrt(3.0) * M_PI) << d << ", " << bits;
    }
  }
}

TEST(LloydMax, RefusesWhatItHasNoCodebookForAndSaysWhatToUse) {
  EXPECT_EQ(lloyd_max(1, 4).error().message, "head_dim=1 has no codebook; use 2 to 1024");
  EXPECT_EQ(lloyd_max(1025, 4).error().message, "head_dim=1025 has no codebook; use 2 to 1024");
  EXPECT_EQ(lloyd_max(128, 9).error().message, "bits=9 has no codebook; use 1 to 8");
  EXPECT_EQ(lloyd_max(128, 0).error().code, Code::kInvalidArgument);
}

}  // namespace
}  // namespace turboquant
