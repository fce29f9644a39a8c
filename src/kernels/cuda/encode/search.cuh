// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/levels.cuh"
#include "kernels/cuda/encode/rules.cuh"
#include "kernels/cuda/warp_vector.cuh"

// Rules 4 to 6 of kernels/encode_rules.h by a warp on one vector.
namespace turboquant::kernels::cuda {

// The bytes of four words, transposed: byte k of out[s] is byte s of in[k].
__device__ inline void transpose_bytes(const std::uint32_t (&in)[4], std::uint32_t (&out)[4]) {
  const std::uint32_t low01 = __byte_perm(in[0], in[1], 0x5140), high01 = __byte_perm(in[0], in[1], 0x7362);
  const std::uint32_t low23 = __byte_perm(in[2], in[3], 0x5140), high23 = __byte_perm(in[2], in[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

template <int C>
struct Coded {
  std::uint32_t scale;     // fp16 bits, without a key's sign
  std::uint32_t codes[C];  // of this lane's coordinates
};

struct SearchTable {
  const LevelRow* rows;  // in shared or global memory
  int bits;
  float unit;  // stored_scale_unit()
};

// u in a warp's lanes, of norm n (the same in every lane).
template <int C>
__device__ inline Coded<C> search(const float (&u)[C], float norm, int head_dim, float levels_numerator,
                                  const SearchTable& table) {
  Coded<C> out;
  out.scale = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) out.codes[j] = 0;
  if (norm < kSmallestNorm) return out;

  const int lane = lane_id();
  const bool holds = lane * C < head_dim;
  const float levels_per_unit = __fdiv_rn(levels_numerator, norm);
  std::uint32_t indices[C], with_level[core::kSearchScales] = {}, sums[core::kSearchScales] = {},
                            squares[core::kSearchScales] = {};
#pragma unroll
  for (int j0 = 0; j0 < C; j0 += 4) {
    std::uint32_t words[3][4] = {};  // of four coordinates; zero beyond head_dim
#pragma unroll
    for (int k = 0; k < 4 && j0 + k < C; ++k) {
      const float scaled = __fmul_rn(fabsf(u[j0 + k]), levels_per_unit);
      const int level =
          scaled < static_cast<float>(core::kMaxLevel) ? static_cast<int>(scaled) : core::kMaxLevel;
      const uint4 row = holds ? *reinterpret_cast<const uint4*>(table.rows + level) : uint4{0, 0, 0, 0};
      words[0][k] = row.x;
      words[1][k] = row.y;
      words[2][k] = row.z;
      indices[j0 + k] = row.w;
    }
    std::uint32_t columns[12];
#pragma unroll
    for (int w = 0; w < 3; ++w) {
      std::uint32_t four[4];
      transpose_bytes(words[w], four);
#pragma unroll
      for (int k = 0; k < 4; ++k) columns[4 * w + k] = four[k];
    }
#pragma unroll
    for (int s = 0; s < core::kSearchScales; ++s) {
      with_level[s] = __dp4a(columns[s], columns[9], with_level[s]);
      sums[s] = __dp4a(columns[s], 0x01010101u, sums[s]);
      squares[s] = __dp4a(columns[s], columns[s], squares[s]);
    }
  }
  // Lane s gets A and B of scale s; the others repeat scale 0.
  std::uint32_t a = 0, b = 0;
#pragma unroll
  for (int s = 0; s < core::kSearchScales; ++s) {
    const std::uint32_t a_s = __reduce_add_sync(~0u, 2 * with_level[s] + sums[s]);
    const std::uint32_t b_s = __reduce_add_sync(~0u, squares[s]);
    if (s == 0 || lane == s) {
      a = a_s;
      b = b_s;
    }
  }
  const float a_float = __int2float_rn(static_cast<int>(a)), b_float = __int2float_rn(static_cast<int>(b));
  const float score = __fdiv_rn(__fmul_rn(a_float, a_float), b_float);  // positive: ordered like its bits
  const std::uint32_t best = __reduce_max_sync(~0u, __float_as_uint(score));
  const int winner = __ffs(static_cast<int>(__ballot_sync(~0u, __float_as_uint(score) == best))) - 1;
  const float best_norm = __shfl_sync(~0u, b_float, winner);
  out.scale = half_bits_clamped(__fdiv_rn(__fmul_rn(table.unit, norm), __fsqrt_rn(best_norm)));
  const std::uint32_t sign = 1u << (table.bits - 1);
#pragma unroll
  for (int j = 0; j < C; ++j) out.codes[j] = (indices[j] >> (3 * winner) & 7u) | (u[j] < 0.0f ? sign : 0u);
  return out;
}

}  // namespace turboquant::kernels::cuda
