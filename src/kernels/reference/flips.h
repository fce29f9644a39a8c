// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "core/tables.h"

// Rule 5a of kernels/encode_rules.h: codes of a key moved to neighbouring magnitudes, one at a time, where
// that lowers e^T M e. Integers, but for gains, which are fp32 products of two integers.
namespace turboquant::kernels::reference {

inline constexpr int kFlips = 8;           // at most
inline constexpr int kLargestError = 127;  // of a coordinate, as a sum begins with

// metric [d, d] of the head. Each coordinate is off by error [d] and at one of `places` places, place [d];
// steps [places] are these places' values in order. Moves coordinates to places beside theirs.
inline void flip_places(const std::int8_t* metric, const std::int32_t* error, const std::int32_t* steps,
                        int places, int d, std::int32_t* place) {
  constexpr int kMaxDim = 512;
  std::int32_t g[kMaxDim] = {};
  for (int f = 0; f < d; ++f)
    for (int e = 0; e < d; ++e) g[e] += error[f] * metric[f * d + e];
  for (int flip = 0; flip < kFlips; ++flip) {
    float best = 0.0f;
    int at = -1, to = 0;
    for (int e = 0; e < d; ++e)
      for (int next = place[e] + 1; next >= place[e] - 1; next -= 2) {
        if (next < 0 || next >= places) continue;
        const std::int32_t move = steps[next] - steps[place[e]];
        const float gain = static_cast<float>(move) * static_cast<float>(move * metric[e * d + e] - 2 * g[e]);
        if (!(gain < best)) continue;
        best = gain;
        at = e;
        to = next;
      }
    if (at < 0) break;
    const std::int32_t move = steps[to] - steps[place[at]];
    for (int e = 0; e < d; ++e) g[e] -= move * metric[at * d + e];
    place[at] = to;
  }
}

// level [d]; codes [d] as stored. N and B as in rule 5; returns the new B.
inline float flip_codes(const std::int8_t* metric, const int* level, int d, const core::CodeTable& table,
                        float sum_n, float sum_b, std::uint8_t* codes) {
  constexpr int kMaxDim = 512;
  const int m = table.magnitude_count;
  const float ratio = std::sqrt(sum_n / sum_b);
  std::int32_t steps[2 * core::kMaxMagnitudes];  // of places: signed magnitudes in order, in levels
  for (int k = 0; k < m; ++k) {
    const float step = ratio * static_cast<float>(table.magnitudes[k]);
    steps[m + k] = static_cast<std::int32_t>((step + 0x1p23f) - 0x1p23f);
    steps[m - 1 - k] = -steps[m + k];
  }
  std::int32_t error[kMaxDim], place[kMaxDim];
  for (int e = 0; e < d; ++e) {
    const bool negative = (codes[e] & m) != 0;
    const std::int32_t index = codes[e] & (m - 1), x = level[e];
    place[e] = negative ? m - 1 - index : m + index;
    const std::int32_t off = (negative ? -x : x) - steps[place[e]];
    error[e] = off > kLargestError ? kLargestError : off < -kLargestError ? -kLargestError : off;
  }
  flip_places(metric, error, steps, 2 * m, d, place);
  std::int32_t squares = 0;
  for (int e = 0; e < d; ++e) {
    const bool negative = place[e] < m;
    const int index = negative ? m - 1 - place[e] : place[e] - m;
    codes[e] = static_cast<std::uint8_t>(index | (negative ? m : 0));
    squares += std::int32_t{table.magnitudes[index]} * table.magnitudes[index];
  }
  return static_cast<float>(squares);
}

}  // namespace turboquant::kernels::reference
