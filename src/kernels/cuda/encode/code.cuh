// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/centre.cuh"

// Rules 1 and 3 to 6: a rotated vector to codes, by a warp.
namespace turboquant::kernels::cuda {

template <int C>
__device__ inline Coded<C> nan_token() {
  Coded<C> token;
  token.scale = kNanScale;
#pragma unroll
  for (int j = 0; j < C; ++j) token.codes[j] = 0;
  return token;
}

// Rules 3 to 6 of a rotated key, about block.centre.
template <int C>
__device__ inline Coded<C> code_key(const EncodeCall& call, const float (&y)[C], const Block& block,
                                    const SearchTable& table) {
  float u[C];
  const float about_zero = tree_squared_norm(y);
  if (!is_finite(about_zero)) return nan_token<C>();
  subtract(y, block.centre, u);
  const float about_centre = tree_squared_norm(u);
  const bool centred = about_centre <= about_zero;
#pragma unroll
  for (int j = 0; j < C; ++j) u[j] = centred ? u[j] : y[j];
  Coded<C> token = search(u, __fsqrt_rn(centred ? about_centre : about_zero), call.args.pages.format.head_dim,
                          call.levels_numerator, table);
  if (!centred) token.scale |= kReferenceIsZero;
  return token;
}

template <int C>
__device__ inline Coded<C> code_value(const EncodeCall& call, const float (&y)[C], const SearchTable& table) {
  const float squared = tree_squared_norm(y);
  if (!is_finite(squared)) return nan_token<C>();
  return search(y, __fsqrt_rn(squared), call.args.pages.format.head_dim, call.levels_numerator, table);
}

}  // namespace turboquant::kernels::cuda
