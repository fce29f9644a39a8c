// SPDX-License-Identifier: Apache-2.0
// balance is fp32 in a fixed order, like encode: it decides codes. One KV head a task.
#include <cmath>
#include <vector>

#include "attention/checks.h"
#include "kernels/cuda_table.h"
#include "kernels/encode_rules.h"
#include "kernels/vectors.h"

namespace turboquant {
namespace {

constexpr std::int64_t kBalanceTokens = 128;  // of each sequence
constexpr int kTrustedTokens = 64;            // fewer shrink the balance towards 1

// Adds to sums[e] the squares of the rows' coordinates about their mean (about 0 where centred is false).
// Rows with a NaN or infinity are left out.
std::int64_t add_squares(const Rows& rows, std::int64_t begin, std::int64_t end, int head, int d,
                         bool centred, std::vector<float>& sums) {
  const auto n = static_cast<std::size_t>(d);
  std::vector<float> mean(n, 0.0f), x(n), scratch(1024);
  std::vector<bool> counted;
  std::int64_t count = 0;
  for (std::int64_t row = begin; row < end; ++row) {
    kernels::load_vector(rows, row, head, d, x.data());
    counted.push_back(kernels::finite(kernels::squared_norm(x.data(), d, scratch.data())));
    if (!counted.back()) continue;
    ++count;
    for (std::size_t e = 0; e < n; ++e) mean[e] = mean[e] + x[e];
  }
  for (std::size_t e = 0; e < n && count > 0; ++e)
    mean[e] = centred ? mean[e] / static_cast<float>(count) : 0.0f;
  for (std::int64_t row = begin; row < end; ++row) {
    if (!counted[static_cast<std::size_t>(row - begin)]) continue;
    kernels::load_vector(rows, row, head, d, x.data());
    for (std::size_t e = 0; e < n; ++e) {
      const float difference = x[e] - mean[e];
      sums[e] = sums[e] + difference * difference;
    }
  }
  return count;
}

// rms from sums of squares, floored at a thousandth of their mean; false where all are zero or not finite.
bool floored_rms(std::vector<float>& sums, std::int64_t count) {
  float total = 0.0f;
  for (float& s : sums) {
    s = std::sqrt(s / static_cast<float>(count));
    total = total + s;
  }
  const float floor = total / static_cast<float>(sums.size()) * 0.001f;
  if (!(floor > 0.0f) || !kernels::finite(floor)) return false;
  for (float& s : sums)
    if (s < floor) s = floor;
  return true;
}

void balance_head(const BalanceArgs& a, int h) {
  const int d = a.head_dim, group = a.q_heads / a.kv_heads;
  std::vector<float> keys(static_cast<std::size_t>(d), 0.0f), queries(keys);
  std::int64_t key_count = 0, query_count = 0;
  for (int i = 0; i < a.sequence_count; ++i) {
    const std::int64_t skipped = a.starts == nullptr ? 0 : a.starts[i];
    const std::int64_t first = a.token_starts[i], end = a.token_starts[i + 1], begin = first + skipped;
    const std::int64_t to = end < begin + kBalanceTokens ? end : begin + kBalanceTokens;
    for (std::int64_t row = begin; row < to;) {  // to the end of each page, counted from the first position
      const std::int64_t page_end = first + ((row - first) / kPageTokens + 1) * kPageTokens;
      const std::int64_t stop = to < page_end ? to : page_end;
      key_count += add_squares(a.keys, row, stop, h, d, true, keys);
      row = stop;
    }
    for (int g = 0; g < group && begin < to; ++g)
      query_count += add_squares(a.query, begin, to, h * group + g, d, false, queries);
  }
  float* balance = a.balance + static_cast<std::int64_t>(h) * d;
  for (int e = 0; e < d; ++e) balance[e] = 1.0f;
  if (key_count < 2 || query_count < 1 || !floored_rms(keys, key_count) || !floored_rms(queries, query_count))
    return;
  float total = 0.0f;
  for (int e = 0; e < d; ++e) {
    balance[e] = std::sqrt(keys[static_cast<std::size_t>(e)] / queries[static_cast<std::size_t>(e)]);
    total = total + balance[e];
  }
  const float mean = total / static_cast<float>(d);
  const float trust = key_count < kTrustedTokens ? static_cast<float>(key_count) / kTrustedTokens : 1.0f;
  for (int e = 0; e < d; ++e) balance[e] = trust * (balance[e] / mean) + (1.0f - trust);
}

}  // namespace

Status balance(const BalanceArgs& args, const Context& context) {
  if (Status s = supports("balance", {64, 4, 4}, context.device.type); !s.ok()) return s;
  if (Status s = attention::check(args, context.device.type); !s.ok()) return s;
  if (context.device.type == DeviceType::kCuda) return kernels::cuda_table()->balance(args, context);
  Executor& executor = context.executor != nullptr ? *context.executor : default_executor();
  executor.for_each(static_cast<std::size_t>(args.kv_heads),
                    [&](std::size_t h) { balance_head(args, static_cast<int>(h)); });
  return {};
}

}  // namespace turboquant
