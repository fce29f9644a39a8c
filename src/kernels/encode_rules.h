// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/tables.h"

// The rules that decide a page's bytes. Each is fp16 or fp32 arithmetic in a fixed order without contraction,
// or exact, so that every machine writes the same bytes (docs/adr/0002). encode of a page, in order:
//
//  1. Of each of the call's keys and values: x = signs * vector in fp32, y = H (f x) in fp16, not yet over
//     sqrt(d): f x is rounded to fp16, then every sum of the butterflies of core/hadamard.h; what a base
//     matrix makes of them is fp32, rounded to fp16 at the end. The power of two f is 1, unless max |x_e| is
//     so large that a sum could overflow or so small that fp16's smallest step, 2^-24, would show
//     (factor_of()). A vector with an |x_e| that is not below 2^112 is a NaN token: codes 0, scale NaN, no
//     part in any centre.
//  2. A page that gets its first counted token is opened: its bytes are zeroed and its centre is set, to
//       - the mean of the call's keys in it, if they are at least kCentreTokens, or at least 2 and there is
//         no earlier page: two rounds, first all keys, then those that choose the first mean (rule 3);
//       - else the mean of the previous page's decoded keys that chose that page's centre, if there are any;
//       - else 0.
//     A mean of the call's keys adds y_t w_t in fp16, each product with its sum rounded once, in position
//     order: those of slots 0 .. 15, of 16 .. 31, of 32 .. 47, of 48 .. 63; then two and two of these sums,
//     then both. w_t = 2^-6 F / f_t as fp16, F the least f of the call's keys in the page. The sum times
//     64 / F fp32(fp32(1 / sqrt(d)) / count) is the mean. The mean of decoded keys adds in fp32 in position
//     order and divides once. A centre c is rounded to step * n: step = fp16(max |c_e| fp32(1 / 127)), n_e
//     the integer next to c_e fp32(1 / step), at most 127.
//  2a. A centre that is the call's mean is then moved, if the head has a key_metric M (rule 5a), so that one
//     key of the page, the pivot, decodes to what it is. The pivot is that of the keys that are no NaN token
//     and choose this centre (rule 3) of which most lies along M's main direction v, the first of equals;
//     without one nothing moves. v: the row of M with the largest M_ee, the first of equals; then 3 times w =
//     M v in integers, v_e = rint(fp32(w_e) fp32(127 / max |w|)), or 0 where that maximum is. Of a key it has
//     |y.v - s f n.v| / f, fp64: products are exact, the difference is rounded. Rules 4 to 6 code the pivot
//     about this centre, to steps S T_e, S its stored scale / 64: these are its codes and its scale. What is
//     left, c'_e = fp32(fp32(y_e (1 / f)) fp32(1 / sqrt(d))) - S T_e, each operation in fp32, is the page's
//     centre: rounded as in rule 2 to step' n', then flipped as rule 5a does it, n'_e being a coordinate's
//     place of the 255 from -127 to 127, 254 each, and E_e = rint(254 (q_e - n'_e)), q_e = c'_e fp32(1 /
//     step'), what it is off by, in fp32 and clamped to +-127. All else in the page follows it.
//  3. A key's reference is the (stored) centre if 2 y.n >= s f n.n, s = step fp32(sqrt(d)), in exact
//     arithmetic: if it is no further from it than from 0. Equality matters: all keys of a page without a
//     centre have chosen it, so that the next page's centre can be their mean. Else it is 0.
//  4. u = y less the reference, whose coordinates are fp16(s n_e f) (values: u = y), rounded to fp16;
//     m = max |u_e|, level_e = |u_e| (255 / m), where the quotient is rounded to fp32 and to 11 bits, the
//     product to 11 bits and to an integer. m = 0 codes as 0 with scale 0. A code has the sign bit of u_e.
//  5. For each candidate the thresholds of core/tables.h turn levels into magnitudes T_e. With
//     A = sum level_e T_e and B = sum T_e^2 the candidate of the greatest A^2 / B wins, the first of equals:
//     candidate j beats i if (A_j A_j) B_i > (A_i A_i) B_j, products of the sums as fp32.
//  5a. A key of a head that has a key_metric M (symmetric, int8; attention.h) then changes codes. With
//     r = sqrt(N / B), fp32, a signed magnitude s is S = +-rint(r |s|) levels (rounded once before), and a
//     coordinate is off by E_e = its signed level less S_e, clamped to +-127; g = M E. At most 8 times: of
//     all moves D of one coordinate from its S to the next above or below, the one of the least fp32(D)
//     fp32(D M_ee - 2 g_e) is made, if that is below 0; the first coordinate of equals, and up before down.
//     Then g_f -= D M_ef for all f. B is that of the new magnitudes.
//  6. The stored scale is ((m / f) fp32(1 / sqrt(d))) (64 half_steps / 255) sqrt(N / B), N = sum level_e^2,
//  as
//     fp16, clamped to 65504. Of values of 3 and 2 bits it is not N / B but (N N) / (A A), each product and
//     the quotient rounded: <x, codes> is then |x|^2, where else |codes| is |x|.
//  7. The fringe gets H x, this time in fp32, times fp32(1 / sqrt(d)) as clamped fp16, every NaN as 0x7e00
//     (machines differ in the sign of inf - inf).
namespace turboquant::kernels {

static constexpr int kCentreTokens = 16;
static constexpr float kLargest = 0x1p112f;
static constexpr int kMeanSlots = 16;  // that are added up by themselves
static constexpr std::uint16_t kNanScale = 0x7e00;
static constexpr std::uint16_t kReferenceIsZero = 0x8000;  // in a key's scale

// What one head vector turns into. codes are as stored: sign bit above the magnitude index.
struct Encoded {
  std::uint16_t scale;
  std::uint8_t codes[512];
};

// Rule 1: f, where the largest |x_e| is `most` < kLargest.
static inline float factor_of(float most, int head_dim) {
  const int exponent = static_cast<int>(core::bits_of_float(most) >> 23);
  int above = 127 + 15;  // of the least power of two that is too large
  for (int n = 1; n < head_dim; n *= 2) --above;
  if (exponent < 127 - 100 || (exponent >= 127 - 12 && exponent < above)) return 1.0f;
  return core::float_of_bits(static_cast<std::uint32_t>(above + 126 - exponent) << 23);
}

// The nearest number of 11 significant bits, ties to even: fp16, where it is in its normal range or a sum of
// two fp16 numbers.
static inline float round_to_11_bits(float x) {
  const std::uint32_t bits = core::bits_of_float(x);
  return core::float_of_bits((bits + 0xfffu + (bits >> 13 & 1u)) & 0xffffe000u);
}
// The nearest fp16 number of one that is below 65,520.
static inline float round_to_half(float x) {
  const float small = (x + 0.75f) - 0.75f;  // steps of 2^-24
  return (core::bits_of_float(x) & 0x7fffffffu) < 0x38800000u
             ? core::float_of_bits(core::bits_of_float(small) | (core::bits_of_float(x) & 0x80000000u))
             : round_to_11_bits(x);
}

// Rule 2: a centre's step as fp16 bits; its coordinate in steps.
static inline std::uint16_t centre_step(float largest) {
  return core::float_to_half_clamped(largest * (1.0f / 127.0f));
}
static inline std::int8_t steps_in(float c, float inverse_step) {
  const float steps = c * inverse_step;
  const float magic = 0x1.8p23f;  // adding it rounds to an integer
  return static_cast<std::int8_t>(steps > 127.0f    ? 127.0f
                                  : steps < -127.0f ? -127.0f
                                                    : (steps + magic) - magic);
}
// Rule 2a: a coordinate of v.
static constexpr int kDirectionRounds = 3;
static inline std::int8_t direction_number(std::int32_t w, std::int32_t most) {
  return most == 0 ? std::int8_t{0} : steps_in(static_cast<float>(w), 127.0f / static_cast<float>(most));
}
// What a centre's coordinate n is off by, in units of which a step has so many: then half a step is the
// largest error that flips begin with.
static constexpr int kUnitsPerStep = 254;
static inline float centre_error(float c, float inverse_step, std::int8_t n) {
  const float off = static_cast<float>(kUnitsPerStep) * (c * inverse_step - static_cast<float>(n));
  const float magic = 0x1.8p23f;
  return off > 127.0f ? 127.0f : off < -127.0f ? -127.0f : (off + magic) - magic;
}
// Rule 4: a coordinate of the reference.
static inline float centre_half(float step, std::int8_t n, float factor) {
  const float c = step * static_cast<float>(n) * factor;
  return round_to_half(c > 65504.0f ? 65504.0f : c < -65504.0f ? -65504.0f : c);
}

static inline bool finite(float x) {
  return (core::bits_of_float(x) & 0x7f800000u) != 0x7f800000u;
}

// Rule 7.
static inline std::uint16_t fringe_half(float y) {
  const std::uint16_t half = core::float_to_half_clamped(y);
  return (half & 0x7fffu) > 0x7c00u ? static_cast<std::uint16_t>(0x7e00) : half;
}

// sum x_e^2 over a tree of neighbours, zero-padded to a power of two (balance); scratch [512].
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
