// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// The Hadamard transform (core/hadamard.h) of 16 rows in the accumulator layout of mma.m16n8k16: lane
// 4 g + q holds x[j][0..1], coordinates 8 j + 2 q and + 1 of row g, and x[j][2..3], the same of row g + 8.
// Coordinate bits 1 and 2 are lanes; all others are registers.
namespace turboquant::kernels::cuda::many {

// The base of rotation.h's plan for the head dims of this kernel; the matrix itself comes with the call.
template <int D>
constexpr int kBase = D == 80               ? 20
                      : D == 96 || D == 192 ? 12
                                            : 1;

template <int D>
__device__ inline void cross_base(float (&x)[D / 8][4], const float* __restrict__ matrix, bool transposed) {
  constexpr int B = kBase<D>, kPower = D / B;
  const int across = transposed ? 1 : B, along = transposed ? B : 1;
  if constexpr (kPower >= 8) {  // coordinate i * power + offset: i is part of j
    constexpr int kStep = kPower / 8;
#pragma unroll
    for (int offset = 0; offset < kStep; ++offset)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float sum[B] = {};
#pragma unroll
        for (int i = 0; i < B; ++i)
#pragma unroll
          for (int j = 0; j < B; ++j)
            sum[j] += __ldg(matrix + j * across + i * along) * x[i * kStep + offset][c];
#pragma unroll
        for (int j = 0; j < B; ++j) x[j * kStep + offset][c] = sum[j];
      }
  } else {  // power 4: i = 2 j + the upper bit of q; the other half lies in lane ^ 2
    static_assert(kPower == 4 || B == 1);
    const int parity = static_cast<int>(threadIdx.x >> 1 & 1);
    const float* mine = matrix + parity * (across + along);
    const float* other = matrix + parity * across + (1 - parity) * along;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float sum[D / 8] = {};
#pragma unroll
      for (int i = 0; i < D / 8; ++i) {
        const float here = x[i][c], there = __shfl_xor_sync(0xffffffffu, here, 2);
#pragma unroll
        for (int j = 0; j < D / 8; ++j)
          sum[j] += __ldg(mine + 2 * j * across + 2 * i * along) * here +
                    __ldg(other + 2 * j * across + 2 * i * along) * there;
      }
#pragma unroll
      for (int j = 0; j < D / 8; ++j) x[j][c] = sum[j];
    }
  }
}

// x <- H x, or H^T x; unscaled.
template <int D>
__device__ inline void hadamard(float (&x)[D / 8][4], const float* __restrict__ matrix, bool transposed) {
  constexpr int kPower = D / kBase<D>;
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
#pragma unroll
    for (int c = 0; c < 4; c += 2) {
      const float u = x[j][c], v = x[j][c + 1];
      x[j][c] = u + v, x[j][c + 1] = u - v;
    }
#pragma unroll
  for (int bit = 1; bit < 3 && 2 << bit <= kPower; ++bit) {
    const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float other = __shfl_xor_sync(0xffffffffu, x[j][c], bit);
        x[j][c] = upper ? other - x[j][c] : other + x[j][c];
      }
  }
#pragma unroll
  for (int h = 1; 16 * h <= kPower; h *= 2)
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      if ((j & h) == 0)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float u = x[j][c], v = x[j + h][c];
          x[j][c] = u + v, x[j + h][c] = u - v;
        }
  if constexpr (kBase < D >> 1) cross_base<D>(x, matrix, transposed);
}

}  // namespace turboquant::kernels::cuda::many
