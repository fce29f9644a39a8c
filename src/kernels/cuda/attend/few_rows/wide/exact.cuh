// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/exact.cuh"
#include "kernels/cuda/attend/few_rows/wide/values.cuh"

// A piece of the fringe: keys and values are B operands as they lie.
namespace turboquant::kernels::cuda::few_rows {

template <Wide S>
__device__ __forceinline__ void attend_exact(const Params& p, std::uint8_t* tile, const Queries<S>& queries,
                                             const int (&positions)[2], std::uint32_t used,
                                             std::uint32_t spoiled, Running<S>& running) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  float c[S::kBlocks][2][4];  // tokens 8 t + 2 q, + 1
  const std::uint8_t* keys = tile + g * 4 * S::kDim + 8 * q;
#pragma unroll
  for (int s = 0; s < S::kSteps; ++s) {
    OperandA a[S::kBlocks];
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b) a[b] = queries.get(s, b);
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const uint2 four = *reinterpret_cast<const uint2*>(keys + 32 * s + t * 8 * 4 * S::kDim);
      const std::uint32_t b0 = prmt(four.x, four.y, 0x5410), b1 = prmt(four.x, four.y, 0x7632);
#pragma unroll
      for (int b = 0; b < S::kBlocks; ++b) {
        if (s == 0) mma_f16<true>(c[b][t], a[b], b0, b1);
        else mma_f16<false>(c[b][t], a[b], b0, b1);
      }
    }
  }
  int at[2][2];
#pragma unroll
  for (int t = 0; t < 2; ++t)
#pragma unroll
    for (int e = 0; e < 2; ++e) at[t][e] = __shfl_sync(~0u, positions[t], 4 * (2 * q + e));
  OperandA weights[S::kBlocks];
  running.open = false;
#pragma unroll
  for (int b = 0; b < S::kBlocks; ++b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = kUnseen;
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = c[b][t][2 * half + e];
          const int slot = 8 * t + 2 * q + e, position = at[t][e];
          x *= queries.unit;
          if (p.cap > 0) x = soft_cap(x, p.cap);
          x -= running.reference[b][half];
          if (position < max(queries.lowest[b][half], 0)) x = kUnseen;
          else if ((spoiled >> slot & 1) != 0) x = __int_as_float(0x7fffffff);
          most = fmaxf(most, x);
        }
      const float by = running.raise(b, half, most, queries.lowest[b][half] != INT_MAX);
#pragma unroll
      for (int t = 0; t < 2; ++t)
        weights[b].x[2 * t + half] =
            pack(exp2_approx(c[b][t][2 * half] - by), exp2_approx(c[b][t][2 * half + 1] - by));
    }
    add_weights<S>(weights[b], running.sum[b]);
  }
  running.open = __any_sync(~0u, running.open);

  const float gain = 1.0f / wide_values_unit(p);
  const int matrix = lane >> 3, token = (matrix & 1) * 8 + (lane & 7);
  const std::uint32_t values = shared_address(tile + token * 4 * S::kDim + 2 * S::kDim + (matrix >> 1) * 16);
#pragma unroll
  for (int w = 0; w < S::kSteps; ++w) {
    const OperandA x = ldmatrix_x4_transposed(values + 32 * static_cast<std::uint32_t>(w));
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float sums[4];
        mma_f16<true>(sums, weights[b], x.x[2 * n], x.x[2 * n + 1]);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          running.values[b][2 * w + n][k] = fmaf(sums[k], gain, running.values[b][2 * w + n][k]);
      }
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
