// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/codes_of_levels.cuh"
#include "kernels/cuda/warp_vector.cuh"

// Rule 5a of kernels/encode_rules.h by a warp: lane L has coordinates L C .. L C + C - 1.
namespace turboquant::kernels::cuda {

inline constexpr int kFlips = 8, kLargestError = 127;  // as in kernels/flips.h

// A code's place among signed magnitudes is its index, or -1 - index.
struct Places {
  Candidate magnitudes;  // of any candidate
  int count;             // of magnitudes
  float ratio;           // levels a step

  __device__ int steps(int place) const {
    const auto index = static_cast<std::uint32_t>(place < 0 ? -1 - place : place);
    const float t = __uint2float_rn(magnitudes_at(magnitudes, index) & 0xffu);
    const int size = __float2int_rn(__fmul_rn(ratio, t));
    return place < 0 ? -size : size;
  }
  __device__ bool has(int place) const { return place >= -count && place < count; }
};

// C bytes of a row of a metric from `at` on, which is a multiple of C.
template <int C>
struct RowPart {
  static constexpr int kWords = (C + 3) / 4;
  std::uint32_t words[kWords];

  __device__ explicit RowPart(const std::int8_t* at) {
    if constexpr (C == 1) words[0] = static_cast<std::uint8_t>(*at);
    else if constexpr (C == 2) words[0] = *reinterpret_cast<const std::uint16_t*>(at);
    else
#pragma unroll
      for (int w = 0; w < kWords; ++w) words[w] = reinterpret_cast<const std::uint32_t*>(at)[w];
  }
  __device__ int operator[](int j) const {
    return static_cast<int>(words[j / 4] << (24 - 8 * (j % 4))) >> 24;
  }
};

// The two moves of a coordinate, 0 where there is none, and move * M_ee.
struct Moves {
  float up, down;
  int up_cost, down_cost;

  __device__ Moves(const Places& places, int place, int diagonal) {
    const int here = places.steps(place);
    const int above = places.has(place + 1) ? places.steps(place + 1) - here : 0;
    const int below = places.has(place - 1) ? places.steps(place - 1) - here : 0;
    up = __int2float_rn(above);
    down = __int2float_rn(below);
    up_cost = above * diagonal;
    down_cost = below * diagonal;
  }
  Moves() = default;
};

// g = M E.
template <int C>
__device__ inline void multiply(const std::int8_t* metric, int d, const int (&error)[C], int (&g)[C]) {
  const int first = lane_id() * C;
  const bool holds = first < d;
  const std::int8_t* row = metric + (holds ? first : 0);
#pragma unroll
  for (int j = 0; j < C; ++j) g[j] = 0;
  if constexpr (C == 4) {
    std::uint32_t own = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) own |= (static_cast<std::uint32_t>(error[j]) & 0xffu) << (8 * j);
#pragma unroll 2
    for (int e = 0; e < d; e += 4, row += 4 * d) {  // four rows, turned about
      const int errors = static_cast<int>(__shfl_sync(~0u, own, e / 4));
      std::uint32_t w[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) w[k] = RowPart<4>(row + k * d).words[0];
      const std::uint32_t a = permute(w[0], w[1], 0x5140), b = permute(w[2], w[3], 0x5140),
                          c = permute(w[0], w[1], 0x7362), f = permute(w[2], w[3], 0x7362);
      g[0] = __dp4a(static_cast<int>(permute(a, b, 0x5410)), errors, g[0]);
      g[1] = __dp4a(static_cast<int>(permute(a, b, 0x7632)), errors, g[1]);
      g[2] = __dp4a(static_cast<int>(permute(c, f, 0x5410)), errors, g[2]);
      g[3] = __dp4a(static_cast<int>(permute(c, f, 0x7632)), errors, g[3]);
    }
  } else {
#pragma unroll 1
    for (int e = 0; e < d; e += C)
#pragma unroll
      for (int k = 0; k < C; ++k, row += d) {
        const int times = __shfl_sync(~0u, error[k], e / C);
        const RowPart<C> part(row);
#pragma unroll
        for (int j = 0; j < C; ++j) g[j] += times * part[j];
      }
  }
}

