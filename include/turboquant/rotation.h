// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "turboquant/status.h"

namespace turboquant {

inline constexpr int kMaxRotationDim = 1024;

// The matrix H of a signed-Hadamard rotation y = H S x / sqrt(head_dim), S = diag(random signs):
// H = base_matrix (x) Sylvester(power), head_dim = base * power, coordinate i = i_base * power + i_power.
//
//   head_dim                          base           base_matrix
//   2^k                               1              none
//   12, 20, 28 times 2^k              12, 20, 28     Hadamard of +-1 (Paley)
//   other multiples of 16 up to 512   its odd part   Hartley: cos(2 pi i j / base) + sin(2 pi i j / base)
//
// H H^T = head_dim I in every row (exactly for +-1, to fp32 rounding for Hartley). The order of the fp32
// operations is fixed too, because codes depend on it: see src/core/hadamard.h.
struct HadamardPlan {
  int head_dim;
  int base;
  int power;                       // a power of two
  std::vector<float> base_matrix;  // [base, base], row-major; empty when base == 1
};

// The plan for head_dim in [1, kMaxRotationDim], or unsupported, naming the nearest supported head_dim.
Result<HadamardPlan> hadamard_plan(int head_dim);
// Its base alone: of a verb's checks, which each step of decoding makes.
Result<int> hadamard_base(int head_dim);

// `count` signs +-1 from SplitMix64(seed): one draw each, -1 where its top bit is set. Same on every machine.
std::vector<float> random_signs(int count, std::uint64_t seed);

// An orthogonal matrix drawn from a seed, applied to vectors of fp32.
class Rotation {
 public:
  // y = H S x / sqrt(head_dim), S = random_signs(head_dim, seed): d log d steps, bit for bit the same
  // everywhere.
  static Result<Rotation> hadamard(int head_dim, std::uint64_t seed);
  // A dense matrix uniform over all orthogonal ones (Haar), for any head_dim in [1, kMaxRotationDim]: d^2
  // steps. Sums in double; the same on every machine up to the rounding of its libm.
  static Result<Rotation> haar(int head_dim, std::uint64_t seed);

  int head_dim() const { return plan_.head_dim; }

  // One vector [head_dim] -> [head_dim]; `out` may be `in`, or must not overlap it.
  // A NaN or infinity spoils its own vector only.
  void apply(const float* in, float* out) const;
  void apply_inverse(const float* in, float* out) const;

  // A batch [n, head_dim] -> [n, head_dim], under the same rules.
  Status apply(std::span<const float> in, std::span<float> out) const;
  Status apply_inverse(std::span<const float> in, std::span<float> out) const;

 private:
  explicit Rotation(HadamardPlan plan) : plan_(std::move(plan)) {}

  HadamardPlan plan_;           // of a dense rotation only head_dim counts
  std::vector<float> signs_;    // [head_dim]; Hadamard
  std::vector<double> matrix_;  // [head_dim, head_dim], out = matrix in; dense
  float scale_ = 1.0f;          // 1 / sqrt(head_dim); Hadamard
};

}  // namespace turboquant
