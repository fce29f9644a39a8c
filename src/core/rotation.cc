// SPDX-License-Identifier: Apache-2.0
#include "turboquant/rotation.h"

#include <cmath>
#include <cstddef>
#include <string>

#include "hadamard.h"
#include "random.h"

namespace turboquant {
namespace {

// A Haar matrix as the product of the Householder reflections that the QR decomposition of a Gaussian
// matrix would make (Stewart 1980), smallest first: with x Gaussian of length n and Q' Haar of n - 1,
//   Q = s R diag(1, Q'),  R = I - 2 v v^T / (v.v),  v = x - s |x| e_1,  s = -sign(x_1),
// whose first column is x / |x|. The factor s is QR's sign fix; without it Q is not Haar.
std::vector<double> haar_matrix(int head_dim, std::uint64_t seed) {
  const auto d = static_cast<std::size_t>(head_dim);
  core::Gaussian gaussian(seed);
  std::vector<double> q(d * d), v(d), projection(d);
  q[d * d - 1] = gaussian.next() < 0.0 ? -1.0 : 1.0;
  for (std::size_t first = d - 1; first-- > 0;) {
    double squared = 0.0;
    for (std::size_t i = first; i < d; ++i) {
      v[i] = gaussian.next();
      squared += v[i] * v[i];
    }
    const double sign = v[first] < 0.0 ? 1.0 : -1.0;
    const double norm = std::sqrt(squared);
    const double factor = 1.0 / (squared + norm * std::fabs(v[first]));  // 2 / (v.v)
    v[first] -= sign * norm;
    q[first * d + first] = 1.0;
    for (std::size_t j = first; j < d; ++j) projection[j] = 0.0;
    for (std::size_t i = first; i < d; ++i) {
      for (std::size_t j = first; j < d; ++j) projection[j] += v[i] * q[i * d + j];
    }
    for (std::size_t i = first; i < d; ++i) {
      const double step = factor * v[i];
      for (std::size_t j = first; j < d; ++j) q[i * d + j] = sign * (q[i * d + j] - step * projection[j]);
    }
  }
  return q;
}

// out = M in, or M^T in.
void apply_dense(const std::vector<double>& matrix, std::size_t d, bool transposed, const float* in,
                 float* out) {
  double sums[kMaxRotationDim] = {};
  if (transposed) {
    for (std::size_t i = 0; i < d; ++i) {
      const double x = static_cast<double>(in[i]);
      for (std::size_t j = 0; j < d; ++j) sums[j] += x * matrix[i * d + j];
    }
  } else {
    for (std::size_t j = 0; j < d; ++j) {
      for (std::size_t i = 0; i < d; ++i) sums[j] += matrix[j * d + i] * static_cast<double>(in[i]);
    }
  }
  for (std::size_t j = 0; j < d; ++j) out[j] = static_cast<float>(sums[j]);
}

Status check_batch(std::size_t in, std::size_t out, int head_dim) {
  if (in % static_cast<std::size_t>(head_dim) != 0) {
    return invalid("in has " + std::to_string(in) +
                   " elements, not a multiple of head_dim=" + std::to_string(head_dim));
  }
  if (out != in) {
    return invalid("out has " + std::to_string(out) + " elements; give it the " + std::to_string(in) +
                   " of in");
  }
  return {};
}

}  // namespace

std::vector<float> random_signs(int count, std::uint64_t seed) {
  core::SplitMix64 bits(seed);
  std::vector<float> signs;
  for (int i = 0; i < count; ++i) signs.push_back((bits.next() >> 63) != 0 ? -1.0f : 1.0f);
  return signs;
}

Result<Rotation> Rotation::hadamard(int head_dim, std::uint64_t seed) {
  Result<HadamardPlan> plan = hadamard_plan(head_dim);
  if (!plan.ok()) return plan.error();
  Rotation rotation(std::move(plan.value()));
  rotation.signs_ = random_signs(head_dim, seed);
  rotation.scale_ = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  return rotation;
}

Result<Rotation> Rotation::haar(int head_dim, std::uint64_t seed) {
  if (head_dim < 1 || head_dim > kMaxRotationDim) {
    return invalid("head_dim=" + std::to_string(head_dim) + " has no Haar rotation; use 1 to " +
                   std::to_string(kMaxRotationDim));
  }
  Rotation rotation(HadamardPlan{head_dim, 1, 1, {}});
  rotation.matrix_ = haar_matrix(head_dim, seed);
  return rotation;
}

void Rotation::apply(const float* in, float* out) const {
  const auto d = static_cast<std::size_t>(plan_.head_dim);
  if (!matrix_.empty()) return apply_dense(matrix_, d, false, in, out);
  float scratch[32];
  for (std::size_t i = 0; i < d; ++i) out[i] = signs_[i] * in[i];
  core::hadamard_forward(out, plan_.base, plan_.power, plan_.base_matrix.data(), scratch);
  for (std::size_t i = 0; i < d; ++i) out[i] *= scale_;
}

void Rotation::apply_inverse(const float* in, float* out) const {
  const auto d = static_cast<std::size_t>(plan_.head_dim);
  if (!matrix_.empty()) return apply_dense(matrix_, d, true, in, out);
  float scratch[32];
  for (std::size_t i = 0; i < d; ++i) out[i] = in[i];
  core::hadamard_transposed(out, plan_.base, plan_.power, plan_.base_matrix.data(), scratch);
  for (std::size_t i = 0; i < d; ++i) out[i] = signs_[i] * (out[i] * scale_);
}

Status Rotation::apply(std::span<const float> in, std::span<float> out) const {
  if (Status status = check_batch(in.size(), out.size(), head_dim()); !status.ok()) return status;
  const auto d = static_cast<std::size_t>(head_dim());
  for (std::size_t row = 0; row < in.size(); row += d) apply(in.data() + row, out.data() + row);
  return {};
}

Status Rotation::apply_inverse(std::span<const float> in, std::span<float> out) const {
  if (Status status = check_batch(in.size(), out.size(), head_dim()); !status.ok()) return status;
  const auto d = static_cast<std::size_t>(head_dim());
  for (std::size_t row = 0; row < in.size(); row += d) apply_inverse(in.data() + row, out.data() + row);
  return {};
}

}  // namespace turboquant
