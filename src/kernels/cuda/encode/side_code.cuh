// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/codes_of_levels.cuh"
#include "kernels/cuda/encode/exact.cuh"
#include "kernels/cuda/encode/side_vector.cuh"

// Rules 4 to 6 for the vectors of a warp. Eight coordinates become a word of nibbles.
namespace turboquant::kernels::cuda {

inline constexpr int kSideWords = kSideDim / 8;
struct SideCodes {
  std::uint32_t words[kSideWords];  // Order says of which coordinates of the side
  std::uint32_t scale;              // fp16 bits
};

// Which coordinate of a side is nibble n of word w.
struct KeyOrder {  // word 2 q + i: nibble 4 h + n of chunk q's word 2 side + i
  static constexpr int coordinate(int w, int n) { return 32 * (w % 2) + 16 * (n / 4) + 4 * (w / 2) + n % 4; }
};
struct ValueOrder {  // in order
  static constexpr int coordinate(int w, int n) { return 8 * w + n; }
};

// 1 / 2^n.
__device__ inline float one_over_power(float power) {
  return __uint_as_float((254u << 23) - __float_as_uint(power));
}
// The larger sizes of pairs; NaN where there is one.
__device__ inline __half2 larger_pair(__half2 a, __half2 b) {
  return __hmax2_nan(__habs2(a), __habs2(b));
}

// A side's coordinates times `factor`, rounded to 11 bits, and their vector's largest size. Of a word: pairs
// of nibbles (0, 2), (1, 3), (4, 6), (5, 7).
using SidePairs = std::uint32_t[kSideWords][4];
template <class Order>
__device__ inline float round_side(const SideVector& u, float factor, SidePairs& pairs) {
  __half2 largest[2] = {};
#pragma unroll
  for (int w = 0; w < kSideWords; ++w)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int n = 4 * (k / 2) + k % 2;
      const float a = u[Order::coordinate(w, n)], b = u[Order::coordinate(w, n + 2)];
      const __half2 pair = __floats2half2_rn(a * factor, b * factor);
      largest[k % 2] = larger_pair(largest[k % 2], pair);
      pairs[w][k] = bits_of(pair);
    }
  __half2 most = larger_pair(largest[0], largest[1]);
  most = larger_pair(most, __lowhigh2highlow(most));
  return __low2float(larger_pair(most, as_half2(other_side(bits_of(most)))));
}

// Rules 4 to 6 of u. A vector that has no codes gets 0.
template <class Order>
__device__ inline SideCodes code_side(const SideVector& u, float rotation_scale, const Coder& coder) {
  SidePairs pairs;
  float factor = 1.0f, m = round_side<Order>(u, 1.0f, pairs);
  // fp16 has 11 bits of what it holds as a normal number, and what it does not is level 0 if m is above 2^-5.
  if (!__all_sync(~0u, m > 0x1p-5f && m < 0x1p15f)) {
    const float largest = side_largest(u);
    const std::uint32_t exponent = __float_as_uint(largest) >> 23;  // m's will be 2^0 or 2^1
    factor = exponent > 0 && exponent < 254 ? __uint_as_float((254 - exponent) << 23) : 1.0f;
    m = round_side<Order>(u, factor, pairs);
    if (!(largest < kLargest)) m = __uint_as_float(0x7fffffffu);
  }
  const std::uint32_t levels_per_unit =
      bits_of(__half2half2(__float2half_rn(divide_normal(static_cast<float>(core::kMaxLevel), m))));
  std::uint32_t arguments[kSideWords][4], levels[kSideWords][2], signs[kSideWords], sum_n = 0;
#pragma unroll
  for (int w = 0; w < kSideWords; ++w) {
    std::uint32_t pair_levels[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      pair_levels[k] = levels_of(pairs[w][k], levels_per_unit);
      arguments[w][k] = curve_argument(pair_levels[k], coder);
    }
    levels[w][0] = __byte_perm(pair_levels[0], pair_levels[1], 0x6240);  // of nibbles 0, 1, 2, 3
    levels[w][1] = __byte_perm(pair_levels[2], pair_levels[3], 0x6240);
    sum_n = __dp4a(levels[w][0], levels[w][0], __dp4a(levels[w][1], levels[w][1], sum_n));
    const std::uint32_t even = __byte_perm(pairs[w][0], pairs[w][2], 0x7531),
                        odd = __byte_perm(pairs[w][1], pairs[w][3], 0x7531);
    signs[w] = (even >> 4 & 0x08080808u) | (odd & 0x80808080u);
  }
  sum_n += other_side(sum_n);

  SideCodes out;
  Best best;
#pragma unroll
  for (std::uint32_t& word : out.words) word = 0;
#pragma unroll 1
  for (int j = 0; j < coder.candidates; ++j) {
    const std::uint32_t c0 = coder.c0[j], c1 = coder.c1[j];
    std::uint32_t words[kSideWords], sums_a[2] = {}, sums_b[2] = {};  // two chains of sums each
#pragma unroll
    for (int w = 0; w < kSideWords; ++w) {
      std::uint32_t t[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) t[k] = indices_of(arguments[w][k], c0, c1);
      words[w] = __byte_perm(t[0], t[2], 0x6420) + (__byte_perm(t[1], t[3], 0x6420) << 4);
      const std::uint32_t low = magnitudes_at(coder, words[w]), high = magnitudes_at(coder, words[w] >> 16);
      sums_a[w % 2] = __dp4a(low, levels[w][0], __dp4a(high, levels[w][1], sums_a[w % 2]));
      sums_b[w % 2] = __dp4a(low, low, __dp4a(high, high, sums_b[w % 2]));
    }
    const std::uint32_t sum_a = sums_a[0] + sums_a[1], sum_b = sums_b[0] + sums_b[1];
    const bool better = best.take(sum_a + other_side(sum_a), sum_b + other_side(sum_b));
#pragma unroll
    for (int w = 0; w < kSideWords; ++w) out.words[w] = better ? words[w] : out.words[w];
  }

  m = __fmul_rn(m, one_over_power(factor));
  const bool finite = is_finite(m), has_codes = finite && !(m < kSmallest);

  if (coder.bits == 4) {
#pragma unroll
    for (int w = 0; w < kSideWords; ++w) out.words[w] |= signs[w];
  } else {
    const int shift = 4 - coder.bits;
#pragma unroll
    for (int w = 0; w < kSideWords; ++w) out.words[w] |= signs[w] >> shift;
  }
  if (!has_codes) {
#pragma unroll
    for (std::uint32_t& word : out.words) word = 0;
  }

  const float unit = __fmul_rn(__fmul_rn(m, rotation_scale), coder.unit);
  const float root = square_root(divide_normal(__uint2float_rn(sum_n), best.b));
  out.scale = has_codes ? half_bits_clamped(__fmul_rn(unit, root)) : finite ? 0u : kNanScale;
  return out;
}

}  // namespace turboquant::kernels::cuda