// metric [d, d] of the head; codes: indices without signs, which become codes as stored. Returns the new B.
template <int C>
__device__ inline float flip_codes(const std::int8_t* metric, const std::uint32_t (&levels)[C],
                                   const float (&u)[C], int d, const Coder& coder, std::uint32_t sum_n,
                                   float sum_b, std::uint32_t (&codes)[C]) {
  const Places places{coder.of[0], 1 << (coder.bits - 1),
                      __fsqrt_rn(__fdiv_rn(__uint2float_rn(sum_n), sum_b))};
  const int first = lane_id() * C;
  const bool holds = first < d;
  const auto diagonal_at = [&](int j) { return holds ? metric[(first + j) * (d + 1)] : 0; };
  int place[C], error[C], g[C];
  Moves moves[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const bool negative = __float_as_uint(u[j]) >> 31 != 0;
    const int index = static_cast<int>(codes[j]), level = static_cast<int>(levels[j]);
    place[j] = negative ? -1 - index : index;
    const int off = (negative ? -level : level) - places.steps(place[j]);
    error[j] = holds ? max(-kLargestError, min(kLargestError, off)) : 0;
    moves[j] = Moves(places, place[j], diagonal_at(j));
    if (!holds) moves[j].up = moves[j].down = 0.0f;
  }
  multiply(metric, d, error, g);

#pragma unroll 1
  for (int flip = 0; flip < kFlips; ++flip) {
    float best = 0.0f;
    int at = 0;  // 2 j, or 2 j + 1: down
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const float up = __fmul_rn(moves[j].up, __int2float_rn(moves[j].up_cost - 2 * g[j]));
      const float down = __fmul_rn(moves[j].down, __int2float_rn(moves[j].down_cost - 2 * g[j]));
      if (up < best) at = 2 * j;
      best = up < best ? up : best;
      if (down < best) at = 2 * j + 1;
      best = down < best ? down : best;
    }
    // Bits of numbers below 0 are in reverse order.
    const std::uint32_t own = best < 0.0f ? __float_as_uint(best) : 0u, most = __reduce_max_sync(~0u, own);
    if (most == 0) break;
    const int winner = __ffs(static_cast<int>(__ballot_sync(~0u, own == most))) - 1;
    // Selects, not branches: the arrays stay in registers.
    const int j_at = at / 2, by = at % 2 == 0 ? 1 : -1;
    float move = 0.0f;
    int next = 0;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      move = j == j_at ? (by > 0 ? moves[j].up : moves[j].down) : move;
      next = j == j_at ? place[j] + by : next;
    }
    const Moves renewed(places, next, diagonal_at(j_at));
    const bool mine = lane_id() == winner;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const bool moved = mine && j == j_at;
      place[j] = moved ? next : place[j];
      moves[j].up = moved ? renewed.up : moves[j].up;
      moves[j].down = moved ? renewed.down : moves[j].down;
      moves[j].up_cost = moved ? renewed.up_cost : moves[j].up_cost;
      moves[j].down_cost = moved ? renewed.down_cost : moves[j].down_cost;
    }
    const int times = __float2int_rn(__shfl_sync(~0u, move, winner));
    const int row_at = __shfl_sync(~0u, first + j_at, winner);
    const RowPart<C> row(metric + row_at * d + (holds ? first : 0));
#pragma unroll
    for (int j = 0; j < C; ++j) g[j] -= times * row[j];
  }
  std::uint32_t squares = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const auto index = static_cast<std::uint32_t>(place[j] < 0 ? -1 - place[j] : place[j]);
    const std::uint32_t t = magnitudes_at(places.magnitudes, index) & 0xffu;
    squares += holds ? t * t : 0u;
    codes[j] = index | (place[j] < 0 ? 1u << (coder.bits - 1) : 0u);
  }
  return __uint2float_rn(__reduce_add_sync(~0u, squares));
}

}  // namespace turboquant::kernels::cuda
