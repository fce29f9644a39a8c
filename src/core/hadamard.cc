// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <numbers>
#include <string>
#include <vector>

#include "turboquant/rotation.h"

namespace turboquant {
namespace {

constexpr int kMaxHartleyDim = 512;

std::size_t at(int size, int row, int column) {
  return static_cast<std::size_t>(row) * static_cast<std::size_t>(size) + static_cast<std::size_t>(column);
}

// Legendre symbol of (i - j) modulo the odd prime q: 0, or +1 where it is a square, or -1.
int legendre(int i, int j, int q) {
  const int difference = ((i - j) % q + q) % q;
  if (difference == 0) return 0;
  for (int r = 1; r < q; ++r) {
    if (r * r % q == difference) return 1;
  }
  return -1;
}

// Entry of Paley's bordered matrix of order q + 1: the symbols of q, a first row of ones and a first
// column of `corner` under a zero.
int bordered(int i, int j, int q, int corner) {
  if (i == 0) return j == 0 ? 0 : 1;
  return j == 0 ? corner : legendre(i - 1, j - 1, q);
}

// Paley I: H = I + bordered(-1), of order q + 1, for a prime q = 3 (mod 4).
std::vector<float> paley_one(int q) {
  std::vector<float> matrix;
  for (int i = 0; i <= q; ++i) {
    for (int j = 0; j <= q; ++j)
      matrix.push_back(static_cast<float>((i == j ? 1 : 0) + bordered(i, j, q, -1)));
  }
  return matrix;
}

// Paley II: H = bordered(1) (x) [1 1; 1 -1] + I (x) [1 -1; -1 -1], of order 2 (q + 1), for a prime q = 1 (mod
// 4).
std::vector<float> paley_two(int q) {
  constexpr int kOff[2][2] = {{1, 1}, {1, -1}};
  constexpr int kDiagonal[2][2] = {{1, -1}, {-1, -1}};
  std::vector<float> matrix;
  for (int i = 0; i < 2 * (q + 1); ++i) {
    for (int j = 0; j < 2 * (q + 1); ++j) {
      const int entry =
          i / 2 == j / 2 ? kDiagonal[i % 2][j % 2] : bordered(i / 2, j / 2, q, 1) * kOff[i % 2][j % 2];
      matrix.push_back(static_cast<float>(entry));
    }
  }
  return matrix;
}

// cos + sin of multiples of 2 pi / m, rounded once to fp32. No value lies within a libm's error of a
// rounding boundary (tested), so every machine gets the same floats.
std::vector<float> hartley(int m) {
  std::vector<float> matrix(at(m, m, 0));
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < m; ++j) {
      const double angle = 2.0 * std::numbers::pi * (i * j % m) / m;
      matrix[at(m, i, j)] = static_cast<float>(std::cos(angle) + std::sin(angle));
    }
  }
  return matrix;
}

// The base of the table in rotation.h, or 0 where head_dim has none.
int base_of(int head_dim) {
  if (head_dim < 1 || head_dim > kMaxRotationDim) return 0;
  int odd = head_dim;
  while (odd % 2 == 0) odd /= 2;
  if (odd == 1) return 1;
  if (odd <= 7) return head_dim % 4 == 0 ? 4 * odd : 0;
  return head_dim % 16 == 0 && head_dim <= kMaxHartleyDim ? odd : 0;
}

Error no_plan(int head_dim) {
  const std::string value = "head_dim=" + std::to_string(head_dim);
  if (head_dim < 1) return invalid(value + " is not positive; use 1 to " + std::to_string(kMaxRotationDim));
  if (head_dim > kMaxRotationDim)
    return unsupported(value + " has no Hadamard rotation; use at most " + std::to_string(kMaxRotationDim));
  int below = head_dim, above = head_dim;
  while (base_of(below) == 0) --below;
  while (base_of(above) == 0) ++above;
  return unsupported(value + " has no Hadamard rotation; use " + std::to_string(below) + " or " +
                     std::to_string(above));
}

}  // namespace

Result<int> hadamard_base(int head_dim) {
  const int base = base_of(head_dim);
  if (base == 0) return no_plan(head_dim);
  return base;
}

Result<HadamardPlan> hadamard_plan(int head_dim) {
  const int base = base_of(head_dim);
  if (base == 0) return no_plan(head_dim);
  HadamardPlan plan{head_dim, base, head_dim / base, {}};
  if (base == 12) {
    plan.base_matrix = paley_one(11);
  } else if (base == 20) {
    plan.base_matrix = paley_one(19);
  } else if (base == 28) {
    plan.base_matrix = paley_two(13);
  } else if (base > 1) {
    plan.base_matrix = hartley(base);
  }
  return plan;
}

}  // namespace turboquant
