// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/tables.h"

// The rules that decide a page's bytes. Each is fp32 arithmetic in a fixed order without contraction, or
// integers, so that every machine writes the same bytes (docs/adr/0002). encode of a page, in order:
//
//  1. y = H (signs * x) for each of the call's keys and values (core/hadamard.h), not yet over sqrt(d). A
//     vector with a |y_e| that is not below 2^127 is a NaN token: codes 0, scale NaN, no part in any centre.
//  2. A page that gets its first counted token is opened: its bytes are zeroed and its centre is set, to
//       - the mean of the call's keys in it, if they are at least kCentreTokens, or at least 2 and there is
//         no earlier page: two rounds, first all keys, then those no nearer to 0 than to the first mean;
//         times fp32(1 / sqrt(d));
//       - else the mean of the previous page's decoded keys that chose that page's centre, if there are any;
//       - else 0.
//     Means add in position order and divide once. The centre is then rounded to step * int8.
//  3. A key's reference is the (stored) centre c = (step fp32(sqrt(d))) int8 if |y - c|^2 <= |y|^2, else 0.
//     Equality matters: all keys of a page without a centre have chosen it, so that the next page's centre
//     can be their mean.
//  4. u = y - reference (values: u = y), rounded to 11 bits (fp16's precision at any exponent); m = max
//  |u_e|,
//     level_e = |u_e| (255 / m), where the quotient is rounded to fp32 and to 11 bits, the product to 11 bits
//     and to an integer. m < 1e-30 codes as 0 with scale 0. A code has the sign bit of u_e.
//  5. For each candidate the thresholds of core/tables.h turn levels into magnitudes T_e. With A = sum
//  level_e
//     T_e and B = sum T_e^2 the candidate of the greatest A^2 / B wins, the first of equals: candidate j
//     beats i if (A_j A_j) B_i > (A_i A_i) B_j, products of the sums as fp32.
//  6. The stored scale is (m fp32(1 / sqrt(d))) (64 half_steps / 255) sqrt(N / B), N = sum level_e^2, as
//  fp16,
//     clamped to 65504.
//  7. The fringe gets y fp32(1 / sqrt(d)) as clamped fp16, every NaN as 0x7e00 (machines differ in the sign
//  of
//     inf - inf).
//
// Sums of squares are sums over a balanced binary tree of neighbours, zero-padded to a power of two: what
// a warp computes with in-lane sums and butterfly shuffles.
namespace turboquant::kernels {

static constexpr int kCentreTokens = 16;
static constexpr float kSmallest = 1e-30f;
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

// Rule 1: is it below 2^127?
static inline bool codable(float y) {
  return (core::bits_of_float(y) & 0x7fffffffu) < 0x7f000000u;
}

// Rule 4: the nearest number of 11 significant bits, ties to even.
static inline float round_to_11_bits(float x) {
  const std::uint32_t bits = core::bits_of_float(x);
  return core::float_of_bits((bits + 0xfffu + (bits >> 13 & 1u)) & 0xffffe000u);
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
