// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "turboquant/device.h"
#include "turboquant/quantizer.h"

// What MseQuantizer and ProdQuantizer share.
namespace turboquant::core {

Result<Rotation> rotation_of(const QuantizerOptions& options);

// One side of a codebook as the fp32 values that code and decode.
std::vector<float> rounded(const std::vector<double>& values);

// Writes x / |x| to `unit` and returns |x|: 0 (unit all zeros), or NaN where x has a NaN or an infinity (unit
// undefined), at most the largest fp32. In double, so that no finite x over- or underflows.
float normalise(const float* x, std::size_t head_dim, float* unit);

// A norm >= 0 as fp32, at most the largest finite one.
inline float clamped(double norm) {
  return static_cast<float>(std::min(norm, static_cast<double>(std::numeric_limits<float>::max())));
}

// The nearest centroid's code: the number of boundaries <= x.
inline std::uint8_t nearest(const std::vector<float>& boundaries, float x) {
  const auto above = std::upper_bound(boundaries.begin(), boundaries.end(), x);
  return static_cast<std::uint8_t>(above - boundaries.begin());
}

// body(i) for i in [0, count), in tasks of a few dozen vectors.
template <class F>
void for_each_vector(Executor& executor, std::size_t count, F&& body) {
  constexpr std::size_t kVectorsPerTask = 32;
  executor.for_each((count + kVectorsPerTask - 1) / kVectorsPerTask, [&](std::size_t task) {
    const std::size_t end = std::min(count, (task + 1) * kVectorsPerTask);
    for (std::size_t i = task * kVectorsPerTask; i < end; ++i) body(i);
  });
}

// Says which array of which size was given, and the size that n vectors need.
Status check_size(const char* name, std::size_t size, std::size_t wanted, std::size_t vectors);

// vectors [n, head_dim] -> n.
Result<std::size_t> count_vectors(std::size_t size, int head_dim);

}  // namespace turboquant::core
