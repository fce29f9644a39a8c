// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/tables.h"

// The rules that decide a page's bytes. Each is fp32 arithmetic in a fixed order without contraction, or
// integers, so that every machine writes the same bytes (docs/adr/0002). encode of a page, in order:
//
//  1. y = H (signs * x) / sqrt(d) for each of the call's keys and values (core/hadamard.h). A vector whose
//     squared norm is not finite is a NaN token: codes 0, scale NaN, no part in any centre.
//  2. A page that gets its first counted token is opened: its bytes are zeroed and its centre is set, to
//       - the mean of the call's keys in it, if they are at least kCentreTokens, or at least 2 and there is
//         no earlier page: two rounds, first all keys, then those no nearer to 0 than to the first mean;
//       - else the mean of the previous page's decoded keys that chose that page's centre, if there are any;
//       - else 0.
//     Means add in position order and divide once. The centre is then rounded to step * int8.
//  3. A key's reference is the (stored) centre if |y - c|^2 <= |y|^2, else 0. Equality matters: all keys of a
//     page without a centre have chosen it, so that the next page's centre can be their mean.
//  4. u = y - reference (values: u = y), n = |u|, level_e = min(255, floor(|u_e| * (64 sqrt(d) / n))).
//     n < 1e-30 codes as 0 with scale 0.
//  5. For each search scale the thresholds of core/tables.h turn levels into magnitudes T_e, which stand
//     for centroids C_e. The scale whose sum of (2 level_e + 1 - C_e)^2 >> error_shift is least wins, the
//     first of equals.
//  6. The stored scale is 64 half_steps n / sqrt(B), B = sum T_e^2, as fp16, clamped to 65504.
//  7. The fringe gets y as clamped fp16, every NaN as 0x7e00 (machines differ in the sign of inf - inf).
//
// Sums of squares are sums over a balanced binary tree of neighbours, zero-padded to a power of two: what
// a warp computes with in-lane sums and butterfly shuffles.
namespace turboquant::kernels {

static constexpr int kCentreTokens = 16;
static constexpr float kSmallestNorm = 1e-30f;
static constexpr std::uint16_t kNanScale = 0x7e00;
static constexpr std::uint16_t kReferenceIsZero = 0x8000;  // in a key's scale

// What one head vector turns into. codes are as stored: sign bit above the magnitude index.
struct Encoded {
  std::uint16_t scale;
  std::uint8_t codes[512];
};

static inline bool finite(float x) {
  return (core::bits_of_float(x) & 0x7f800000u) != 0x7f800000u;
}

// Rule 7.
static inline std::uint16_t fringe_half(float y) {
  const std::uint16_t half = core::float_to_half_clamped(y);
  return (half & 0x7fffu) > 0x7c00u ? static_cast<std::uint16_t>(0x7e00) : half;
}

// sum x_e^2 over a tree of neighbours; scratch [512].
static inline float squared_norm(const float* x, int d, float* scratch) {
  int n = 1;
  while (n < d) n *= 2;
  for (int e = 0; e < d; ++e) scratch[e] = x[e] * x[e];
  for (int e = d; e < n; ++e) scratch[e] = 0.0f;
  for (; n > 1; n /= 2)
    for (int e = 0; e < n / 2; ++e) scratch[e] = scratch[2 * e] + scratch[2 * e + 1];
  return scratch[0];
}

}  // namespace turboquant::kernels
