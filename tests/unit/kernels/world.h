// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "kernels/kernels.h"
#include "kernels/vectors.h"
#include "turboquant/rotation.h"

// One layer's cache in plain vectors, and a call's worth of rows: what the kernel tests work on.
namespace turboquant::kernels {

struct Shape {
  PageFormat format{64, 4, 4};
  int kv_heads = 2;
  int group = 3;
  int sequences = 2;
  int max_pages = 8;
  int fringe_first = 0, fringe_recent = 0;
  std::vector<std::int32_t> starts;  // empty: none
  bool metric = false;               // a key_metric that costs one direction of each head more
};

class World {
 public:
  explicit World(const Shape& s, unsigned seed = 1)
      : shape(s), rng(seed), table(n(s.sequences * s.max_pages)) {
    plan = hadamard_plan(s.format.head_dim).value();
    const int d = s.format.head_dim;
    for (int h = 0; h < s.kv_heads; ++h) {
      const auto key = random_signs(d, rng()), value = random_signs(d, rng());
      std::uniform_real_distribution<float> balance(0.5f, 2.0f);
      for (int e = 0; e < d; ++e) {
        const float b = balance(rng);
        key_signs.push_back(key[n(e)] / b);
        query_signs.push_back(key[n(e)] * b);
        value_signs.push_back(value[n(e)]);
      }
    }
    if (s.metric)
      for (int h = 0; h < s.kv_heads; ++h) {
        std::vector<int> f;
        for (int e = 0; e < d; ++e) f.push_back(static_cast<int>(rng() % 15) - 7);
        add_metric(f);
      }
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i);
    std::shuffle(table.begin(), table.end(), rng);
    lengths.assign(n(s.sequences), 0);
    recent_starts.assign(n(s.sequences), 0);
    page_bytes.resize(table.size() * n(s.kv_heads) * s.format.page_bytes());
    for (auto& byte : page_bytes) byte = static_cast<std::uint8_t>(rng());  // garbage until a page is opened
    fringe_halves.resize(n(s.sequences * s.kv_heads * (s.fringe_first + s.fringe_recent) * 2 * d), 0x7e00);
  }

  // f f^T with 127 on the diagonal, for one more head; f within +-7.
  void add_metric(const std::vector<int>& f) {
    for (std::size_t i = 0; i < f.size(); ++i)
      for (std::size_t j = 0; j < f.size(); ++j)
        key_metric.push_back(static_cast<std::int8_t>(i == j ? 127 : f[i] * f[j]));
  }

  static std::size_t n(int value) { return static_cast<std::size_t>(value); }
  int q_heads() const { return shape.kv_heads * shape.group; }
  int d() const { return shape.format.head_dim; }

  // Rows of a call with counts[i] tokens of sequence i: keys with a common component, as real ones have.
  struct Call {
    std::vector<std::int32_t> token_starts;
    std::vector<float> query, keys, values;
    int tokens() const { return token_starts.back(); }
  };
  Call random_call(const std::vector<int>& counts) {
    Call call;
    call.token_starts = {0};
    for (const int count : counts) call.token_starts.push_back(call.token_starts.back() + count);
    std::normal_distribution<float> normal;
    call.query.resize(n(call.tokens() * q_heads() * d()));
    call.keys.resize(n(call.tokens() * shape.kv_heads * d()));
    call.values.resize(call.keys.size());
    for (float& x : call.query) x = normal(rng);
    for (float& x : call.values) x = normal(rng);
    if (common.empty())
      for (int i = 0; i < shape.kv_heads * d(); ++i) common.push_back(2.0f * normal(rng));
    for (std::size_t i = 0; i < call.keys.size(); ++i) call.keys[i] = normal(rng) + common[i % common.size()];
    return call;
  }

  Pages pages() {
    return {shape.format, shape.kv_heads, static_cast<std::int64_t>(table.size()), page_bytes.data()};
  }
  Basis basis() const {
    return {key_signs.data(),
            query_signs.data(),
            value_signs.data(),
            plan.base,
            plan.base > 1 ? plan.base_matrix.data() : nullptr,
            key_metric.empty() ? nullptr : key_metric.data()};
  }
  Fringe fringe() {
    if (shape.fringe_first + shape.fringe_recent == 0) return {};
    return {shape.fringe_first, shape.fringe_recent, fringe_halves.data(), recent_starts.data()};
  }
  Sequences sequences(const std::int32_t* token_starts) const {
    return {shape.sequences,
            shape.max_pages,
            table.data(),
            lengths.data(),
            shape.starts.empty() ? nullptr : shape.starts.data(),
            token_starts};
  }
  Rows rows(const std::vector<float>& data, int heads) const {
    return {DType::kF32, data.data(), std::int64_t{heads} * d(), d()};
  }

  EncodeArgs encode_args(const Call& call) {
    return {pages(),
            basis(),
            fringe(),
            sequences(call.token_starts.data()),
            rows(call.keys, shape.kv_heads),
            rows(call.values, shape.kv_heads)};
  }
  void append(const KernelTable& kernels, const Call& call) {
    kernels.encode(encode_args(call), default_executor());
    for (std::size_t i = 0; i < lengths.size(); ++i)
      lengths[i] += call.token_starts[i + 1] - call.token_starts[i];
  }
  AttendArgs attend_args(const Call& call) {
    AttendArgs a;
    a.pages = pages();
    a.basis = basis();
    a.fringe = fringe();
    a.sequences = sequences(call.token_starts.data());
    a.q_heads = q_heads();
    a.query = rows(call.query, q_heads());
    a.keys = rows(call.keys, shape.kv_heads);
    a.values = rows(call.values, shape.kv_heads);
    a.scale = 1.0f / std::sqrt(static_cast<float>(d()));
    return a;
  }

  struct Attended {
    std::vector<float> out, lse;
  };
  // Runs attend into poisoned outputs.
  Attended attend(const KernelTable& kernels, AttendArgs a) {
    const int tokens = a.sequences.token_starts[shape.sequences];
    Attended result{std::vector<float>(n(tokens * q_heads() * d()), NAN),
                    std::vector<float>(n(tokens * q_heads()), NAN)};
    a.out = {DType::kF32, result.out.data(), std::int64_t{q_heads()} * d(), d()};
    a.lse = result.lse.data();
    std::vector<float> workspace(
        kernels.attend_workspace_bytes(shape.format, shape.kv_heads, q_heads(), shape.sequences, tokens,
                                       default_executor().threads()) /
            4,
        NAN);
    a.workspace = workspace.data();
    a.workspace_bytes = workspace.size() * 4;
    kernels.attend(a, default_executor());
    return result;
  }

  Shape shape;
  std::mt19937 rng;
  HadamardPlan plan;
  std::vector<float> key_signs, query_signs, value_signs, common;
  std::vector<std::int8_t> key_metric;
  std::vector<std::int32_t> table, lengths, recent_starts;
  std::vector<std::uint8_t> page_bytes;
  std::vector<std::uint16_t> fringe_halves;
};

// Every table but the reference, that runs here.
inline std::vector<const KernelTable*> fast_tables() {
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : all())
    if (table != &kReference && table->runs_here()) tables.push_back(table);
  return tables;
}

}  // namespace turboquant::kernels
