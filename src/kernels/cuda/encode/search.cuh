// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/levels.cuh"
#include "kernels/cuda/encode/rules.cuh"
#include "kernels/cuda/warp_vector.cuh"

// Rules 4 to 6 of kernels/encode_rules.h by a warp on one vector.
namespace turboquant::kernels::cuda {

template <int C>
struct Coded {
  std::uint32_t scale;     // fp16 bits, without a key's sign
  std::uint32_t codes[C];  // of this lane's coordinates
};

struct SearchTable {
  const LevelTable* levels;  // in shared or global memory
  int bits;
  Magnitudes magnitudes;
  float unit;  // stored_scale_unit()
};

// The magnitudes of the codes in the low four nibbles of `codes`, whose bits 3 are 0, as bytes.
__device__ inline std::uint32_t magnitudes_at(const Magnitudes& table, std::uint32_t codes) {
  return __byte_perm(table.low, table.high, codes);
}

// Eight candidates' errors in the halfwords of four words to the number of the least, the first of equals.
__device__ inline std::uint32_t least_of(const std::uint32_t (&errors)[4]) {
  std::uint32_t best = ~0u;
#pragma unroll
  for (std::uint32_t w = 0; w < 4; ++w) {
    best = min(best, (errors[w] & 0xffffu) << 3 | 2 * w);
    best = min(best, errors[w] >> 16 << 3 | (2 * w + 1));
  }
  return best & 7u;
}

// u in a warp's lanes, of norm n (the same in every lane).
template <int C>
__device__ inline Coded<C> search(const float (&u)[C], float norm, int head_dim, float levels_numerator,
                                  const SearchTable& table) {
  Coded<C> out;
  out.scale = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) out.codes[j] = 0;
  if (norm < kSmallestNorm) return out;

  const bool holds = lane_id() * C < head_dim;
  const float levels_per_unit = __fdiv_rn(levels_numerator, norm);
  std::uint32_t indices[C], winner;
  const auto add_errors = [&](int first, int count, std::uint32_t(&errors)[4]) {
#pragma unroll
    for (int j = first; j < first + count; ++j) {
      const float scaled = __fmul_rn(fabsf(u[j]), levels_per_unit);
      const int level =
          scaled < static_cast<float>(core::kMaxLevel) ? static_cast<int>(scaled) : core::kMaxLevel;
      indices[j] = table.levels->indices[level];
      if (!holds) continue;
      const uint4 row = *reinterpret_cast<const uint4*>(table.levels->errors + level);
      errors[0] += row.x;
      errors[1] += row.y;
      errors[2] += row.z;
      errors[3] += row.w;
    }
  };
  if constexpr (C <= 4) {  // up to 128 coordinates: halfwords do
    std::uint32_t errors[4] = {};
    add_errors(0, C, errors);
#pragma unroll
    for (std::uint32_t& word : errors) word = __reduce_add_sync(~0u, word);
    winner = least_of(errors);
  } else {
    std::uint32_t sums[core::kSearchScales] = {}, best = ~0u;
#pragma unroll
    for (int first = 0; first < C; first += 8) {
      std::uint32_t errors[4] = {};  // of eight coordinates: below 8 x 8,192
      add_errors(first, 8, errors);
#pragma unroll
      for (int s = 0; s < core::kSearchScales; ++s)
        sums[s] += s % 2 == 0 ? errors[s / 2] & 0xffffu : errors[s / 2] >> 16;
    }
#pragma unroll
    for (std::uint32_t s = 0; s < core::kSearchScales; ++s)
      best = min(best, __reduce_add_sync(~0u, sums[s]) << 3 | s);
    winner = best & 7u;
  }
  const std::uint32_t sign = 1u << (table.bits - 1);
  std::uint32_t squares = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const std::uint32_t index = indices[j] >> (4 * winner) & 7u;
    const std::uint32_t magnitude = magnitudes_at(table.magnitudes, index) & 0xffu;
    if (holds) squares += magnitude * magnitude;
    out.codes[j] = index | (u[j] < 0.0f ? sign : 0u);
  }
  const float best_norm = __int2float_rn(static_cast<int>(__reduce_add_sync(~0u, squares)));
  out.scale = half_bits_clamped(__fdiv_rn(__fmul_rn(table.unit, norm), __fsqrt_rn(best_norm)));
  return out;
}

}  // namespace turboquant::kernels::cuda
