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

// Rules 3 to 6 of a rotated key, about the block's stored centre.
template <bool kFlip, int C>
__device__ inline Coded<C> code_key(const EncodeCall& call, int head, Rotated scaled, const float (&y)[C],
                                    const Block& block) {
  if (!scaled.finite) return nan_token<C>();
  const bool centred = is_nearer(call, y, scaled.factor, block);
  float u[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const float c = centre_at(centre_step(call, block), static_cast<float>(block.steps[lane_id() * C + j]),
                              scaled.factor);
    u[j] = centred ? round_to_half(__fadd_rn(y[j], -round_to_half(c))) : y[j];
  }
  const int d = call.args.pages.format.head_dim;
  const std::int8_t* metric = kFlip ? call.args.basis.key_metric + std::int64_t{head} * d * d : nullptr;
  Coded<C> token = search<kFlip>(u, largest_of(u), scaled.factor, call, call.key_coder, metric);
  if (!centred) token.scale |= kReferenceIsZero;
  return token;
}

template <int C>
__device__ inline Coded<C> code_value(const EncodeCall& call, Rotated scaled, const float (&y)[C]) {
  return scaled.finite ? search<false>(y, largest_of(y), scaled.factor, call, call.value_coder, nullptr)
                       : nan_token<C>();
}

}  // namespace turboquant::kernels::cuda
