// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/hadamard.h"
#include "kernels/portable/search.h"

// Rules 1 to 3 of kernels/encode_rules.h on the tokens of one page, over arrays that compilers vectorise.
namespace turboquant::kernels::TQ_ISA {
namespace {

struct Work {
  alignas(64) float y[kPageTokens * kMaxDim];  // [slot][d], fp16 numbers: f times the rotated vector
  float factor[kPageTokens];
  bool is_finite[kPageTokens];
};

inline void rotate_to_half(float* x, int base, int power, const float* base_matrix, float* scratch) {
  const int d = base * power;
  int done = 1;
  if (power >= 4) {  // stages 1 and 2 in one pass: their pairs are too close to fill a vector
    for (float* __restrict__ four = x; four < x + d; four += 4) {
      const float a = round_to_11_bits(four[0] + four[1]), b = round_to_11_bits(four[0] - four[1]);
      const float c = round_to_11_bits(four[2] + four[3]), e = round_to_11_bits(four[2] - four[3]);
      four[0] = round_to_11_bits(a + c);
      four[1] = round_to_11_bits(b + e);
      four[2] = round_to_11_bits(a - c);
      four[3] = round_to_11_bits(b - e);
    }
    done = 4;
  }
  for (int h = done; h < power; h *= 2) {
    for (int block = 0; block < d; block += 2 * h) {
      float* __restrict__ low = x + block;
      float* __restrict__ high = x + block + h;
      for (int i = 0; i < h; ++i) {
        const float u = low[i], v = high[i];
        low[i] = round_to_11_bits(u + v);
        high[i] = round_to_11_bits(u - v);
      }
    }
  }
  if (base == 1) return;
  core::hadamard_base(x, base, power, base_matrix, base, 1, scratch);
  for (int e = 0; e < d; ++e) x[e] = round_to_half(x[e]);
}

// y.n in any order, of a rotated key and integers.
inline double exact_product(const float* y, const std::int8_t* n, int d) {
  double lanes[8] = {};
  for (int e = 0; e < d; e += 8)
    for (int k = 0; k < 8; ++k) lanes[k] += static_cast<double>(y[e + k]) * static_cast<double>(n[e + k]);
  for (int k = 1; k < 8; ++k) lanes[0] += lanes[k];
  return lanes[0];
}

// A centre as its page stores it, next to keys that are not yet over sqrt(d).
struct Centre {
  float step;
  double squares;  // n.n
  alignas(64) std::int8_t n[kMaxDim];

  void load(const std::uint8_t* page, const PageFormat& format) {
    const int d = format.head_dim;
    step = core::half_to_float(half_at(page + format.centre_step_offset(), 0)) *
           static_cast<float>(std::sqrt(static_cast<double>(d)));
    std::memcpy(n, page + format.centre_offset(), static_cast<std::size_t>(d));
    std::int32_t sum = 0;
    for (int e = 0; e < d; ++e) sum += static_cast<std::int32_t>(n[e]) * static_cast<std::int32_t>(n[e]);
    squares = static_cast<double>(sum);
  }
  // Rule 3.
  bool is_chosen_by(const float* y, float factor, int d) const {
    return 2.0 * exact_product(y, n, d) >= static_cast<double>(step) * static_cast<double>(factor) * squares;
  }
  void subtract_from(const float* y, float factor, int d, float* u) const {
    for (int e = 0; e < d; ++e) u[e] = round_to_11_bits(y[e] - centre_half(step, n[e], factor));
  }
};

inline void store_centre(const float* c, const PageFormat& format, std::uint8_t* page) {
  const int d = format.head_dim;
  float largest = 0.0f;
  for (int e = 0; e < d; ++e) largest = std::fabs(c[e]) > largest ? std::fabs(c[e]) : largest;
  const std::uint16_t half = centre_step(largest);
  const float step = core::half_to_float(half), inverse = step > 0.0f ? 1.0f / step : 0.0f;
  set_half(page + format.centre_step_offset(), 0, half);
  auto* row = reinterpret_cast<std::int8_t*>(page + format.centre_offset());
  for (int e = 0; e < d; ++e) row[e] = steps_in(c[e], inverse);
}

// Rule 2: the mean of the chosen keys, 0 if there are none.
inline void mean(const Work& work, const bool* chosen, float least, int d, float* c) {
  alignas(64) float sums[4][kMaxDim];
  for (int part = 0; part < 4; ++part)
    for (int e = 0; e < d; ++e) sums[part][e] = 0.0f;
  int count = 0;
  for (int t = 0; t < kPageTokens; ++t) {
    if (!chosen[t]) continue;
    ++count;
    const float weight = round_to_half(0x1p-6f * (least * (1.0f / work.factor[t])));
    const float* __restrict__ y = work.y + t * d;
    float* __restrict__ sum = sums[t / kMeanSlots];
    for (int e = 0; e < d; ++e) sum[e] = round_to_half(sum[e] + y[e] * weight);
  }
  const float per_unit =
      count == 0 ? 0.0f : 64.0f * (1.0f / least) * (one_over_root_of(d) / static_cast<float>(count));
  for (int e = 0; e < d; ++e) {
    const float low = round_to_11_bits(sums[0][e] + sums[1][e]);
    const float high = round_to_11_bits(sums[2][e] + sums[3][e]);
    c[e] = round_to_11_bits(low + high) * per_unit;
  }
}

// Leaves the keys' own centre in the page, and in `centre`.
inline void own_centre(const Work& work, int begin, int end, const PageFormat& format, std::uint8_t* page,
                       Centre& centre) {
  const int d = format.head_dim;
  bool chosen[kPageTokens] = {};
  float c[kMaxDim], least = 0x1p127f;
  for (int t = begin; t < end; ++t) {
    chosen[t] = work.is_finite[t];
    if (chosen[t] && work.factor[t] < least) least = work.factor[t];
  }
  mean(work, chosen, least, d, c);
  store_centre(c, format, page);
  centre.load(page, format);
  for (int t = begin; t < end; ++t)
    chosen[t] = work.is_finite[t] && centre.is_chosen_by(work.y + t * d, work.factor[t], d);
  mean(work, chosen, least, d, c);
  store_centre(c, format, page);
  centre.load(page, format);
}

}  // namespace
}  // namespace turboquant::kernels::TQ_ISA
