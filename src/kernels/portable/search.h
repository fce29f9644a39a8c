// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/encode_rules.h"
#include "kernels/portable/flips.h"
#include "kernels/portable/portable.h"

// Rules 4 to 6 of kernels/encode_rules.h on one vector, over arrays that compilers vectorise: 16-bit lanes
// for levels and magnitudes, 32-bit sums. Bound by the candidates: up to 6 x 3 or 3 x 7 compares a
// coordinate.
namespace turboquant::kernels::TQ_ISA {
namespace {

struct Searched {
  std::uint16_t scale;
  std::uint8_t codes[kMaxDim];
};

inline float one_over_root_of(int d) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
}
// max |u_e|.
inline float largest_size(const float* u, int d) {
  float lanes[16] = {};  // head_dim is a multiple of 16
  for (int e = 0; e < d; e += 16)
    for (int k = 0; k < 16; ++k) {
      const float size = std::fabs(u[e + k]);
      lanes[k] = size > lanes[k] ? size : lanes[k];
    }
  for (int k = 1; k < 16; ++k) lanes[0] = lanes[k] > lanes[0] ? lanes[k] : lanes[0];
  return lanes[0];
}

// kBits picks the table's size at compile time; the table its contents.
template <int kBits>
inline void search(const float* u, float largest, float factor, int d, const core::CodeTable& table,
                   const std::int8_t* metric, Searched& out) {
  constexpr int kBoundaries = (1 << (kBits - 1)) - 1;
  alignas(64) std::int16_t level[kMaxDim], magnitude[kMaxDim], code[kMaxDim];
  const float levels_per_unit = round_to_11_bits(static_cast<float>(core::kMaxLevel) / largest);
  std::int32_t sum_n = 0;
  for (int e = 0; e < d; ++e) {
    // Adding 2^23 leaves an integer in the low bits.
    const std::uint32_t rounded =
        core::bits_of_float(round_to_11_bits(std::fabs(u[e]) * levels_per_unit) + 0x1p23f) & 0xffu;

    level[e] = static_cast<std::int16_t>(rounded);
  }
  for (int e = 0; e < d; ++e)
    sum_n += static_cast<std::int32_t>(level[e]) * static_cast<std::int32_t>(level[e]);
  float best_a = 0.0f, best_b = 1.0f;
  for (int j = 0; j < table.candidates; ++j) {
    for (int e = 0; e < d; ++e) {
      std::int16_t c = 0, m = table.magnitudes[0];
      for (int k = 0; k < kBoundaries; ++k) {
        const bool above = level[e] >= static_cast<std::int16_t>(table.thresholds[j][k]);
        const auto step = static_cast<std::int16_t>(table.magnitudes[k + 1] - table.magnitudes[k]);
        c = static_cast<std::int16_t>(c + (above ? 1 : 0));
        m = static_cast<std::int16_t>(m + (above ? step : 0));
      }
      code[e] = c;
      magnitude[e] = m;
    }
    std::int32_t sum_a = 0, sum_b = 0;
    for (int e = 0; e < d; ++e) {
      sum_a += static_cast<std::int32_t>(level[e]) * static_cast<std::int32_t>(magnitude[e]);
      sum_b += static_cast<std::int32_t>(magnitude[e]) * static_cast<std::int32_t>(magnitude[e]);
    }
    const float a = static_cast<float>(sum_a) * static_cast<float>(sum_a), b = static_cast<float>(sum_b);
    if (!(a * best_b > best_a * b)) continue;
    best_a = a;
    best_b = b;
    for (int e = 0; e < d; ++e)
      out.codes[e] =
          static_cast<std::uint8_t>(code[e] + (core::bits_of_float(u[e]) >> 31 != 0 ? kBoundaries + 1 : 0));
  }
  const auto n = static_cast<float>(sum_n);
  if (metric != nullptr) best_b = flip_codes(metric, level, d, table, n, best_b, out.codes);
  out.scale =
      core::float_to_half_clamped(largest * (1.0f / factor) * one_over_root_of(d) * core::scale_unit(table) *
                                  std::sqrt(table.unbiased ? n * n / best_a : n / best_b));
}

// metric [d, d] or null.
inline void search(const float* u, float factor, int d, const core::CodeTable& table,
                   const std::int8_t* metric, Searched& out) {
  const float largest = largest_size(u, d);
  if (largest == 0.0f) {
    out.scale = 0;
    for (int e = 0; e < d; ++e) out.codes[e] = 0;
  } else if (table.bits == 4) {
    search<4>(u, largest, factor, d, table, metric, out);
  } else if (table.bits == 3) {
    search<3>(u, largest, factor, d, table, metric, out);
  } else {
    search<2>(u, largest, factor, d, table, metric, out);
  }
}

}  // namespace
}  // namespace turboquant::kernels::TQ_ISA
