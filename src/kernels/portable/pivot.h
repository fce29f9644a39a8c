// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/portable/centre.h"

// Rule 2a of kernels/encode_rules.h: a page's own centre, moved by what the codes of one key, the pivot,
// leave of it. Bound by M v, three times, and M E, head_dim^2 products each: as much as four keys more.
namespace turboquant::kernels::TQ_ISA {
namespace {

// v [d]: nearly M's first eigenvector.
inline void main_direction(const std::int8_t* metric, int d, std::int8_t* v) {
  int at = 0;
  for (int e = 1; e < d; ++e)
    if (metric[e * d + e] > metric[at * d + at]) at = e;
  for (int e = 0; e < d; ++e) v[e] = metric[at * d + e];
  for (int round = 0; round < kDirectionRounds; ++round) {
    alignas(64) std::int32_t w[kMaxDim] = {};
    for (int f = 0; f < d; ++f) {
      const std::int8_t* row = metric + f * d;
      const std::int32_t x = v[f];
      for (int e = 0; e < d; ++e) w[e] += x * std::int32_t{row[e]};
    }
    std::int32_t most = 0;
    for (int e = 0; e < d; ++e) {
      const std::int32_t size = w[e] < 0 ? -w[e] : w[e];
      most = size > most ? size : most;
    }
    for (int e = 0; e < d; ++e) v[e] = direction_number(w[e], most);
  }
}

// The slot of the pivot among [begin, end), next to the centre as it is so far; -1: the centre stays.
inline int pivot_of(const Work& work, int begin, int end, const Centre& centre, const std::int8_t* metric,
                    int d) {
  std::int8_t v[kMaxDim];
  main_direction(metric, d, v);
  std::int32_t centre_along = 0;
  for (int e = 0; e < d; ++e) centre_along += std::int32_t{centre.n[e]} * std::int32_t{v[e]};
  int pivot = -1;
  double most = -1.0;
  for (int t = begin; t < end; ++t) {
    const float *y = work.y + t * d, factor = work.factor[t];
    if (!work.is_finite[t] || !centre.is_chosen_by(y, factor, d)) continue;
    const double of_centre =
        static_cast<double>(centre.step) * static_cast<double>(factor) * static_cast<double>(centre_along);
    const double score = std::fabs(exact_product(y, v, d) - of_centre) * (1.0 / static_cast<double>(factor));
    if (!(score > most)) continue;
    most = score;
    pivot = t;
  }
  return pivot;
}

// c [d]: what is left of the pivot's y [d].
inline void left_of_pivot(const float* y, float factor, const Searched& token, const core::CodeTable& table,
                          int d, float* c) {
  const float step = core::half_to_float(token.scale) * (1.0f / core::kScaleUnit);
  const float inverse_factor = 1.0f / factor, inverse_root = one_over_root_of(d);
  float steps[2 * core::kMaxMagnitudes];  // of codes, times step
  for (int k = 0; k < table.magnitude_count; ++k) {
    steps[k] = step * static_cast<float>(table.magnitudes[k]);
    steps[table.magnitude_count + k] = -steps[k];
  }
  for (int e = 0; e < d; ++e) c[e] = y[e] * inverse_factor * inverse_root - steps[token.codes[e]];
}

// Flips the numbers that the page stores of the centre c [d].
inline void flip_centre(const std::int8_t* metric, const float* c, const PageFormat& format,
                        std::uint8_t* page) {
  constexpr int kLargest = 127, kPlaces = 2 * kLargest + 1;
  const int d = format.head_dim;
  const float step = core::half_to_float(half_at(page + format.centre_step_offset(), 0));
  const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
  auto* row = reinterpret_cast<std::int8_t*>(page + format.centre_offset());
  std::int32_t steps[kPlaces];
  for (int k = 0; k < kPlaces; ++k) steps[k] = kUnitsPerStep * (k - kLargest);
  Flips numbers;
  for (int e = 0; e < d; ++e) {
    numbers.error[e] = static_cast<std::int16_t>(centre_error(c[e], inverse, row[e]));
    numbers.place[e] = static_cast<std::uint8_t>(row[e] + kLargest);
  }
  flip_places(metric, steps, kPlaces, d, numbers);
  for (int e = 0; e < d; ++e) row[e] = static_cast<std::int8_t>(numbers.place[e] - kLargest);
}

// Moves the centre, in the page too. The pivot's slot, and what it is coded as; or -1.
inline int move_centre(const Work& work, int begin, int end, const PageFormat& format,
                       const std::int8_t* metric, std::uint8_t* page, Centre& centre, Searched& token) {
  const int d = format.head_dim;
  const core::CodeTable& table = core::key_table(format.k_bits);
  const int pivot = pivot_of(work, begin, end, centre, metric, d);
  if (pivot < 0) return -1;
  const float *y = work.y + pivot * d, factor = work.factor[pivot];
  float u[kMaxDim], c[kMaxDim];
  centre.subtract_from(y, factor, d, u);
  search(u, factor, d, table, metric, token);
  left_of_pivot(y, factor, token, table, d, c);
  store_centre(c, format, page);
  flip_centre(metric, c, format, page);
  centre.load(page, format);
  return pivot;
}

}  // namespace
}  // namespace turboquant::kernels::TQ_ISA
