// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/encode/codes_of_levels.cuh"
#include "kernels/cuda/warp_vector.cuh"

// Rule 5a of kernels/encode_rules.h by a warp: lane L has coordinates L C .. L C + C - 1. For one key that a
// step waits for: few dependent steps, short code, no shared memory. What the rule has as integers is fp32:
// moves, and 2 g, an even number below 2^25, so exact; and a gain's sum is rounded once, as an integer's
// conversion is.
namespace turboquant::kernels::cuda {

inline constexpr int kFlips = 8, kLargestError = 127;  // as in kernels/reference/flips.h

// The places of a code, signed magnitudes in order: lane p has place p's steps and its move to the next
// place, 0 where there is none, which the last lanes have.
struct PlaceTable {
  int steps;
  float up;

  __device__ PlaceTable(const Candidate& magnitudes, int count, float ratio) {
    const int lane = lane_id(), index = lane < count ? count - 1 - lane : lane - count;
    const float t = __uint2float_rn(magnitudes_at(magnitudes, static_cast<std::uint32_t>(index)) & 0xffu);
    const int size = __float2int_rn(__fmul_rn(ratio, t));
    steps = lane < count ? -size : size;
    const int above = __shfl_down_sync(~0u, steps, 1);
    up = lane < 2 * count - 1 ? __int2float_rn(above - steps) : 0.0f;
  }
  // The move from `place` to the next one; of place -1, 0.
  __device__ float up_from(int place) const { return __shfl_sync(~0u, up, place); }
};

// Byte b of a word of signed bytes plus 128, as fp32.
__device__ inline float signed_byte(std::uint32_t word, int b) {
  const std::uint32_t bits = __byte_perm(word, 0x4b000000u, 0x7440u | static_cast<std::uint32_t>(b));
  return __fadd_rn(__uint_as_float(bits), -8388736.0f);
}

// (M E)_e of a lane's coordinates e = C lane + j .. C lane + j + kRows - 1: 2 C lanes share a row of M, 16
// bytes each; `part` has a lane's 16 of E. Their loads are on their way together.
template <int C, int kRows>
__device__ inline void multiply_some_rows(const std::int8_t* metric, int d, const std::uint32_t (&part)[4],
                                          int j, int (&out)[kRows]) {
  constexpr int kLanes = 2 * C;
  const int lane = lane_id(), m = lane % kLanes, first = lane - m;
  const std::int8_t* column = metric + (16 * m < d ? 16 * m : 0);
  int sums[kRows][kLanes];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      int row = (first + k) * C + j + r;
      if (d < 32 * C) row = min(row, d - 1);  // beyond: of no coordinate
      const int4 w = *reinterpret_cast<const int4*>(column + row * d);
      sums[r][k] = __dp4a(w.x, static_cast<int>(part[0]), 0);
      sums[r][k] = __dp4a(w.y, static_cast<int>(part[1]), sums[r][k]);
      sums[r][k] = __dp4a(w.z, static_cast<int>(part[2]), sums[r][k]);
      sums[r][k] = __dp4a(w.w, static_cast<int>(part[3]), sums[r][k]);
    }
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    const bool high = (m & half) != 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int k = 0; k < half; ++k) {
        const int given = high ? sums[r][k] : sums[r][k + half], kept = high ? sums[r][k + half] : sums[r][k];
        sums[r][k] = kept + __shfl_xor_sync(~0u, given, half);
      }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) out[r] = sums[r][0];
}
// g = 2 M E of bytes E, C to a lane (in `errors`, from the lowest byte on). kRows of a lane's are multiplied
// in a round.
template <int kRows, int C>
__device__ inline void multiply_rows(const std::int8_t* metric, int d,
                                     const std::uint32_t (&errors)[(C + 3) / 4], float (&g)[C]) {
  const int m = lane_id() % (2 * C);
  std::uint32_t e[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {  // of coordinates 16 m + 4 w on
    if constexpr (C >= 4) {
      e[w] = __shfl_sync(~0u, errors[4 * w % C / 4], (16 * m + 4 * w) / C);
    } else {
      e[w] = 0;
#pragma unroll
      for (int k = 0; k < 4 / C; ++k)
        e[w] |= __shfl_sync(~0u, errors[0], (16 * m + 4 * w) / C + k) << (8 * C * k);
    }
  }
#pragma unroll(kRows == 1 && C <= 4 ? 2 : 1)
  for (int j = 0; j < C; j += kRows) {
    int sums[kRows];
    multiply_some_rows<C, kRows>(metric, d, e, j, sums);
#pragma unroll
    for (int k = 0; k + kRows < C; ++k) g[k] = g[k + kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) g[C - kRows + r] = __int2float_rn(2 * sums[r]);
  }
}

// C of a metric's bytes, from the lowest of words on.
template <int C>
__device__ inline void load_metric_bytes(const std::int8_t* at, std::uint32_t (&bytes)[(C + 3) / 4]) {
  if constexpr (C == 1) bytes[0] = static_cast<std::uint8_t>(*at);
  else if constexpr (C == 2) bytes[0] = *reinterpret_cast<const std::uint16_t*>(at);
  else
#pragma unroll
    for (int w = 0; w < C / 4; ++w) bytes[w] = reinterpret_cast<const std::uint32_t*>(at)[w];
}

// metric [d, d] of the head; codes: indices without signs, which become codes as stored. Returns the new B.
template <int kRows = 1, int C>
__device__ inline float flip_codes(const std::int8_t* metric, const std::uint32_t (&levels)[C],
                                   const float (&u)[C], int d, const Coder& coder, std::uint32_t sum_n,
                                   float sum_b, std::uint32_t (&codes)[C]) {
  constexpr int kOrderBits = std::bit_width(64u * C - 1);  // of 2 coordinates + (0: up, 1: down)
  const int count = 1 << (coder.bits - 1), first = lane_id() * C;
  const bool holds = first < d;
  const PlaceTable table(coder.of[0], count, __fsqrt_rn(__fdiv_rn(__uint2float_rn(sum_n), sum_b)));
  constexpr int kWords = (C + 3) / 4;
  float g[C], diagonal[C], up[C], down[C];
  std::uint32_t errors[kWords] = {}, places[kWords] = {};  // a byte each
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const int at = holds ? first + j : 0;
    diagonal[j] = __int2float_rn(metric[at * (d + 1)]);
    const bool negative = __float_as_uint(u[j]) >> 31 != 0;
    const int index = static_cast<int>(codes[j]), level = static_cast<int>(levels[j]);
    const int place = negative ? count - 1 - index : count + index;
    const int off = (negative ? -level : level) - __shfl_sync(~0u, table.steps, place);
    const int error = holds ? max(-kLargestError, min(kLargestError, off)) : 0;
    errors[j / 4] |= (static_cast<std::uint32_t>(error) & 0xffu) << (8 * (j % 4));
    places[j / 4] |= static_cast<std::uint32_t>(place) << (8 * (j % 4));
    up[j] = table.up_from(place);
    down[j] = -table.up_from(place - 1);
    if (!holds) up[j] = down[j] = 0.0f;
  }
  multiply_rows<kRows>(metric, d, errors, g);

#pragma unroll 1
  for (int flip = 0; flip < kFlips; ++flip) {
    float gain_up[C], gain_down[C], best = 0.0f;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      gain_up[j] = __fmul_rn(up[j], __fmaf_rn(up[j], diagonal[j], -g[j]));
      gain_down[j] = __fmul_rn(down[j], __fmaf_rn(down[j], diagonal[j], -g[j]));
      best = fminf(best, fminf(gain_up[j], gain_down[j]));
    }
    // Of numbers below 0 the bits are in reverse order, and above all others.
    const std::uint32_t own = __float_as_uint(best), most = __reduce_max_sync(~0u, own);
    // What this lane's best would change, before it is known whose is taken.
    std::uint32_t j_at = 0;
    float best_up = 0.0f;
#pragma unroll
    for (int j = C - 1; j >= 0; --j) {
      const bool here = fminf(gain_up[j], gain_down[j]) == best;
      j_at = here ? static_cast<std::uint32_t>(j) : j_at;
      best_up = here ? gain_up[j] : best_up;
    }
    const bool goes_up = best_up == best;
    std::uint32_t word = places[0];
#pragma unroll
    for (int w = 1; w < kWords; ++w) word = j_at / 4 == w ? places[w] : word;
    const int place = static_cast<int>(word >> (8 * (j_at % 4)) & 0xffu), from = goes_up ? place : place - 1;
    const float apart = table.up_from(from), beyond = table.up_from(goes_up ? from + 1 : from - 1);
    const float by = goes_up ? apart : -apart;
    const std::uint32_t order = 2 * (static_cast<std::uint32_t>(first) + j_at) + (goes_up ? 0u : 1u);
    const std::uint32_t move = order << (32 - kOrderBits) | __float_as_uint(by) >> kOrderBits;
    if (most <= 0x80000000u) break;
    // The lowest coordinate's, up before down.
    const std::uint32_t taken = __reduce_min_sync(~0u, own == most ? move : ~0u);
    const int row = static_cast<int>(taken >> (33 - kOrderBits));
    const float minus = -2.0f * __uint_as_float(taken << kOrderBits);
    std::uint32_t bytes[kWords];
    load_metric_bytes<C>(metric + row * d + (holds ? first : 0), bytes);
    const std::uint32_t moved = move == taken ? j_at : 4u * kWords;
    const std::uint32_t step = goes_up ? 1u << (8 * (moved % 4)) : ~0u << (8 * (moved % 4));
#pragma unroll
    for (int w = 0; w < kWords; ++w) places[w] += moved / 4 == w ? step : 0u;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      up[j] = moved == j ? (goes_up ? beyond : apart) : up[j];
      down[j] = moved == j ? -(goes_up ? apart : beyond) : down[j];
    }
