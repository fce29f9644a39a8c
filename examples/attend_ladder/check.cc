// SPDX-License-Identifier: Apache-2.0
// What the rungs are checked against: the format's definition, one code at a time, in double precision.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/half.h"
#include "core/layout.h"
#include "core/tables.h"
#include "ladder.h"

namespace ladder {
namespace {

namespace core = turboquant::core;

double half_at(const std::uint8_t* area, int index) {
  std::uint16_t half;
  std::memcpy(&half, area + 2 * index, sizeof half);
  return static_cast<double>(core::half_to_float(half));
}
double steps(const core::CodeTable& table, int code) {
  return code < 8 ? table.magnitudes[code] : -static_cast<double>(table.magnitudes[code - 8]);
}

double key(const std::uint8_t* page, int t, int e) {
  const double scale = half_at(page + kFormat.k_scales_offset(), core::scale_index(t));
  const auto centre = static_cast<std::int8_t>(page[kFormat.centre_offset() + static_cast<std::size_t>(e)]);
  const double reference =
      std::signbit(scale) ? 0.0 : half_at(page + kFormat.centre_step_offset(), 0) * centre;
  const int code = core::read_code(page, core::key_position, kHeadDim, 4, t, e);
  return reference + std::fabs(scale) / 64 * steps(core::kKey4, code);
}
double value(const std::uint8_t* page, int t, int e) {
  const double scale = half_at(page + kFormat.v_scales_offset(), core::scale_index(t));
  const int code = core::read_code(page + kFormat.v_codes_offset(), core::value_position, kHeadDim, 4, t, e);
  return scale / 64 * steps(core::kValue4, code);
}

}  // namespace

Expected attend_in_double(const std::uint8_t* pages, const std::int16_t* query, int length) {
  const double unit = static_cast<double>(kQueryStep) / std::sqrt(static_cast<double>(kHeadDim));
  std::vector<double> weights(static_cast<std::size_t>(length)), scales(weights.size());
  double largest = -INFINITY, largest_terms = 0, sum = 0;
  const auto page_of = [&](std::size_t t) { return pages + t / kPageTokens * kPageBytes; };
  for (std::size_t t = 0; t < weights.size(); ++t) {
    double score = 0, terms = 0;
    for (int e = 0; e < kHeadDim; ++e) {
      const double term = unit * query[e] * key(page_of(t), static_cast<int>(t % kPageTokens), e);
      score += term, terms += std::fabs(term);
    }
    weights[t] = score;
    largest = std::max(largest, score), largest_terms = std::max(largest_terms, terms);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - largest);

  // A page's weights times scales round to integers of which the largest is kLargest16: an error of variance
  // 1/12. A score is 128 fp32 terms, an output is one for each token.
  double integer_variance[kHeadDim] = {}, magnitude[kHeadDim] = {};
  Expected expected{};
  for (std::size_t begin = 0; begin < weights.size(); begin += kPageTokens) {
    const std::size_t end = std::min(begin + kPageTokens, weights.size());
    const std::uint8_t* page = page_of(begin);
    double most = 0;
    for (std::size_t t = begin; t < end; ++t) {
      scales[t] = half_at(page + kFormat.v_scales_offset(), core::scale_index(static_cast<int>(t - begin)));
      most = std::max(most, weights[t] * scales[t]);
    }
    for (std::size_t t = begin; t < end; ++t)
      for (int e = 0; e < kHeadDim; ++e) {
        const double v = value(page, static_cast<int>(t - begin), e);
        expected.out[e] += weights[t] * v / sum;
        magnitude[e] += weights[t] * std::fabs(v) / sum;
        integer_variance[e] += std::pow(most / kLargest16 * v / scales[t] / sum, 2) / 12;
      }
  }
  const double rounding = std::ldexp(1.0, -24) * std::sqrt(length + kHeadDim * largest_terms * largest_terms);
  for (int e = 0; e < kHeadDim; ++e)
    expected.deviation[e] = std::sqrt(integer_variance[e] + std::pow(rounding * magnitude[e], 2));
  return expected;
}

}  // namespace ladder
