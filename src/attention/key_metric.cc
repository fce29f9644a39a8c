// SPDX-License-Identifier: Apache-2.0
// key_metric on the CPU, one KV head a task: src/kernels/metric_rules.h says what, kernels/reference how it
// would be done simply. Queries are added in blocks, coordinate by coordinate, so that a product of two
// coordinates is a sum over neighbours.
#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/checks.h"
#include "core/hadamard.h"
#include "kernels/cuda_table.h"
#include "kernels/metric_rules.h"
#include "kernels/vectors.h"

namespace turboquant {
namespace {

constexpr int kBlock = 256, kLanes = 16;  // queries; so many are a whole number of vector registers

// Levels of a block of queries, int16 [head_dim, kBlock].
class Block {
 public:
  explicit Block(int head_dim)
      : d_(head_dim),
        levels_(static_cast<std::size_t>(head_dim) * kBlock),
        y_(static_cast<std::size_t>(head_dim)) {}

  // Query `head` of row `token` of sequence `sequence`, if it counts.
  void add(const KeyMetricArgs& a, std::int64_t sequence, std::int64_t token, int head) {
    const float* signs = a.query_signs + std::int64_t{head / (a.q_heads / a.kv_heads)} * d_;
    float scratch[512];
    const Rows query{a.query.dtype, a.query.data, 1, a.query.head_stride};
    kernels::load_vector(query, sequence * a.sequence_stride + token * a.query.token_stride, head, d_,
                         y_.data());
    for (int e = 0; e < d_; ++e) y_[n(e)] = y_[n(e)] * signs[e];
    core::hadamard_forward(y_.data(), a.base, d_ / a.base, a.base_matrix, scratch);
    float largest = 0.0f;
    for (const float y : y_) largest = std::fabs(y) > largest ? std::fabs(y) : largest;
    const float factor = 127.0f / largest;
    if (!kernels::query_counts(factor)) return;
    for (int e = 0; e < d_; ++e)
      levels_[n(e * kBlock + count_)] = static_cast<std::int16_t>(kernels::next_integer(y_[n(e)] * factor));
    ++count_;
  }
  bool full() const { return count_ == kBlock; }

  // Adds the block's products to a head's moment, and empties it.
  void flush(std::int32_t* moment) {
    int end = count_;
    for (; end % kLanes != 0; ++end)
      for (int e = 0; e < d_; ++e) levels_[n(e * kBlock + end)] = 0;
    for (int e = 0; e < d_; ++e)
      for (int f = e; f < d_; ++f)
        moment[e * d_ + f] += product(&levels_[n(e * kBlock)], &levels_[n(f * kBlock)], end);
    count_ = 0;
  }

 private:
  static std::size_t n(int i) { return static_cast<std::size_t>(i); }
  static std::int32_t product(const std::int16_t* a, const std::int16_t* b, int end) {
    std::int32_t sum = 0;
    for (int i = 0; i < end; i += kLanes)
      for (int j = i; j < i + kLanes; ++j) sum += a[j] * b[j];
    return sum;
  }

  int d_, count_ = 0;
  std::vector<std::int16_t> levels_;
  std::vector<float> y_;
};

void add_queries(const KeyMetricArgs& a, int h) {
  const int group = a.q_heads / a.kv_heads;
  std::int32_t* moment = a.moment + std::int64_t{h} * a.head_dim * a.head_dim;
  Block block(a.head_dim);
  for (std::int64_t row = a.step - 1; row < a.sequence_count * a.tokens; row += a.step) {
    const std::int64_t sequence = row / a.tokens, token = row % a.tokens;
    if (a.starts != nullptr && token < a.starts[sequence]) continue;
    for (int g = 0; g < group; ++g) {
      block.add(a, sequence, token, h * group + g);
      if (block.full()) block.flush(moment);
    }
  }
  block.flush(moment);
}

void finish(const KeyMetricArgs& a, int h) {
  const int d = a.head_dim;
  const std::int32_t* moment = a.moment + std::int64_t{h} * d * d;
  std::int8_t* metric = a.metric + std::int64_t{h} * d * d;
  std::int64_t trace = 0, largest = 0;
  for (int e = 0; e < d; ++e) {
    trace += moment[e * d + e];
    largest = moment[e * d + e] > largest ? moment[e * d + e] : largest;
  }
  const std::int64_t added = kernels::damping(trace, d);
  const float scale = trace > 0 ? 127.0f / static_cast<float>(largest + added) : 0.0f;
  for (int e = 0; e < d; ++e)
    for (int f = e; f < d; ++f) {
      const std::int64_t damped = moment[e * d + f] + (e == f ? added : 0);
      metric[e * d + f] = metric[f * d + e] =
          static_cast<std::int8_t>(kernels::next_integer(static_cast<float>(damped) * scale));
    }
}

}  // namespace

Status key_metric(const KeyMetricArgs& args, const Context& context) {
  if (Status s = supports("key_metric", {args.head_dim, 4, 4}, context.device.type); !s.ok()) return s;
  if (Status s = attention::check(args, context.device.type); !s.ok()) return s;
  if (context.device.type == DeviceType::kCuda) return kernels::cuda_table()->key_metric(args, context);
  Executor& executor = context.executor != nullptr ? *context.executor : default_executor();
  executor.for_each(static_cast<std::size_t>(args.kv_heads), [&](std::size_t head) {
    const int h = static_cast<int>(head);
    const std::int64_t entries = std::int64_t{args.head_dim} * args.head_dim;
    if (args.begins) std::fill_n(args.moment + h * entries, entries, 0);
    if (args.sequence_count * args.tokens >= args.step) add_queries(args, h);
    if (args.metric != nullptr) finish(args, h);
  });
  return {};
}

}  // namespace turboquant
