// SPDX-License-Identifier: Apache-2.0
#include "unit_coder.h"

#include <string>

namespace turboquant::core {

Result<Rotation> rotation_of(const QuantizerOptions& options) {
  if (options.bits < 1 || options.bits > 8) {
    return invalid("bits=" + std::to_string(options.bits) + " is not possible; use 1 to 8");
  }
  if (options.head_dim < 2 || options.head_dim > kMaxRotationDim) {
    return invalid("head_dim=" + std::to_string(options.head_dim) + " is not possible; use 2 to 1024");
  }
  return options.rotation == RotationKind::kHadamard ? Rotation::hadamard(options.head_dim, options.seed)
                                                     : Rotation::haar(options.head_dim, options.seed);
}

std::vector<float> rounded(const std::vector<double>& values) {
  std::vector<float> floats;
  for (const double v : values) floats.push_back(static_cast<float>(v));
  return floats;
}

float normalise(const float* x, std::size_t head_dim, float* unit) {
  double squared = 0.0;
  for (std::size_t i = 0; i < head_dim; ++i) squared += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  if (!std::isfinite(squared)) return std::numeric_limits<float>::quiet_NaN();
  const double norm = std::sqrt(squared);
  const double inverse = norm > 0.0 ? 1.0 / norm : 0.0;
  for (std::size_t i = 0; i < head_dim; ++i)
    unit[i] = static_cast<float>(static_cast<double>(x[i]) * inverse);
  return clamped(norm);
}

Status check_size(const char* name, std::size_t size, std::size_t wanted, std::size_t vectors) {
  if (size == wanted) return {};
  return invalid(std::string(name) + " has " + std::to_string(size) + " elements; " +
                 std::to_string(vectors) + " vectors need " + std::to_string(wanted));
}

Result<std::size_t> count_vectors(std::size_t size, int head_dim) {
  const auto d = static_cast<std::size_t>(head_dim);
  if (size % d == 0) return size / d;
  return invalid("vectors has " + std::to_string(size) +
                 " elements, not a multiple of head_dim=" + std::to_string(head_dim));
}

}  // namespace turboquant::core
