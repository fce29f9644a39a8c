// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

#include "core/tables.h"
#include "kernels/portable/portable.h"

// Rule 5a of kernels/encode_rules.h over arrays that compilers vectorise. Bound by M E, head_dim^2 products
// of 8 bits each.
namespace turboquant::kernels::TQ_ISA {
namespace {

constexpr int kFlips = 8;           // at most
constexpr int kLargestError = 127;  // of a coordinate, as a sum begins with

// Coordinates of a key, each at a place: one of 2 magnitude_count signed magnitudes in ascending order; or of
// a centre, each one of 255 numbers.
struct Flips {
  alignas(64) std::int16_t error[kMaxDim];
  alignas(64) std::int32_t g[kMaxDim], diagonal[kMaxDim];
  alignas(64) std::int32_t up[kMaxDim],
      down[kMaxDim];  // moves to the places beside; 0: there is none
  alignas(64) float gain[kMaxDim];
  std::uint8_t place[kMaxDim];
};

// g = M E. Two products of 8 bits together fit 16.
inline void multiply(const std::int8_t* metric, int d, Flips& key) {
  for (int e = 0; e < d; ++e) key.g[e] = 0;
  for (int f = 0; f < d; f += 4) {
    const std::int8_t *row = metric + f * d, *row1 = row + d, *row2 = row1 + d, *row3 = row2 + d;
    const std::int16_t x = key.error[f], x1 = key.error[f + 1], x2 = key.error[f + 2], x3 = key.error[f + 3];
    for (int e = 0; e < d; ++e) {
      const auto a = static_cast<std::int16_t>(x * row[e] + x1 * row1[e]);
      const auto b = static_cast<std::int16_t>(x2 * row2[e] + x3 * row3[e]);
      key.g[e] += std::int32_t{a} + std::int32_t{b};
    }
  }
}

inline float gain_of(std::int32_t move, std::int32_t diagonal, std::int32_t g) {
  return static_cast<float>(move) * static_cast<float>(move * diagonal - 2 * g);
}

// The least gain of all moves, and that of each coordinate's two.
inline float least_gain(Flips& key, int d) {
  float lanes[16] = {};  // head_dim is a multiple of 16
  for (int e = 0; e < d; e += 16)
    for (int k = 0; k < 16; ++k) {
      const float up = gain_of(key.up[e + k], key.diagonal[e + k], key.g[e + k]);
      const float down = gain_of(key.down[e + k], key.diagonal[e + k], key.g[e + k]);
      const float less = down < up ? down : up;
      key.gain[e + k] = less;
      lanes[k] = less < lanes[k] ? less : lanes[k];
    }
  for (int half = 8; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lanes[k] = lanes[k + half] < lanes[k] ? lanes[k + half] : lanes[k];
  return lanes[0];
}

// metric [d, d] of the head; error and place are set. steps [places]: the places' values in order. Moves
// coordinates to places beside theirs.
inline void flip_places(const std::int8_t* metric, const std::int32_t* steps, int places, int d, Flips& key) {
  const auto put = [&](int e, int place) {
    key.place[e] = static_cast<std::uint8_t>(place);
    key.up[e] = place + 1 < places ? steps[place + 1] - steps[place] : 0;
    key.down[e] = place > 0 ? steps[place - 1] - steps[place] : 0;
  };
  for (int e = 0; e < d; ++e) {
    put(e, key.place[e]);
    key.diagonal[e] = metric[e * d + e];
  }
  multiply(metric, d, key);
  for (int flip = 0; flip < kFlips; ++flip) {
    const float least = least_gain(key, d);
    if (!(least < 0.0f)) break;
    int at = 0;
    while (key.gain[at] != least) ++at;
    const bool up = gain_of(key.up[at], key.diagonal[at], key.g[at]) == least;
    const std::int32_t move = up ? key.up[at] : key.down[at];
    const std::int8_t* row = metric + at * d;
    for (int e = 0; e < d; ++e) key.g[e] -= move * row[e];
    put(at, key.place[at] + (up ? 1 : -1));
  }
}

// level [d]; codes [d] as stored. N and B as in rule 5; returns the new B.
inline float flip_codes(const std::int8_t* metric, const std::int16_t* level, int d,
                        const core::CodeTable& table, float sum_n, float sum_b, std::uint8_t* codes) {
  const int m = table.magnitude_count;
  const float ratio = std::sqrt(sum_n / sum_b);
  std::int32_t steps[2 * core::kMaxMagnitudes];  // of places, in levels
  for (int k = 0; k < m; ++k) {
    const float step = ratio * static_cast<float>(table.magnitudes[k]);
    steps[m + k] = static_cast<std::int32_t>((step + 0x1p23f) - 0x1p23f);
    steps[m - 1 - k] = -steps[m + k];
  }
  Flips key;
  for (int e = 0; e < d; ++e) {
    const bool negative = (codes[e] & m) != 0;
    const int index = codes[e] & (m - 1), x = level[e];
    key.place[e] = static_cast<std::uint8_t>(negative ? m - 1 - index : m + index);
    const std::int32_t off = (negative ? -x : x) - steps[key.place[e]];
    key.error[e] = static_cast<std::int16_t>(off > kLargestError    ? kLargestError
                                             : off < -kLargestError ? -kLargestError
                                                                    : off);
  }
  flip_places(metric, steps, 2 * m, d, key);
  std::int32_t squares = 0;
  for (int e = 0; e < d; ++e) {
    const int place = key.place[e];
    const bool negative = place < m;
    const int index = negative ? m - 1 - place : place - m;
    codes[e] = static_cast<std::uint8_t>(index | (negative ? m : 0));
    squares += std::int32_t{table.magnitudes[index]} * table.magnitudes[index];
  }
  return static_cast<float>(squares);
}

}  // namespace
}  // namespace turboquant::kernels::TQ_ISA
