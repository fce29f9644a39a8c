// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "turboquant/codebook.h"
#include "turboquant/quantizer.h"
#include "vectors.h"

namespace turboquant {
namespace {

using namespace testing_vectors;

ProdQuantizer quantizer_of(int head_dim, int bits, std::uint64_t seed) {
  return ProdQuantizer::make({.head_dim = head_dim, .bits = bits, .seed = seed}).value();
}

double coarse_mse(int head_dim, int bits) {
  return bits == 1 ? 1.0 : lloyd_max(head_dim, bits - 1).value().mse;
}

// For unit x and a uniform y, d E[err^2] = E|x - decoded|^2 = (pi/2 - 1/d) D_{b-1}. One quantiser a vector,
// so that the samples are independent in S as well.
TEST(ProdQuantizer, HasTheErrorOfTheTheory) {
  constexpr double kTable[] = {1.5630, 0.5641, 0.1813, 0.05309};
  constexpr int kDim = 128, kSeeds = 600;
  const std::vector<float> x = random_vectors(kSeeds, kDim, 1);
  for (int bits = 1; bits <= 4; ++bits) {
    std::vector<double> errors;
    for (std::size_t n = 0; n < kSeeds; ++n) {
      const ProdQuantizer quantizer = quantizer_of(kDim, bits, n);
      const auto one = row(x, n, kDim);
      errors.push_back(squared_distance(one, quantizer.decode(quantizer.encode(one).value()).value()));
    }
    const double want = (0.5 * M_PI - 1.0 / kDim) * coarse_mse(kDim, bits);
    EXPECT_NEAR(want / kTable[bits - 1], 1.0, 1e-3);  // the table's four digits
    // |error|^2 / gamma^2 is (a - 1)^2 + pi/2 chi^2_{d-1} / d: relative deviation below sqrt(2.2 / d).
    // gamma^2's own, independent of it, is at most 0.0063 / 0.034 = 0.19 (at three coarse bits) by the known
    // deviations.
    const double deviation = want * std::sqrt(2.2 / kDim + 0.2 * 0.2);
    EXPECT_NEAR(mean_of(errors).mean, want, 5.0 * deviation / std::sqrt(kSeeds)) << bits << " bits";
  }
}

// err = gamma ((a - 1) <y, r> + sqrt(pi/2 / d) N <y, r_perp>), so its deviation for unit x and y is below
// gamma sqrt(pi/2 / d), and its mean over S is zero for every pair.
TEST(ProdQuantizer, EstimatesInnerProductsWithoutBias) {
  constexpr int kDim = 64, kSeeds = 1000;
  const std::vector<float> pair = random_vectors(2, kDim, 9);
  std::vector<float> y(kDim);  // correlated with x, where a biased estimate would show: <x, y> near 0.95
  for (std::size_t i = 0; i < kDim; ++i) y[i] = 0.95f * pair[i] + 0.312f * pair[kDim + i];
  const auto x = row(pair, 0, kDim);
  for (const int bits : {1, 2, 3, 4}) {
    std::vector<double> estimates;
    for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
      const ProdQuantizer quantizer = quantizer_of(kDim, bits, seed);
      estimates.push_back(
          static_cast<double>(quantizer.inner_product(y, quantizer.encode(x).value()).value()[0]));
    }
    // Over rotations the mean of gamma^2 is the coarse codebook's mse.
    const double deviation = std::sqrt(coarse_mse(kDim, bits) * 0.5 * M_PI / kDim * dot(y, y));
    EXPECT_NEAR(mean_of(estimates).mean, dot(x, y), 5.0 * deviation / std::sqrt(kSeeds)) << bits << " bits";
  }
}

// At one bit a unit x is its own residual, and the estimate of <x, x> is the mean of |N(0, 1)| over d rows of
// S, times sqrt(pi/2): 1 with deviation sqrt((pi/2 - 1) / d). A wrong factor shows here first.
TEST(ProdQuantizer, AtOneBitEstimatesAUnitVectorsOwnProductAsOne) {
  constexpr int kDim = 16, kSeeds = 20000;
  const std::vector<float> x = random_vectors(1, kDim, 14);
  std::vector<double> estimates;
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    const ProdQuantizer quantizer = quantizer_of(kDim, 1, seed);
    estimates.push_back(
        static_cast<double>(quantizer.inner_product(x, quantizer.encode(x).value()).value()[0]));
  }
  EXPECT_NEAR(mean_of(estimates).mean, 1.0, 5.0 * std::sqrt((0.5 * M_PI - 1.0) / kDim / kSeeds));
}

