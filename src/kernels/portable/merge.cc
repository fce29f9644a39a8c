// SPDX-License-Identifier: Apache-2.0
// The ends of attend: queries into the rotated domain, sums out of it, and splits of a history together.
#include <cmath>

#include "core/hadamard.h"
#include "kernels/portable/attend.h"

namespace turboquant::kernels::TQ_ISA {

void load_queries(const Plan& plan, const Block& block, Scratch& s) {
  const AttendArgs& a = plan.a;
  const int d = plan.d();
  const float* signs = a.basis.query_signs + block.head * d;
  const float unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  float scratch[kMaxDim];
  for (int r = 0; r < block.rows; ++r) {
    const std::int64_t pair = block.first_row + r;
    float *raw = s.raw + r * d, *rotated = s.rotated + r * d, *stored = s.stored + r * d;
    const int head = block.head * plan.group + static_cast<int>(pair % plan.group);
    load_vector(a.query, a.sequences.token_starts[block.i] + pair / plan.group, head, d, raw);
    for (int e = 0; e < d; ++e) raw[e] = raw[e] * a.scale;
    for (int e = 0; e < d; ++e) rotated[e] = raw[e] * signs[e];
    core::hadamard_forward(rotated, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
    for (int e = 0; e < d; ++e) rotated[e] = rotated[e] * unit;
    for (int x = 0; x < d; ++x) stored[x] = rotated[plan.layout.unpacked_keys().keys[x]];
    s.running.largest[r] = -HUGE_VALF;
    s.running.sum[r] = 0.0f;
  }
  for (int x = 0; x < block.rows * d; ++x) s.running.history[x] = s.running.own[x] = 0.0f;
}

// out and LSE of one row from its sums: back out of the rotated domain, add the own part, normalise.
void finish_row(const Plan& plan, int i, int kv_head, std::int64_t pair, float largest, float sum,
                float* history, const float* own) {
  const AttendArgs& a = plan.a;
  const int d = plan.d(), head = kv_head * plan.group + static_cast<int>(pair % plan.group);
  const std::int64_t row = a.sequences.token_starts[i] + pair / plan.group;
  float factor = 1.0f;
  if (a.sinks != nullptr) {
    const float sink = a.sinks[head];
    const float most = sink > largest ? sink : largest;
    factor = std::exp(largest - most);
    sum = sum * factor + std::exp(sink - most);
    largest = most;
  }
  const float* signs = a.basis.value_signs + kv_head * d;
  const float unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  float scratch[kMaxDim];
  core::hadamard_transposed(history, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
  const float normal = sum == 0.0f ? 0.0f : factor / sum;
  for (int e = 0; e < d; ++e) history[e] = (history[e] * unit * signs[e] + own[e]) * normal;
  store_vector(a.out, row, head, d, history);
  if (a.lse != nullptr) a.lse[row * a.q_heads + head] = sum == 0.0f ? -HUGE_VALF : largest + std::log(sum);
}

// Where split `split` of the row of (sequence, KV head, pair) keeps its sums: history, own, largest, sum.
float* partial_of(const Plan& plan, int split, int i, int kv_head, std::int64_t pair) {
  const std::int64_t row = plan.a.sequences.token_starts[i] + pair / plan.group;
  const std::int64_t at = row * plan.a.q_heads + kv_head * plan.group + pair % plan.group;
  return plan.partials + (split * plan.rows() + at) * (2 * plan.d() + 2);
}

void merge_row(const Plan& plan, int i, int kv_head, std::int64_t pair) {
  const int d = plan.d();
  float largest = -HUGE_VALF, sum = 0.0f;
  for (int split = 0; split < plan.splits; ++split) {
    const float* partial = partial_of(plan, split, i, kv_head, pair);
    if (partial[2 * d] > largest) largest = partial[2 * d];
  }
  float history[kMaxDim] = {}, own[kMaxDim] = {};
  for (int split = 0; split < plan.splits; ++split) {
    const float* partial = partial_of(plan, split, i, kv_head, pair);
    if (partial[2 * d] == -HUGE_VALF) continue;
    const float factor = std::exp(partial[2 * d] - largest);
    sum += factor * partial[2 * d + 1];
    for (int e = 0; e < d; ++e) {
      history[e] += factor * partial[e];
      own[e] += factor * partial[d + e];
    }
  }
  finish_row(plan, i, kv_head, pair, largest, sum, history, own);
}

}  // namespace turboquant::kernels::TQ_ISA
