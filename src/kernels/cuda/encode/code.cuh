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

// Rules 3 to 6 of a rotated vector; of a key, about the block's stored centre and, with kFlip, by the head's
// metric, if there is one.
template <bool kFlip, int kDim = 0, int C, class Call>
__device__ inline Coded<C> code_vector(const Call& call, bool is_key, int head, Rotated scaled,
                                       const float (&y)[C], const Block& block) {
  if (!scaled.finite) return nan_token<C>();
  const bool centred = is_key && is_nearer(call, y, scaled.factor, block);
  float u[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    u[j] = y[j];
    if (!centred) continue;
    const float c = centre_at(centre_step(call, block), static_cast<float>(block.steps[lane_id() * C + j]),
                              scaled.factor);
    u[j] = round_to_half(__fadd_rn(y[j], -round_to_half(c)));
  }
  const int d = kDim == 0 ? call.args.pages.format.head_dim : kDim;
  const std::int8_t* metric = kFlip && is_key ? call.args.basis.key_metric : nullptr;
  if (metric != nullptr) metric += std::int64_t{head} * d * d;
  Coded<C> token = search<kFlip, kDim>(u, largest_of(u), scaled.factor, call,
                                       is_key ? call.key_coder : call.value_coder, metric);
  if (is_key && !centred) token.scale |= kReferenceIsZero;
  return token;
}

}  // namespace turboquant::kernels::cuda
