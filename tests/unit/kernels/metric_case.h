// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "core/hadamard.h"
#include "kernels/metric_rules.h"
#include "kernels/vectors.h"
#include "turboquant/rotation.h"

// Queries of key_metric in plain vectors: of all sizes, some of them zero, NaN or infinite, some padding.
namespace turboquant::kernels {

struct MetricShape {
  int head_dim = 64;
  DType dtype = DType::kF32;
  int step = 1;
  int kv_heads = 2, group = 3, sequences = 2, tokens = 20;
};

class MetricCase {
 public:
  explicit MetricCase(const MetricShape& s)
      : shape(s), plan(hadamard_plan(s.head_dim).value()), starts{0, s.tokens / 3} {
    std::mt19937 rng(static_cast<unsigned>(s.head_dim));
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(-8.0f, 8.0f);
    std::vector<float> values(n(s.sequences * s.tokens * q_heads() * s.head_dim));
    for (std::size_t at = 0; at < values.size(); at += n(s.head_dim)) {
      const float size = std::exp2(uniform(rng));
      for (std::size_t e = at; e < at + n(s.head_dim); ++e) values[e] = size * (normal(rng) + 1.0f);
    }
    const std::size_t vector = n(s.head_dim), spoilt = values.size() / vector;
    if (spoilt > 20) {
      values[7 * vector + 1] = NAN;
      values[11 * vector] = INFINITY;
      for (std::size_t e = 0; e < vector; ++e) values[13 * vector + e] = 0.0f;
    }
    set(values);
    for (int h = 0; h < s.kv_heads; ++h)
      for (const float sign : random_signs(s.head_dim, rng()))
        signs.push_back(sign * std::exp2(uniform(rng) / 8));
  }

  // All queries become the vector that is rotated to axis e.
  void set_axis(int e) {
    const int d = shape.head_dim;
    std::vector<float> values(n(shape.sequences * shape.tokens * q_heads() * d)), scratch(n(d));
    signs.assign(n(shape.kv_heads * d), 1.0f);
    for (std::size_t at = 0; at < values.size(); at += n(d)) {
      values[at + n(e)] = 1.0f;
      core::hadamard_transposed(&values[at], plan.base, plan.power, plan.base_matrix.data(), scratch.data());
    }
    set(values);
  }

  int q_heads() const { return shape.kv_heads * shape.group; }
  // Without moment and metric, which the caller has.
  KeyMetricArgs args() const {
    KeyMetricArgs a;
    a.kv_heads = shape.kv_heads;
    a.q_heads = q_heads();
    a.head_dim = shape.head_dim;
    a.sequence_count = shape.sequences;
    a.tokens = shape.tokens;
    a.step = shape.step;
    a.starts = shape.sequences == 2 ? starts.data() : nullptr;
    a.query = {shape.dtype, query.data(), std::int64_t{q_heads()} * shape.head_dim, shape.head_dim};
    a.sequence_stride = a.tokens * a.query.token_stride;
    a.query_signs = signs.data();
    a.base = plan.base;
    a.base_matrix = plan.base > 1 ? plan.base_matrix.data() : nullptr;
    return a;
  }
  template <class T>
  std::vector<T> zeros() const {
    return std::vector<T>(n(shape.kv_heads * shape.head_dim * shape.head_dim));
  }

  MetricShape shape;
  HadamardPlan plan;
  std::vector<std::int32_t> starts;
  std::vector<float> signs;
  std::vector<std::uint8_t> query;  // elements of the dtype

 private:
  static std::size_t n(int i) { return static_cast<std::size_t>(i); }
  void set(const std::vector<float>& values) {
    query.resize(values.size() * size_of(shape.dtype));
    store_vector(shape.dtype, query.data(), 0, static_cast<int>(values.size()), values.data());
  }
};

}  // namespace turboquant::kernels