// inner_product is <query, decode> without the decoding: equal to fp32 rounding of d terms.
TEST(ProdQuantizer, EstimatesWhatDecodeSays) {
  for (const int d : {2, 12, 100, 128, 1024}) {
    for (const int bits : {1, 2, 5, 8}) {
      if (d > 300 && bits != 5) continue;  // a large dense rotation takes long to draw
      const ProdQuantizer quantizer =
          ProdQuantizer::make({.head_dim = d, .bits = bits, .rotation = RotationKind::kHaar, .seed = 5})
              .value();
      const std::vector<float> x = random_vectors(4, d, 10, 7.0), query = random_vectors(1, d, 11, 2.0);
      const ProdCodes codes = quantizer.encode(x).value();
      EXPECT_EQ(codes.codes.size(), 4 * static_cast<std::size_t>((d * (bits - 1) + 7) / 8));
      EXPECT_EQ(codes.signs.size(), 4 * static_cast<std::size_t>((d + 7) / 8));
      const std::vector<float> decoded = quantizer.decode(codes).value();
      const std::vector<float> estimates = quantizer.inner_product(query, codes).value();
      for (std::size_t n = 0; n < 4; ++n) {
        const auto one = row(decoded, n, d);
        // Each side rounds its projected and rotated floats a few times; S has norm below 3 sqrt(d), z has
        // sqrt(d), so the projection's share is below 3 sqrt(pi/2) gamma |query| of x's size: 16 roundings of
        // it.
        const double reach = 2.0 * (std::sqrt(dot(one, one)) +
                                    7.0 * (1.0 + 4.0 * static_cast<double>(codes.residual_norms[n])));
        EXPECT_NEAR(static_cast<double>(estimates[n]), dot(query, one), 16 * 0x1p-24 * reach)
            << d << ", " << bits;
      }
    }
  }
}

TEST(ProdQuantizer, KeepsTheNormOfTheResidual) {
  const ProdQuantizer quantizer = quantizer_of(128, 3, 2);
  const MseQuantizer coarse = MseQuantizer::make({.head_dim = 128, .bits = 2, .seed = 2}).value();
  const std::vector<float> x = random_vectors(10, 128, 12);
  const ProdCodes codes = quantizer.encode(x).value();
  const MseCodes coarse_codes = coarse.encode(x).value();
  EXPECT_EQ(codes.codes, coarse_codes.codes);  // the same rotation and codebook
  const std::vector<float> y = coarse.decode(coarse_codes).value();
  for (std::size_t n = 0; n < 10; ++n) {
    const double residual = std::sqrt(squared_distance(row(x, n, 128), row(y, n, 128)));
    EXPECT_NEAR(static_cast<double>(codes.residual_norms[n]), residual,
                24 * 0x1p-24);  // two transforms of 9 roundings
  }
}

TEST(ProdQuantizer, DecodesZeroToZeroAndConfinesNanToItsVector) {
  const ProdQuantizer quantizer = quantizer_of(64, 2, 3);
  std::vector<float> x = random_vectors(4, 64, 13);
  const std::vector<float> clean = quantizer.decode(quantizer.encode(x).value()).value();
  std::fill(x.begin() + 64, x.begin() + 128, 0.0f);
  x[2 * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
  const ProdCodes codes = quantizer.encode(x).value();
  const std::vector<float> y = quantizer.decode(codes).value();
  for (std::size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(y[i], clean[i]);
    EXPECT_EQ(y[64 + i], 0.0f);
    EXPECT_TRUE(std::isnan(y[128 + i]));
    EXPECT_EQ(y[192 + i], clean[192 + i]);
  }
  const std::vector<float> estimates = quantizer.inner_product(row(x, 0, 64), codes).value();
  EXPECT_EQ(estimates[1], 0.0f);
  EXPECT_TRUE(std::isnan(estimates[2]));
  EXPECT_FALSE(std::isnan(estimates[3]));
}

TEST(ProdQuantizer, RefusesWhatDoesNotFitAndSaysWhatWould) {
  EXPECT_EQ(ProdQuantizer::make({.bits = 0}).error().message, "bits=0 is not possible; use 1 to 8");
  EXPECT_EQ(ProdQuantizer::make({.norm_correct = true}).error().message,
            "norm_correct=true would bias the estimates; use false");
  const ProdQuantizer quantizer = quantizer_of(64, 2, 0);
  ProdCodes codes = quantizer.encode(std::vector<float>(64)).value();
  EXPECT_EQ(quantizer.inner_product(std::vector<float>(63), codes).error().message,
            "query has 63 elements; give it head_dim=64");
  codes.signs.clear();
  EXPECT_EQ(quantizer.decode(codes).error().message, "signs has 0 elements; 1 vectors need 8");
  codes.codes.clear();
  EXPECT_EQ(quantizer.decode(codes).error().message, "codes has 0 elements; 1 vectors need 8");
}

}  // namespace
}  // namespace turboquant
