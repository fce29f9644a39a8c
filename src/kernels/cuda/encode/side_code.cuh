// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/side_vector.cuh"

// Rules 4 to 6 for the vectors of a warp. Eight coordinates become a word of nibbles.
namespace turboquant::kernels::cuda {

inline constexpr int kSideWords = kSideDim / 8;
struct SideCodes {
  std::uint32_t words[kSideWords];  // Order says of which coordinates of the side
  std::uint32_t scale;              // fp16 bits
};

// Which pair of a side's is nibbles (0, 2), (1, 3), (4, 6), (5, 7) of word w.
struct KeyOrder {  // word 2 q + i: nibble 4 h + n of chunk q's word 2 side + i, coordinate 32 i + 16 h + 4 q
                   // + n
  static constexpr int pair(int w, int k) { return 16 * (w % 2) + 8 * (k / 2) + 2 * (w / 2) + k % 2; }
};
struct ValueOrder {  // in order
  static constexpr int pair(int w, int k) { return 4 * w + k; }
};

// Rules 4 to 6 of u, whose largest size is m and which is `scaled` next to the vector. One that has no codes
// gets 0. kLarge: m is known to be no less than 2^-7, and the vector finite.
template <class Order, bool kLarge>
__device__ inline SideCodes code_side(SideVector& u, float m, Rotated scaled, float rotation_scale,
                                      const Coder& coder) {
  // 255 / m must be fp16. Nothing is smaller than 2^-24.
  if (!kLarge && !__all_sync(~0u, m >= 0x1p-7f)) {
    const float by = m < 0x1p-7f ? 0x1p12f : 1.0f, again = m < 0x1p-19f ? 0x1p12f : 1.0f;
    const __half2 first = __float2half2_rn(by), second = __float2half2_rn(again);
#pragma unroll
    for (std::uint32_t& two : u) two = bits_of(__hmul2_rn(__hmul2_rn(as_half2(two), first), second));
    m *= by * again;
    scaled.factor *= by * again;
  }
  const float divisor = kLarge || m > 0.0f ? m : 1.0f;
  const std::uint32_t levels_per_unit =
      bits_of(__half2half2(__float2half_rn(divide_normal(static_cast<float>(core::kMaxLevel), divisor))));
  std::uint32_t pairs[kSideWords][4], levels[kSideWords][2], signs[kSideWords], sum_n = 0;
#pragma unroll
  for (int w = 0; w < kSideWords; ++w) {
    std::uint32_t own[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      own[k] = u[Order::pair(w, k)];
      pairs[w][k] = levels_of(own[k], levels_per_unit);
    }
    levels[w][0] = permute(pairs[w][0], pairs[w][1], 0x6240);  // of nibbles 0, 1, 2, 3
    levels[w][1] = permute(pairs[w][2], pairs[w][3], 0x6240);
    sum_n = __dp4a(levels[w][0], levels[w][0], __dp4a(levels[w][1], levels[w][1], sum_n));
    // A byte of ones for each negative coordinate, a nibble in the word.
    const std::uint32_t even = permute(own[0], own[2], 0xfdb9), odd = permute(own[1], own[3], 0xfdb9);
    signs[w] = select_bits(even, odd, 0x0f0f0f0fu);
  }
  sum_n += other_side(sum_n);

  SideCodes out;
  Best best;
#pragma unroll
  for (std::uint32_t& word : out.words) word = 0;
#pragma unroll 1
  for (int j = 0; j < coder.candidates; ++j) {
    const Candidate candidate = coder.of[j];
    std::uint32_t words[kSideWords], sums_a[2] = {}, sums_b[2] = {};  // two chains of sums each
#pragma unroll
    for (int w = 0; w < kSideWords; ++w) {
      std::uint32_t t[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) t[k] = indices_of(pairs[w][k], candidate);
      words[w] = permute(t[0], t[2], 0x6420) + (permute(t[1], t[3], 0x6420) << 4);
      const std::uint32_t low = magnitudes_at(candidate, words[w]),
                          high = magnitudes_at(candidate, words[w] >> 16);
      sums_a[w % 2] = __dp4a(low, levels[w][0], __dp4a(high, levels[w][1], sums_a[w % 2]));
      sums_b[w % 2] = __dp4a(low, low, __dp4a(high, high, sums_b[w % 2]));
    }
    const std::uint32_t sum_a = sums_a[0] + sums_a[1], sum_b = sums_b[0] + sums_b[1];
    const bool better = best.take(sum_a + other_side(sum_a), sum_b + other_side(sum_b));
#pragma unroll
    for (int w = 0; w < kSideWords; ++w) out.words[w] = better ? words[w] : out.words[w];
  }

  const bool has_codes = kLarge || (scaled.finite && m > 0.0f);
  m = __fmul_rn(m, one_over_power(scaled.factor));

  if (coder.bits == 4) {
#pragma unroll
    for (int w = 0; w < kSideWords; ++w) out.words[w] |= signs[w] & 0x88888888u;
  } else {
    const std::uint32_t sign_bits = 0x88888888u >> (4 - coder.bits);
#pragma unroll
    for (int w = 0; w < kSideWords; ++w)
      out.words[w] = code_indices(coder, out.words[w]) | (signs[w] & sign_bits);
  }
  if (!kLarge && !__all_sync(~0u, has_codes)) {
#pragma unroll
    for (std::uint32_t& word : out.words) word = has_codes ? word : 0;
  }

  const float unit = __fmul_rn(__fmul_rn(m, rotation_scale), coder.unit);
  const float n = __uint2float_rn(sum_n);
  const float root =
      square_root(coder.unbiased ? divide_normal(__fmul_rn(n, n), best.aa) : divide_normal(n, best.b));
  const float scale = fminf(__fmul_rn(unit, root), 65504.0f);  // finite where there are codes
  out.scale = has_codes ? __half_as_ushort(__float2half_rn(scale)) : scaled.finite ? 0u : kNanScale;
  return out;
}

}  // namespace turboquant::kernels::cuda
