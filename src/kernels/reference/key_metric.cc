// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "core/hadamard.h"
#include "kernels/metric_rules.h"
#include "kernels/reference/reference.h"

namespace turboquant::kernels::reference {
namespace {

void add_query(const KeyMetricArgs& a, std::int64_t sample, int head) {
  const int d = a.head_dim, h = head / (a.q_heads / a.kv_heads);
  const std::int64_t row = (sample + 1) * a.step - 1, sequence = row / a.tokens, token = row % a.tokens;
  if (a.starts != nullptr && token < a.starts[sequence]) return;
  Rows query = a.query;
  query.token_stride = 1;
  float y[512], scratch[512];
  load_vector(query, sequence * a.sequence_stride + token * a.query.token_stride, head, d, y);
  for (int e = 0; e < d; ++e) y[e] = y[e] * a.query_signs[h * d + e];
  core::hadamard_forward(y, a.base, d / a.base, a.base_matrix, scratch);
  float largest = 0.0f;
  for (int e = 0; e < d; ++e)
    if (std::fabs(y[e]) > largest) largest = std::fabs(y[e]);
  const float factor = 127.0f / largest;
  if (!query_counts(factor)) return;
  std::int32_t u[512];
  for (int e = 0; e < d; ++e) u[e] = static_cast<std::int32_t>(next_integer(y[e] * factor));
  for (int e = 0; e < d; ++e)
    for (int f = e; f < d; ++f) a.moment[(std::int64_t{h} * d + e) * d + f] += u[e] * u[f];
}

void finish(const KeyMetricArgs& a, int h) {
  const int d = a.head_dim;
  const std::int32_t* moment = a.moment + std::int64_t{h} * d * d;
  std::int64_t trace = 0, largest = 0;
  for (int e = 0; e < d; ++e) {
    trace += moment[e * d + e];
    largest = moment[e * d + e] > largest ? moment[e * d + e] : largest;
  }
  const std::int64_t added = damping(trace, d);
  const float scale = 127.0f / static_cast<float>(largest + added);
  for (int e = 0; e < d; ++e)
    for (int f = 0; f < d; ++f) {
      const std::int64_t damped = moment[e < f ? e * d + f : f * d + e] + (e == f ? added : 0);
      const float entry = trace > 0 ? next_integer(static_cast<float>(damped) * scale) : 0.0f;
      a.metric[(std::int64_t{h} * d + e) * d + f] = static_cast<std::int8_t>(entry);
    }
}

}  // namespace

void key_metric(const KeyMetricArgs& a) {
  for (std::int64_t i = 0; i < std::int64_t{a.kv_heads} * a.head_dim * a.head_dim && a.begins; ++i)
    a.moment[i] = 0;
  for (std::int64_t sample = 0; sample < a.sequence_count * a.tokens / a.step; ++sample)
    for (int head = 0; head < a.q_heads; ++head) add_query(a, sample, head);
  for (int h = 0; h < a.kv_heads && a.metric != nullptr; ++h) finish(a, h);
}

}  // namespace turboquant::kernels::reference
