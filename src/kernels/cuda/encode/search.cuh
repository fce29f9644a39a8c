// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/codes_of_levels.cuh"
#include "kernels/cuda/encode/flips.cuh"
#include "kernels/cuda/encode/rules.cuh"
#include "kernels/cuda/warp_vector.cuh"

// Rules 4 to 6 of kernels/encode_rules.h by a warp on one vector.
namespace turboquant::kernels::cuda {

template <int C>
struct Coded {
  std::uint32_t scale;     // fp16 bits, without a key's sign
  std::uint32_t codes[C];  // of this lane's coordinates
};

// max |x_e|, in every lane; NaN if there is one.
template <int C>
__device__ inline float largest_of(const float (&x)[C]) {
  std::uint32_t largest = 0;  // bits of numbers above 0 are in order, NaN's last
#pragma unroll
  for (int j = 0; j < C; ++j) largest = max(largest, __float_as_uint(x[j]) & 0x7fffffffu);
  return __uint_as_float(__reduce_max_sync(~0u, largest));
}
// The nearest number of 11 significant bits.
__device__ inline float round_to_11_bits(float x) {
  const std::uint32_t bits = __float_as_uint(x);
  return __uint_as_float((bits + 0xfffu + (bits >> 13 & 1u)) & 0xffffe000u);
}

// u in a warp's lanes, fp16 numbers, and its largest magnitude. With kFlip by the head's metric [d, d],
// unless that is null, kRows of whose rows a lane reads at a time. A kDim that is not 0 is the head_dim, for
// shorter code.
template <bool kFlip, int kDim, int kRows = 1, int C, class Call>
__device__ inline Coded<C> search(const float (&u)[C], float largest, float factor, const Call& call,
                                  const Coder& coder, const std::int8_t* metric) {
  Coded<C> out;
  out.scale = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) out.codes[j] = 0;
  if (largest == 0.0f) return out;

  constexpr int kPairs = (C + 1) / 2;
  const int d = kDim == 0 ? call.args.pages.format.head_dim : kDim;
  const bool holds = lane_id() * C < d;
  const float levels_per_unit = round_to_11_bits(__fdiv_rn(static_cast<float>(core::kMaxLevel), largest));
  std::uint32_t pairs[kPairs], levels[C], sum_n = 0;
#pragma unroll
  for (int p = 0; p < kPairs; ++p) {
    std::uint32_t pair = 0x64006400u;  // 1024 + level
#pragma unroll
    for (int j = 2 * p; j < 2 * p + 2 && j < C; ++j) {
      const float scaled = round_to_11_bits(__fmul_rn(fabsf(u[j]), levels_per_unit));
      levels[j] = __float_as_uint(__fadd_rn(scaled, 0x1p23f)) & 0xffu;
      sum_n += levels[j] * levels[j];
      pair |= levels[j] << (16 * (j & 1));
    }
    pairs[p] = pair;
  }
  sum_n = __reduce_add_sync(~0u, sum_n);
  Best best;
#pragma unroll 1
  for (int candidate = 0; candidate < coder.candidates; ++candidate) {
    std::uint32_t indices[C], sum_a = 0, sum_b = 0;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const std::uint32_t pair = indices_of(pairs[p], coder.of[candidate]);
#pragma unroll
      for (int j = 2 * p; j < 2 * p + 2 && j < C; ++j) {
        indices[j] = pair >> (16 * (j & 1)) & 7u;
        const std::uint32_t magnitude = magnitudes_at(coder.of[candidate], indices[j]) & 0xffu;
        sum_a += levels[j] * magnitude;
        sum_b += magnitude * magnitude;
      }
    }
    if (!best.take(__reduce_add_sync(~0u, holds ? sum_a : 0u), __reduce_add_sync(~0u, holds ? sum_b : 0u)))
      continue;
#pragma unroll
    for (int j = 0; j < C; ++j) out.codes[j] = code_indices(coder, indices[j]);
  }
  if (kFlip && metric != nullptr) {
    best.b = flip_codes<kRows>(metric, levels, u, d, coder, sum_n, best.b, out.codes);
  } else {
    const std::uint32_t sign = 1u << (coder.bits - 1);
#pragma unroll
    for (int j = 0; j < C; ++j)
      if (__float_as_uint(u[j]) >> 31 != 0) out.codes[j] |= sign;
  }
  const float unit =
      __fmul_rn(__fmul_rn(__fmul_rn(largest, one_over_power(factor)), call.rotation_scale), coder.unit);
  const float n = __uint2float_rn(sum_n);
  const float squared = coder.unbiased ? __fdiv_rn(__fmul_rn(n, n), best.aa) : __fdiv_rn(n, best.b);
  out.scale = half_bits_clamped(__fmul_rn(unit, __fsqrt_rn(squared)));
  return out;
}

}  // namespace turboquant::kernels::cuda
