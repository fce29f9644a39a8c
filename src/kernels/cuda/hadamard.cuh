// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// core/hadamard.h by one warp on vectors in shared memory: the same fp32 operations in the same order for
// every coordinate, so the same bits. Products that are added are never fused.
namespace turboquant::kernels::cuda {

// x [rows][stride] in place, rows of base * power coordinates; scratch [base * power], unused where base is
// 1. The caller multiplies by fp32(1 / sqrt(head_dim)). All lanes of the warp call it; it ends with a
// __syncwarp(), and expects x written before one.
__device__ inline void warp_hadamard(float* x, int rows, int stride, int base, int power,
                                     const float* __restrict__ base_matrix, bool transposed, float* scratch) {
  const int lane = static_cast<int>(threadIdx.x & 31), head_dim = base * power;
  for (int h = 1; h < power; h *= 2) {
    const int pairs = head_dim / 2;
    for (int index = lane; index < rows * pairs; index += 32) {
      const int row = index / pairs, pair = index - row * pairs;
      float* low = x + row * stride + (pair & ~(h - 1)) * 2 + (pair & (h - 1));
      const float u = low[0], v = low[h];
      low[0] = u + v;
      low[h] = u - v;
    }
    __syncwarp();
  }
  if (base == 1) return;
  const int across = transposed ? 1 : base, along = transposed ? base : 1;
  for (int row = 0; row < rows; ++row) {
    float* vector = x + row * stride;
    for (int e = lane; e < head_dim; e += 32) scratch[e] = vector[e];
    __syncwarp();
    for (int e = lane; e < head_dim; e += 32) {
      const int j = e / power, offset = e - j * power;
      float sum = __fmul_rn(base_matrix[j * across], scratch[offset]);
      for (int i = 1; i < base; ++i)
        sum = __fadd_rn(sum, __fmul_rn(base_matrix[j * across + i * along], scratch[i * power + offset]));
      vector[e] = sum;
    }
    __syncwarp();
  }
}

}  // namespace turboquant::kernels::cuda
