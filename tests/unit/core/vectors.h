// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/random.h"

// Random vectors and statistics of the core tests.
namespace turboquant::testing_vectors {

inline double dot(std::span<const float> x, std::span<const float> y) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return sum;
}

inline double squared_distance(std::span<const float> x, std::span<const float> y) {
  double sum = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    sum += difference * difference;
  }
  return sum;
}

// [count, head_dim], each uniform on the sphere of this norm (to fp32 rounding).
inline std::vector<float> random_vectors(std::size_t count, int head_dim, std::uint64_t seed,
                                         double norm = 1.0) {
  core::Gaussian gaussian(seed);
  const auto d = static_cast<std::size_t>(head_dim);
  std::vector<float> vectors;
  std::vector<double> x(d);
  for (std::size_t n = 0; n < count; ++n) {
    double squared = 0.0;
    for (double& v : x) {
      v = gaussian.next();
      squared += v * v;
    }
    for (const double v : x) vectors.push_back(static_cast<float>(v * norm / std::sqrt(squared)));
  }
  return vectors;
}

inline std::span<const float> row(const std::vector<float>& vectors, std::size_t n, int head_dim) {
  const auto d = static_cast<std::size_t>(head_dim);
  return std::span(vectors).subspan(n * d, d);
}

// Mean of independent samples and its standard error, estimated from them.
struct Mean {
  double mean, error;
};

inline Mean mean_of(const std::vector<double>& samples) {
  const auto n = static_cast<double>(samples.size());
  double sum = 0.0, squares = 0.0;
  for (const double s : samples) sum += s / n;
  for (const double s : samples) squares += (s - sum) * (s - sum);
  return {sum, std::sqrt(squares / (n - 1.0) / n)};
}

}  // namespace turboquant::testing_vectors
