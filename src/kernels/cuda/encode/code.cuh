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
__device__ inline Coded<C> code_key(const EncodeCall& call, const float (&y)[C], const Block& block) {
  float u[C];
  if (!(largest_of(y) < kLargest)) return nan_token<C>();
  subtract(y, block.centre, u);
  const bool centred = tree_squared_norm(u) <= tree_squared_norm(y);
#pragma unroll
  for (int j = 0; j < C; ++j) u[j] = centred ? u[j] : y[j];
  Coded<C> token = search(u, largest_of(u), call, call.key_coder);
  if (!centred) token.scale |= kReferenceIsZero;
  return token;
}

template <int C>
__device__ inline Coded<C> code_value(const EncodeCall& call, const float (&y)[C]) {
  const float largest = largest_of(y);
  return largest < kLargest ? search(y, largest, call, call.value_coder) : nan_token<C>();
}

}  // namespace turboquant::kernels::cuda
