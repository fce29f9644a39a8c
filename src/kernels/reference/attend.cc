// SPDX-License-Identifier: Apache-2.0
// attend as its comment in turboquant/attention.h says, one query, one key, one value at a time, in double.
#include <cmath>
#include <limits>
#include <vector>

#include "core/hadamard.h"
#include "kernels/reference/reference.h"

namespace turboquant::kernels::reference {
namespace {

struct Query {
  const AttendArgs& a;
  int i, head, kv_head;     // sequence, query head, its KV head
  std::int64_t row, token;  // of the call, of the sequence's part of the call

  int d() const { return a.pages.format.head_dim; }
  std::int64_t position() const { return a.sequences.lengths[i] + token; }
  bool sees(std::int64_t p) const {
    return p >= start_of(a.sequences, i) && p <= position() && (a.window == 0 || p > position() - a.window);
  }
  double score(const double* q, const double* k) const {
    double dot = 0;
    for (int e = 0; e < d(); ++e) dot += q[e] * k[e];
    const double score = static_cast<double>(a.scale) * dot, cap = static_cast<double>(a.softcap);
    return cap > 0 ? cap * std::tanh(score / cap) : score;
  }
};

void load_double(const Rows& rows, std::int64_t row, int head, int d, double* out) {
  std::vector<float> x(static_cast<std::size_t>(d));
  load_vector(rows, row, head, d, x.data());
  for (int e = 0; e < d; ++e) out[e] = static_cast<double>(x[static_cast<std::size_t>(e)]);
}

// Softmax of the scores seen so far is not kept running: all scores first, then the sums.
void attend_one(const Query& query) {
  const AttendArgs& a = query.a;
  const int d = query.d();
  const auto n = static_cast<std::size_t>(d);
  const History history{a.pages, a.fringe, a.sequences};
  std::vector<double> q(n), rotated(n), x(n), scratch(n);
  load_double(a.query, query.row, query.head, d, q.data());
  for (std::size_t e = 0; e < n; ++e)
    rotated[e] =
        q[e] * static_cast<double>(a.basis.query_signs[static_cast<std::size_t>(query.kv_head) * n + e]);
  core::hadamard_double(rotated.data(), a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch.data(),
                        false);
  for (double& e : rotated) e /= std::sqrt(static_cast<double>(d));

  const std::int64_t length = a.sequences.lengths[query.i];
  const std::int64_t own = a.keys.data == nullptr ? 0 : query.token + 1;
  std::vector<double> scores(static_cast<std::size_t>(length + own),
                             -std::numeric_limits<double>::infinity());
  for (std::int64_t p = 0; p < length + own; ++p) {
    if (!query.sees(p)) continue;
    if (p < length) history.key(query.i, query.kv_head, p, x.data());
    else load_double(a.keys, query.row - query.token + p - length, query.kv_head, d, x.data());
    scores[static_cast<std::size_t>(p)] = query.score(p < length ? rotated.data() : q.data(), x.data());
  }

  const bool has_sink = a.sinks != nullptr;
  double largest =
      has_sink ? static_cast<double>(a.sinks[query.head]) : -std::numeric_limits<double>::infinity();
  for (const double s : scores) largest = s > largest || std::isnan(s) ? s : largest;
  double sum = has_sink ? std::exp(static_cast<double>(a.sinks[query.head]) - largest) : 0;
  std::vector<double> from_history(n), out(n);
  for (std::int64_t p = 0; p < length + own; ++p) {
    if (!query.sees(p)) continue;
    const double weight = std::exp(scores[static_cast<std::size_t>(p)] - largest);
    sum += weight;
    if (p < length) history.value(query.i, query.kv_head, p, x.data());
    else load_double(a.values, query.row - query.token + p - length, query.kv_head, d, x.data());
    for (std::size_t e = 0; e < n; ++e) (p < length ? from_history : out)[e] += weight * x[e];
  }
  core::hadamard_double(from_history.data(), a.basis.base, d / a.basis.base, a.basis.base_matrix,
                        scratch.data(), true);
  std::vector<float> rounded(n);
  for (std::size_t e = 0; e < n; ++e) {
    const double signs =
        static_cast<double>(a.basis.value_signs[static_cast<std::size_t>(query.kv_head) * n + e]);
    const double total = out[e] + signs * from_history[e] / std::sqrt(static_cast<double>(d));
    rounded[e] = sum == 0 ? 0.0f : static_cast<float>(total / sum);
  }
  store_vector(a.out, query.row, query.head, d, rounded.data());
  if (a.lse != nullptr)
    a.lse[query.row * a.q_heads + query.head] =
        sum == 0 ? -std::numeric_limits<float>::infinity() : static_cast<float>(largest + std::log(sum));
}

}  // namespace

void attend(const AttendArgs& a, Executor& executor) {
  const int group = a.q_heads / a.pages.kv_heads;
  for (int i = 0; i < a.sequences.count; ++i) {
    const std::int64_t first = a.sequences.token_starts[i], last = a.sequences.token_starts[i + 1];
    executor.for_each(
        static_cast<std::size_t>(last - first) * static_cast<std::size_t>(a.q_heads), [&](std::size_t task) {
          const int head = static_cast<int>(task % static_cast<std::size_t>(a.q_heads));
          const auto token = static_cast<std::int64_t>(task / static_cast<std::size_t>(a.q_heads));
          attend_one({a, i, head, head / group, first + token, token});
        });
  }
}

}  // namespace turboquant::kernels::reference
