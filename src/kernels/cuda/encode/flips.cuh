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

// metric [d, d] of the head; codes: indices without signs, which become codes as stored. Returns the new B.
template <int C>
__device__ inline float flip_codes(const std::int8_t* metric, const std::uint32_t (&levels)[C],
                                   const float (&u)[C], int d, const Coder& coder, std::uint32_t sum_n,
                                   float sum_b, std::uint32_t (&codes)[C]) {
  const Places places{coder.of[0], 1 << (coder.bits - 1),
                      __fsqrt_rn(__fdiv_rn(__uint2float_rn(sum_n), sum_b))};
  const int first = lane_id() * C;
  const bool holds = first < d;
  int place[C], error[C], g[C], diagonal[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const bool negative = __float_as_uint(u[j]) >> 31 != 0;
    const int index = static_cast<int>(codes[j]), level = static_cast<int>(levels[j]);
    place[j] = negative ? -1 - index : index;
    const int off = (negative ? -level : level) - places.steps(place[j]);
    error[j] = holds ? max(-kLargestError, min(kLargestError, off)) : 0;
    diagonal[j] = holds ? metric[(first + j) * d + first + j] : 0;
    g[j] = 0;
  }
  const auto subtract_row = [&](int e, int times) {
    if (!holds) return;
#pragma unroll
    for (int j = 0; j < C; ++j) g[j] -= times * metric[e * d + first + j];
  };
#pragma unroll 1
  for (int lane = 0; lane * C < d; ++lane)
#pragma unroll
    for (int j = 0; j < C; ++j) subtract_row(lane * C + j, -__shfl_sync(~0u, error[j], lane));

#pragma unroll 1
  for (int flip = 0; flip < kFlips; ++flip) {
    float best = 0.0f;
    int at = 0, to = 0, move = 0;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const int here = places.steps(place[j]);
#pragma unroll
      for (int by = 1; by >= -1; by -= 2) {
        const int difference = places.steps(place[j] + by) - here;
        const float gain =
            __fmul_rn(__int2float_rn(difference), __int2float_rn(difference * diagonal[j] - 2 * g[j]));
        if (!holds || !places.has(place[j] + by) || !(gain < best)) continue;
        best = gain;
        at = j;
        to = place[j] + by;
        move = difference;
      }
    }
    // Bits of numbers below 0 are in reverse order.
    const std::uint32_t own = best < 0.0f ? __float_as_uint(best) : 0u, most = __reduce_max_sync(~0u, own);
    if (most == 0) break;
    const int winner = __ffs(static_cast<int>(__ballot_sync(~0u, own == most))) - 1;
    const int e = __shfl_sync(~0u, first + at, winner);
    subtract_row(e, __shfl_sync(~0u, move, winner));
    if (lane_id() == winner)
#pragma unroll
      for (int j = 0; j < C; ++j) place[j] = j == at ? to : place[j];
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
