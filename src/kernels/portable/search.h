// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/encode_rules.h"
#include "kernels/portable/portable.h"

// Rules 1 and 4 to 6 of kernels/encode_rules.h on one vector, over arrays that compilers vectorise: 16-bit
// lanes for levels, centroids and magnitudes, 32-bit sums. Bound by the search: 8 scales x 7 compares a
// coordinate.
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
  alignas(64) std::int16_t level[kMaxDim], distance[kMaxDim], magnitude[kMaxDim];
  const float levels_per_unit =
      static_cast<float>(core::kLevelsPerSigma * std::sqrt(static_cast<double>(d))) / norm;
  for (int e = 0; e < d; ++e) {
    const float scaled = std::fabs(u[e]) * levels_per_unit;
    const float clamped =
        scaled < static_cast<float>(core::kMaxLevel) ? scaled : static_cast<float>(core::kMaxLevel);
    level[e] = static_cast<std::int16_t>(static_cast<std::int32_t>(clamped));
  }
  std::int32_t best = INT32_MAX;
  int best_scale = 0;
  for (int s = 0; s < core::kSearchScales; ++s) {
    for (int e = 0; e < d; ++e) {
      std::int16_t centroid = table.centroids[s][0];
      for (int k = 0; k < kBoundaries; ++k) {
        const auto step = static_cast<std::int16_t>(table.centroids[s][k + 1] - table.centroids[s][k]);
        centroid = static_cast<std::int16_t>(
            centroid + (level[e] >= static_cast<std::int16_t>(table.thresholds[s][k]) ? step : 0));
      }
      distance[e] = static_cast<std::int16_t>(2 * level[e] + 1 - centroid);
    }
    std::int32_t error = 0;
    for (int e = 0; e < d; ++e)
      error += static_cast<std::int32_t>(distance[e]) * static_cast<std::int32_t>(distance[e]) >>
               table.error_shift;
    if (error < best) {
      best = error;
      best_scale = s;
    }
  }
  for (int e = 0; e < d; ++e) {
    std::int16_t code = 0, m = table.magnitudes[0];
    for (int k = 0; k < kBoundaries; ++k) {
      const bool above = level[e] >= static_cast<std::int16_t>(table.thresholds[best_scale][k]);
      const auto step = static_cast<std::int16_t>(table.magnitudes[k + 1] - table.magnitudes[k]);
      code = static_cast<std::int16_t>(code + (above ? 1 : 0));
      m = static_cast<std::int16_t>(m + (above ? step : 0));
    }
    magnitude[e] = m;
    out.codes[e] = static_cast<std::uint8_t>(code + (u[e] < 0.0f ? kBoundaries + 1 : 0));
  }
  std::int32_t norm_of_codes = 0;
  for (int e = 0; e < d; ++e)
    norm_of_codes += static_cast<std::int32_t>(magnitude[e]) * static_cast<std::int32_t>(magnitude[e]);
  const float unit = core::kScaleUnit * static_cast<float>(table.half_steps);
  out.scale = core::float_to_half_clamped(unit * norm / std::sqrt(static_cast<float>(norm_of_codes)));
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
