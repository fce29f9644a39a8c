// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/encode_rules.h"
#include "kernels/portable/portable.h"

// Rules 1 and 4 to 6 of kernels/encode_rules.h on one vector, over arrays that compilers vectorise: 16-bit
// lanes for levels and magnitudes, 32-bit sums. Bound by the search: 9 scales x 7 compares a coordinate.
namespace turboquant::kernels::TQ_ISA {
namespace {

// squared_norm() with whole vectors: neighbours are added by splitting pairs into evens and odds.
inline float tree_squared_norm(const float* x, int d) {
  alignas(64) float a[kMaxDim], b[kMaxDim / 2];
  int n = 16;
  while (n < d) n *= 2;
  for (int e = 0; e < d; ++e) a[e] = x[e] * x[e];
  for (int e = d; e < n; ++e) a[e] = 0.0f;
  float *from = a, *to = b;
  for (; n > 1; n /= 2) {
    for (int e = 0; e < n / 2; ++e) to[e] = from[2 * e] + from[2 * e + 1];
    float* const swapped = from;
    from = to;
    to = swapped;
  }
  return from[0];
}

struct Searched {
  std::uint16_t scale;
  std::uint8_t codes[kMaxDim];
};

// kBits picks the table's size at compile time; the table its contents.
template <int kBits>
inline void search(const float* u, float norm, int d, const core::CodeTable& table, Searched& out) {
  constexpr int kBoundaries = (1 << (kBits - 1)) - 1;
  alignas(64) std::int16_t level[kMaxDim], twice[kMaxDim], magnitude[kMaxDim];
  const float levels_per_unit =
      static_cast<float>(core::kLevelsPerSigma * std::sqrt(static_cast<double>(d))) / norm;
  for (int e = 0; e < d; ++e) {
    const float scaled = std::fabs(u[e]) * levels_per_unit;
    const float clamped =
        scaled < static_cast<float>(core::kMaxLevel) ? scaled : static_cast<float>(core::kMaxLevel);
    level[e] = static_cast<std::int16_t>(static_cast<std::int32_t>(clamped));
    twice[e] = static_cast<std::int16_t>(2 * level[e] + 1);
  }
  float best = -1.0f, best_norm = 1.0f;
  int best_scale = 0;
  for (int s = 0; s < core::kSearchScales; ++s) {
    for (int e = 0; e < d; ++e) {
      std::int16_t m = table.magnitudes[0];
      for (int k = 0; k < kBoundaries; ++k) {
        const auto step = static_cast<std::int16_t>(table.magnitudes[k + 1] - table.magnitudes[k]);
        m = static_cast<std::int16_t>(
            m + (level[e] >= static_cast<std::int16_t>(table.thresholds[s][k]) ? step : 0));
      }
      magnitude[e] = m;
    }
    std::int32_t a = 0, b = 0;
    for (int e = 0; e < d; ++e) {
      a += static_cast<std::int32_t>(twice[e]) * static_cast<std::int32_t>(magnitude[e]);
      b += static_cast<std::int32_t>(magnitude[e]) * static_cast<std::int32_t>(magnitude[e]);
    }
    const float score = static_cast<float>(a) * static_cast<float>(a) / static_cast<float>(b);
    if (score > best) {
      best = score;
      best_norm = static_cast<float>(b);
      best_scale = s;
    }
  }
  for (int e = 0; e < d; ++e) {
    int code = u[e] < 0.0f ? kBoundaries + 1 : 0;
    for (int k = 0; k < kBoundaries; ++k) code += level[e] >= table.thresholds[best_scale][k] ? 1 : 0;
    out.codes[e] = static_cast<std::uint8_t>(code);
  }
  const float unit = core::kScaleUnit * static_cast<float>(table.half_steps);
  out.scale = core::float_to_half_clamped(unit * norm / std::sqrt(best_norm));
}

inline void search(const float* u, float norm, int d, const core::CodeTable& table, Searched& out) {
  if (norm < kSmallestNorm) {
    out.scale = 0;
    for (int e = 0; e < d; ++e) out.codes[e] = 0;
  } else if (table.bits == 4) {
    search<4>(u, norm, d, table, out);
  } else if (table.bits == 3) {
    search<3>(u, norm, d, table, out);
  } else {
    search<2>(u, norm, d, table, out);
  }
}

}  // namespace
}  // namespace turboquant::kernels::TQ_ISA
