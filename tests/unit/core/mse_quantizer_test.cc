// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/packing.h"
#include "turboquant/codebook.h"
#include "turboquant/quantizer.h"
#include "vectors.h"

namespace turboquant {
namespace {

using namespace testing_vectors;

MseQuantizer quantizer_of(int head_dim, int bits, RotationKind kind = RotationKind::kHadamard,
                          bool correct = false) {
  return MseQuantizer::make({head_dim, bits, kind, 77, correct}).value();
}

std::vector<float> round_trip(const MseQuantizer& quantizer, const std::vector<float>& vectors) {
  return quantizer.decode(quantizer.encode(vectors).value()).value();
}

// The exact mean, and the known standard deviation of one vector's error.
TEST(MseQuantizer, HasTheDistortionOfTheTheory) {
  struct Row {
    int head_dim, bits;
    double mse, deviation;
  };
  constexpr std::size_t kVectors = 4000;
  for (const Row r : {Row{128, 1, 0.360888593687, 0.030}, Row{128, 2, 0.116000070275, 0.015},
                      Row{128, 3, 0.0339659257939, 0.0063}, Row{128, 4, 0.0093147879538, 0.0023},
                      Row{128, 5, 0.00245146015525, 0.00079}}) {
    for (const RotationKind kind : {RotationKind::kHadamard, RotationKind::kHaar}) {
      const std::vector<float> x = random_vectors(kVectors, r.head_dim, 1);
      const std::vector<float> y = round_trip(quantizer_of(r.head_dim, r.bits, kind), x);
      const double mean = squared_distance(x, y) / kVectors;
      EXPECT_NEAR(mean, r.mse, 5.0 * r.deviation / std::sqrt(kVectors)) << r.bits << " bits";
    }
  }
}

// Every width and other dimensions, against the codebook's own mse, with the deviation taken from the sample.
TEST(MseQuantizer, HasTheCodebooksMseAtEveryWidthAndDimension) {
  for (const int d : {2, 12, 64, 80, 144, 256}) {
    for (int bits = 1; bits <= 8; ++bits) {
      constexpr std::size_t kVectors = 600;
      const std::vector<float> x = random_vectors(kVectors, d, 2);
      const std::vector<float> y = round_trip(quantizer_of(d, bits), x);
      std::vector<double> errors;
      for (std::size_t n = 0; n < kVectors; ++n)
        errors.push_back(squared_distance(row(x, n, d), row(y, n, d)));
      const Mean mean = mean_of(errors);
      EXPECT_NEAR(mean.mean, lloyd_max(d, bits).value().mse, 5.0 * mean.error)
          << d << ", " << bits << " bits";
    }
  }
}

TEST(MseQuantizer, NormCorrectedHasTheCosineOfTheTheoryAndTheNormOfTheOriginal) {
  struct Row {
    int head_dim, bits;
    double cosine;  // six digits
  };
  constexpr std::size_t kVectors = 4000;
  for (const Row r :
       {Row{128, 1, 0.799414}, Row{128, 2, 0.940576}, Row{128, 3, 0.983090}, Row{128, 4, 0.995413},
        Row{128, 5, 0.998798}, Row{64, 2, 0.941748}, Row{64, 3, 0.983620}, Row{64, 4, 0.995587}}) {
    const std::vector<float> x = random_vectors(kVectors, r.head_dim, 3, 2.5);
    const std::vector<float> y =
        round_trip(quantizer_of(r.head_dim, r.bits, RotationKind::kHadamard, true), x);
    std::vector<double> cosines, distances;
    for (std::size_t n = 0; n < kVectors; ++n) {
      const auto original = row(x, n, r.head_dim), decoded = row(y, n, r.head_dim);
      const double norm = std::sqrt(dot(decoded, decoded));
      // Rounding: the scale once, the transform 7 stages and two factors; each at most 2^-24 of the norm.
      ASSERT_NEAR(norm / std::sqrt(dot(original, original)), 1.0, 12 * 0x1p-24);
      cosines.push_back(dot(original, decoded) / (norm * 2.5));
      distances.push_back(squared_distance(original, decoded) / (2.5 * 2.5));
    }
    const Mean mean = mean_of(cosines), distance = mean_of(distances);
    EXPECT_NEAR(mean.mean, r.cosine, 5.0 * mean.error + 5e-7) << r.head_dim << ", " << r.bits << " bits";
    EXPECT_NEAR(distance.mean, 2.0 - 2.0 * r.cosine, 5.0 * distance.error + 1e-6)
        << r.head_dim << ", " << r.bits;
  }
}

// E<x, decoded> = 1 - mse: plain codes shrink inner products by a known factor.
TEST(MseQuantizer, ShrinksInnerProductsByOneMinusTheMse) {
  for (int bits = 1; bits <= 4; ++bits) {
    const std::vector<float> x = random_vectors(3000, 128, 4);
    const std::vector<float> y = round_trip(quantizer_of(128, bits), x);
    std::vector<double> products;
    for (std::size_t n = 0; n < 3000; ++n) products.push_back(dot(row(x, n, 128), row(y, n, 128)));
    const Mean mean = mean_of(products);
    EXPECT_NEAR(mean.mean, 1.0 - lloyd_max(128, bits).value().mse, 5.0 * mean.error) << bits << " bits";
  }
}

// What the bytes say, followed by hand: each code is the nearest centroid, and decode is norm R^T centroids.
TEST(MseQuantizer, StoresTheNearestCentroidOfEveryRotatedCoordinate) {
  for (const int bits : {1, 3, 4, 8}) {
    for (const RotationKind kind : {RotationKind::kHadamard, RotationKind::kHaar}) {
      constexpr int kDim = 48;
      const Rotation rotation =
          (kind == RotationKind::kHadamard ? Rotation::hadamard : Rotation::haar)(kDim, 77).value();
      const MseQuantizer quantizer = quantizer_of(kDim, bits, kind);
      const Codebook book = lloyd_max(kDim, bits).value();
      const std::vector<float> x = random_vectors(20, kDim, 5, 3.0);
      const MseCodes codes = quantizer.encode(x).value();
      const std::vector<float> decoded = quantizer.decode(codes).value();
      for (std::size_t n = 0; n < 20; ++n) {
        std::vector<float> rotated(kDim), want(kDim);
        rotation.apply(row(x, n, kDim).data(), rotated.data());
        std::vector<std::uint8_t> code(kDim);
        core::unpack(codes.codes.data() + n * quantizer.code_bytes(), kDim, bits, code.data());
        for (std::size_t i = 0; i < kDim; ++i) {
          const double y = static_cast<double>(rotated[i]) / 3.0;
          double nearest = 2.0;
          for (const double c : book.centroids) nearest = std::min(nearest, std::fabs(y - c));
          // fp32: unit vector, transform and boundary are each off by at most 20 * 2^-24.
          ASSERT_LE(std::fabs(y - book.centroids[code[i]]), nearest + 40 * 0x1p-24);
          want[i] = static_cast<float>(book.centroids[code[i]]);
        }
        rotation.apply_inverse(want.data(), want.data());
        for (std::size_t i = 0; i < kDim; ++i) ASSERT_EQ(decoded[n * kDim + i], want[i] * codes.norms[n]);
        ASSERT_FLOAT_EQ(codes.norms[n], 3.0f);
      }
    }
  }
}

TEST(MseQuantizer, PacksToExactlyBitsTimesDimBytesForEveryHeadDim) {
  for (int d = 2; d <= kMaxRotationDim; d = d < 40 ? d + 1 : d + 331) {
    for (const int bits : {1, 3, 5, 8}) {
      if (d > 300 && bits != 5) continue;  // a large dense rotation takes long to draw
      const MseQuantizer quantizer = quantizer_of(d, bits, RotationKind::kHaar);
      EXPECT_EQ(quantizer.code_bytes(), static_cast<std::size_t>((d * bits + 7) / 8));
      const std::vector<float> x = random_vectors(3, d, 6);
      const MseCodes codes = quantizer.encode(x).value();
      EXPECT_EQ(codes.codes.size(), 3 * quantizer.code_bytes());
      EXPECT_EQ(codes.norms.size(), 3u);
      EXPECT_EQ(quantizer.decode(codes).value().size(), x.size());
    }
  }
}

TEST(MseQuantizer, DecodesZeroToZeroAndConfinesNanToItsVector) {
  for (const bool correct : {false, true}) {
    const MseQuantizer quantizer = quantizer_of(64, 3, RotationKind::kHadamard, correct);
    std::vector<float> x = random_vectors(5, 64, 7);
    const std::vector<float> clean = round_trip(quantizer, x);
    std::fill(x.begin() + 64, x.begin() + 128, 0.0f);
    x[2 * 64 + 5] = std::numeric_limits<float>::quiet_NaN();
    x[3 * 64 + 9] = -std::numeric_limits<float>::infinity();
    const std::vector<float> y = round_trip(quantizer, x);
    for (std::size_t i = 0; i < 64; ++i) {
      EXPECT_EQ(y[i], clean[i]);
      EXPECT_EQ(y[64 + i], 0.0f);
      EXPECT_TRUE(std::isnan(y[128 + i]));
      EXPECT_TRUE(std::isnan(y[192 + i]));
      EXPECT_EQ(y[256 + i], clean[256 + i]);
    }
  }
}

TEST(MseQuantizer, IsRightForTheSmallestAndTheLargestNorms) {
  const MseQuantizer quantizer = quantizer_of(64, 4);
  const std::vector<float> unit = random_vectors(1, 64, 8);
  const std::vector<float> want = round_trip(quantizer, unit);
  for (const float scale : {1e-30f, 1e30f}) {
    std::vector<float> x(unit);
    for (float& v : x) v *= scale;
    const std::vector<float> y = round_trip(quantizer, x);
    for (std::size_t i = 0; i < 64; ++i) EXPECT_NEAR(y[i] / scale, want[i], 1e-5f);
  }
  std::vector<float> largest(64, std::numeric_limits<float>::max());
  EXPECT_EQ(quantizer.encode(largest).value().norms[0], std::numeric_limits<float>::max());
  std::vector<float> denormal(64, 0.0f);
  denormal[3] = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(quantizer.encode(denormal).value().norms[0], std::numeric_limits<float>::denorm_min());
}

TEST(MseQuantizer, RefusesWhatDoesNotFitAndSaysWhatWould) {
  EXPECT_EQ(MseQuantizer::make({.head_dim = 100}).error().message,
            "head_dim=100 has no Hadamard rotation; use 96 or 112");
  EXPECT_TRUE(MseQuantizer::make({.head_dim = 100, .rotation = RotationKind::kHaar}).ok());
  EXPECT_EQ(MseQuantizer::make({.bits = 9}).error().message, "bits=9 is not possible; use 1 to 8");
  EXPECT_EQ(MseQuantizer::make({.head_dim = 1}).error().message, "head_dim=1 is not possible; use 2 to 1024");
  const MseQuantizer quantizer = quantizer_of(64, 4);
  EXPECT_EQ(quantizer.encode(std::vector<float>(65)).error().message,
            "vectors has 65 elements, not a multiple of head_dim=64");
  MseCodes codes = quantizer.encode(std::vector<float>(128)).value();
  codes.codes.pop_back();
  EXPECT_EQ(quantizer.decode(codes).error().message, "codes has 63 elements; 2 vectors need 64");
}

}  // namespace
}  // namespace turboquant