#pragma unroll
    for (int j = 0; j < C; ++j) g[j] = __fmaf_rn(minus, signed_byte(bytes[j / 4] ^ 0x80808080u, j % 4), g[j]);
  }
  std::uint32_t squares = 0;
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const int place = static_cast<int>(places[j / 4] >> (8 * (j % 4)) & 0xffu);
    const bool negative = place < count;
    const auto index = static_cast<std::uint32_t>(negative ? count - 1 - place : place - count);
    const std::uint32_t t = magnitudes_at(coder.of[0], index) & 0xffu;
    squares += holds ? t * t : 0u;
    codes[j] = index | (negative ? static_cast<std::uint32_t>(count) : 0u);
  }
  return __uint2float_rn(__reduce_add_sync(~0u, squares));
}

// The same of a centre's numbers (rule 2a): `errors` in units of 1 / 254 of a step, n [C] in steps. All moves
// are as large.
template <int kRows = 1, int C>
__device__ inline void flip_steps(const std::int8_t* metric, int d, const int (&errors)[C], int (&n)[C]) {
  constexpr int kWords = (C + 3) / 4, kMove = 2 * kLargestError;
  const int first = lane_id() * C;
  const bool holds = first < d;
  float g[C], cost[C];
  std::uint32_t bytes[kWords] = {};
#pragma unroll
  for (int j = 0; j < C; ++j) {
    cost[j] = __int2float_rn(kMove * metric[(holds ? first + j : 0) * (d + 1)]);
    bytes[j / 4] |= (static_cast<std::uint32_t>(holds ? errors[j] : 0) & 0xffu) << (8 * (j % 4));
  }
  multiply_rows<kRows>(metric, d, bytes, g);
#pragma unroll 1
  for (int flip = 0; flip < kFlips; ++flip) {
    float gain_up[C], gain_down[C], best = 0.0f;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const float up = __fmul_rn(static_cast<float>(kMove), __fadd_rn(cost[j], -g[j])),
                  down = __fmul_rn(static_cast<float>(kMove), __fadd_rn(cost[j], g[j]));
      gain_up[j] = holds && n[j] < kLargestError ? up : 0.0f;
      gain_down[j] = holds && n[j] > -kLargestError ? down : 0.0f;
      best = fminf(best, fminf(gain_up[j], gain_down[j]));
    }
    const std::uint32_t own = __float_as_uint(best), most = __reduce_max_sync(~0u, own);
    if (most <= 0x80000000u) break;
    std::uint32_t order = 0;  // 2 coordinates + (0: up, 1: down)
#pragma unroll
    for (int j = C - 1; j >= 0; --j) {
      const auto at = static_cast<std::uint32_t>(2 * (first + j));
      order = gain_down[j] == best ? at + 1 : order;
      order = gain_up[j] == best ? at : order;
    }
    const std::uint32_t taken = __reduce_min_sync(~0u, own == most ? order : ~0u);
    const int row = static_cast<int>(taken / 2), up = taken % 2 == 0 ? 1 : -1;
    load_metric_bytes<C>(metric + row * d + (holds ? first : 0), bytes);
    const auto minus = static_cast<float>(-2 * kMove * up);
#pragma unroll
    for (int j = 0; j < C; ++j) {
      if (first + j == row) n[j] += up;
      g[j] = __fmaf_rn(minus, signed_byte(bytes[j / 4] ^ 0x80808080u, j % 4), g[j]);
    }
  }
}

}  // namespace turboquant::kernels::cuda
