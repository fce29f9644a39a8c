// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/portable/portable.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Sixteen 4-bit codes at a time to table steps: by a byte shuffle where the machine has one (4 loads and
// stores), else by a table of byte pairs (16 of them).
namespace turboquant::kernels::TQ_ISA {
namespace {

constexpr float steps_of(const core::CodeTable& table, int code) {
  const int magnitude = table.magnitudes[code & (table.magnitude_count - 1)];
  return static_cast<float>((code & table.magnitude_count) != 0 ? -magnitude : magnitude) /
         static_cast<float>(table.half_steps);
}

struct NibbleTable {
  float pairs[256][2];    // what a byte's two codes stand for, low nibble first
  std::int8_t whole[16];  // a code's steps are whole[code] + fraction
  float fraction;
};

constexpr NibbleTable make_nibbles(const core::CodeTable& table) {
  NibbleTable out{};
  out.fraction = table.half_steps == 2 ? 0.5f : 0.0f;
  for (int code = 0; code < 16; ++code)
    out.whole[code] = static_cast<std::int8_t>(steps_of(table, code) - out.fraction);
  for (int byte = 0; byte < 256; ++byte)
    for (int n = 0; n < 2; ++n) out.pairs[byte][n] = steps_of(table, byte >> (4 * n) & 15);
  return out;
}

// The 8 codes of the 4 bytes at `first`, then the 8 of those at `second`.
inline void unpack_sixteen(const std::uint8_t* first, const std::uint8_t* second, const NibbleTable& table,
                           float* out) {
#if defined(__AVX2__)
  std::uint32_t a, b;
  std::memcpy(&a, first, sizeof a);
  std::memcpy(&b, second, sizeof b);
  const __m128i bytes = _mm_cvtsi64_si128(static_cast<std::int64_t>(std::uint64_t{b} << 32 | a));
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(bytes, mask), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  const __m128i steps = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table.whole)),
                                         _mm_unpacklo_epi8(low, high));
  const __m256 fraction = _mm256_set1_ps(table.fraction);
  _mm256_storeu_ps(out, _mm256_add_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(steps)), fraction));
  _mm256_storeu_ps(
      out + 8, _mm256_add_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(steps, 8))), fraction));
#else
  for (int i = 0; i < 4; ++i) std::memcpy(out + 2 * i, table.pairs[first[i]], 2 * sizeof(float));
  for (int i = 0; i < 4; ++i) std::memcpy(out + 8 + 2 * i, table.pairs[second[i]], 2 * sizeof(float));
#endif
}

}  // namespace
}  // namespace turboquant::kernels::TQ_ISA
