// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "kernels/encode_rules.h"
#include "kernels/reference/flips.h"
#include "kernels/reference/reference.h"

// Rule 2a of kernels/encode_rules.h: the centre moved by what the codes of one key, the pivot, leave of it.
namespace turboquant::kernels::reference {

// v [d], the direction of a key's residual by which a pivot is chosen: nearly M's first eigenvector.
inline void main_direction(const std::int8_t* metric, int d, std::int8_t* v) {
  constexpr int kMaxDim = 512;
  int at = 0;
  for (int e = 1; e < d; ++e)
    if (metric[e * d + e] > metric[at * d + at]) at = e;
  for (int e = 0; e < d; ++e) v[e] = metric[at * d + e];
  for (int round = 0; round < kDirectionRounds; ++round) {
    std::int32_t w[kMaxDim], most = 0;
    for (int e = 0; e < d; ++e) {
      w[e] = 0;
      for (int f = 0; f < d; ++f) w[e] += std::int32_t{metric[e * d + f]} * v[f];
      if (std::abs(w[e]) > most) most = std::abs(w[e]);
    }
    for (int e = 0; e < d; ++e) v[e] = direction_number(w[e], most);
  }
}
// How much of a key about a centre, step n (step is rule 3's s), lies along v.
inline double pivot_score(const float* y, float factor, float step, const std::int8_t* n,
                          const std::int8_t* v, int d) {
  double key = 0.0, centre = 0.0;
  for (int e = 0; e < d; ++e) {
    key += static_cast<double>(y[e]) * v[e];
    centre += static_cast<double>(n[e]) * v[e];
  }
  const double of_centre = static_cast<double>(step) * static_cast<double>(factor) * centre;
  return std::fabs(key - of_centre) * (1.0 / static_cast<double>(factor));
}

// c [d]: what is left of the pivot's y [d]. inverse_root is 1 / sqrt(d).
inline void left_of_pivot(const float* y, float factor, const Encoded& token, const core::CodeTable& table,
                          float inverse_root, int d, float* c) {
  const float step = core::half_to_float(token.scale) * (1.0f / core::kScaleUnit);
  for (int e = 0; e < d; ++e)
    c[e] = y[e] * (1.0f / factor) * inverse_root - step * signed_steps(table, token.codes[e]);
}

// Flips the stored numbers n [d] of a centre c [d], whose step is `step`.
inline void flip_centre(const std::int8_t* metric, const float* c, float step, int d, std::int8_t* n) {
  constexpr int kLargest = 127, kPlaces = 2 * kLargest + 1, kMaxDim = 512;
  std::int32_t steps[kPlaces], error[kMaxDim], place[kMaxDim];
  for (int k = 0; k < kPlaces; ++k) steps[k] = kUnitsPerStep * (k - kLargest);
  const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
  for (int e = 0; e < d; ++e) {
    error[e] = static_cast<std::int32_t>(centre_error(c[e], inverse, n[e]));
    place[e] = n[e] + kLargest;
  }
  flip_places(metric, error, steps, kPlaces, d, place);
  for (int e = 0; e < d; ++e) n[e] = static_cast<std::int8_t>(place[e] - kLargest);
}

}  // namespace turboquant::kernels::reference
