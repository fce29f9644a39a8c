// SPDX-License-Identifier: Apache-2.0
#pragma once

// The fast transform x <- H x and its inverse's half x <- H^T x, unscaled, in place, for a HadamardPlan's
// base, power and base_matrix. This file defines the fp32 arithmetic (codes of a page are made with every sum
// rounded to fp16 as well, kernels/encode_rules.h):
//
//   1. in each block of `power` coordinates, butterflies (u, v) -> (u + v, u - v) on the pairs (i, i + h),
//      stage h = 1, then 2, 4, ... power / 2;
//   2. across the blocks, where base > 1: out_j = sum over i = 0, 1, ... base - 1, in this order, of
//      base_matrix[j][i] * x_i (H^T: base_matrix[i][j]); each product rounded, then added, never fused.
//
// The caller multiplies by fp32(1 / sqrt(double(base * power))). Files built for several instruction sets
// include this one, so it has only `static` functions on raw pointers and calls nothing (docs/adr/0002).
namespace turboquant::core {

static inline void hadamard_butterflies(float* x, int base, int power) {
  const int head_dim = base * power;
  int done = 1;
  if (power >= 4) {  // stages 1 and 2 in one pass: their pairs are too close to fill a vector
    for (float* __restrict__ four = x; four < x + head_dim; four += 4) {
      const float a = four[0] + four[1], b = four[0] - four[1], c = four[2] + four[3], d = four[2] - four[3];
      four[0] = a + c;
      four[1] = b + d;
      four[2] = a - c;
      four[3] = b - d;
    }
    done = 4;
  }
  for (int h = done; h < power; h *= 2) {
    for (int block = 0; block < head_dim; block += 2 * h) {
      float* __restrict__ low = x + block;
      float* __restrict__ high = x + block + h;
      for (int i = 0; i < h; ++i) {
        const float u = low[i], v = high[i];
        low[i] = u + v;
        high[i] = u - v;
      }
    }
  }
}

// Entry (j, i) of the applied matrix is matrix[j * row + i * column]: (base, 1) for H, (1, base) for H^T.
static inline void hadamard_base(float* __restrict__ x, int base, int power, const float* __restrict__ matrix,
                                 int row, int column, float* __restrict__ scratch /* [base] */) {
  for (int offset = 0; offset < power; ++offset) {
    for (int i = 0; i < base; ++i) scratch[i] = x[i * power + offset];
    for (int j = 0; j < base; ++j) {
      float sum = matrix[j * row] * scratch[0];
      for (int i = 1; i < base; ++i) {
        const float term = matrix[j * row + i * column] * scratch[i];
        sum = sum + term;
      }
      x[j * power + offset] = sum;
    }
  }
}

static inline void hadamard_forward(float* x /* [base * power] */, int base, int power,
                                    const float* base_matrix /* [base, base] */,
                                    float* scratch /* [base] */) {
  hadamard_butterflies(x, base, power);
  if (base > 1) hadamard_base(x, base, power, base_matrix, base, 1, scratch);
}

static inline void hadamard_transposed(float* x /* [base * power] */, int base, int power,
                                       const float* base_matrix /* [base, base] */,
                                       float* scratch /* [base] */) {
  hadamard_butterflies(x, base, power);
  if (base > 1) hadamard_base(x, base, power, base_matrix, 1, base, scratch);
}

// The same map in double, for references; the order of operations is not part of its contract.
static inline void hadamard_double(double* x /* [base * power] */, int base, int power,
                                   const float* base_matrix /* [base, base] */, double* scratch /* [base] */,
                                   bool transposed) {
  const int head_dim = base * power;
  for (int h = 1; h < power; h *= 2) {
    for (int i = 0; i < head_dim; ++i) {
      if ((i & h) != 0) continue;
      const double u = x[i], v = x[i + h];
      x[i] = u + v;
      x[i + h] = u - v;
    }
  }
  for (int offset = 0; base > 1 && offset < power; ++offset) {
    for (int i = 0; i < base; ++i) scratch[i] = x[i * power + offset];
    for (int j = 0; j < base; ++j) {
      double sum = 0.0;
      for (int i = 0; i < base; ++i) {
        const int entry = transposed ? i * base + j : j * base + i;
        sum += static_cast<double>(base_matrix[entry]) * scratch[i];
      }
      x[j * power + offset] = sum;
    }
  }
}

}  // namespace turboquant::core
