// SPDX-License-Identifier: Apache-2.0
#include "bench_problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

namespace turboquant::command {
namespace {

std::vector<float> normal(std::size_t count, std::mt19937& random) {
  std::normal_distribution<float> draw;
  std::vector<float> out(count);
  for (float& x : out) x = draw(random);
  return out;
}

}  // namespace

std::uint64_t sum_of(const std::uint64_t* data, std::size_t size) {
  std::uint64_t lanes[8] = {};  // independent sums: an add must not wait for the one before
  for (std::size_t k = 0; k < size; k += 8)
    for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] += data[k + lane];
  return std::accumulate(std::begin(lanes), std::end(lanes), std::uint64_t{0});
}

Result<BenchProblem> BenchProblem::make(const BenchShape& shape, int copies) {
  if (Status s = check(shape.format()); !s.ok()) return s.error();
  auto plan = hadamard_plan(shape.head_dim);
  if (!plan.ok()) return plan.error();
  BenchProblem problem(shape);
  const auto d = static_cast<std::size_t>(shape.head_dim), heads = static_cast<std::size_t>(shape.kv_heads);
  std::mt19937 random(1);
  problem.plan_ = std::move(plan.value());
  problem.signs_ = random_signs(shape.kv_heads * shape.head_dim, 1);
  problem.keys_ = normal(static_cast<std::size_t>(shape.tokens) * heads * d, random);
  problem.values_ = normal(problem.keys_.size(), random);
  problem.query_ = normal(static_cast<std::size_t>(shape.q_heads()) * d, random);
  problem.out_.resize(problem.query_.size());
  problem.pool_.resize(shape.sequence_bytes() * static_cast<std::size_t>(copies));
  problem.page_table_.resize(static_cast<std::size_t>(copies * shape.pages()));
  std::iota(problem.page_table_.begin(), problem.page_table_.end(), 0);
  problem.workspace_bytes_ = attend_workspace_bytes(shape.format(), shape.kv_heads, shape.q_heads(), 1, 1);
  problem.workspace_.resize(problem.workspace_bytes_ + 64);
  return problem;
}

Pages BenchProblem::pages() {
  return {shape_.format(), shape_.kv_heads, static_cast<std::int64_t>(page_table_.size()), pool_.data()};
}

Basis BenchProblem::basis() const {
  return {signs_.data(), signs_.data(), signs_.data(), plan_.base,
          plan_.base_matrix.empty() ? nullptr : plan_.base_matrix.data()};
}

Status BenchProblem::encode_all() {
  const std::int32_t length = 0, token_starts[] = {0, shape_.tokens};
  EncodeArgs args;
  args.pages = pages();
  args.basis = basis();
  args.sequences = {1, shape_.pages(), page_table_.data(), &length, nullptr, token_starts};
  const std::int64_t stride = std::int64_t{shape_.kv_heads} * shape_.head_dim;
  args.keys = {DType::kF32, keys_.data(), stride, shape_.head_dim};
  args.values = {DType::kF32, values_.data(), stride, shape_.head_dim};
  return encode(args);
}

void BenchProblem::copy_pages() {
  const std::size_t bytes = shape_.sequence_bytes();
  for (std::size_t at = bytes; at < pool_.size(); at += bytes)
    std::memcpy(pool_.data() + at, pool_.data(), bytes);
}

Status BenchProblem::attend_copy(int copy) {
  const std::int32_t token_starts[] = {0, 1};
  AttendArgs args;
  args.pages = pages();
  args.basis = basis();
  args.sequences = {1,       shape_.pages(), page_table_.data() + copy * shape_.pages(), &shape_.tokens,
                    nullptr, token_starts};
  args.q_heads = shape_.q_heads();
  const std::int64_t stride = std::int64_t{shape_.q_heads()} * shape_.head_dim;
  args.query = {DType::kF32, query_.data(), stride, shape_.head_dim};
  args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  args.out = {DType::kF32, out_.data(), stride, shape_.head_dim};
  void* start = workspace_.data();
  std::size_t room = workspace_.size();
  args.workspace = std::align(64, workspace_bytes_, start, room);
  args.workspace_bytes = workspace_bytes_;
  return attend(args);
}

Result<double> BenchProblem::attend_error() {
  std::vector<float> keys(keys_.size()), values(values_.size());  // [kv_heads, tokens, head_dim]
  DecodeArgs args;
  args.pages = pages();
  args.basis = basis();
  args.sequences = {1, shape_.pages(), page_table_.data(), &shape_.tokens, nullptr, nullptr};
  args.max_tokens = shape_.tokens;
  args.keys = keys.data();
  args.values = values.data();
  if (Status s = decode(args); !s.ok()) return s.error();

  const auto d = static_cast<std::size_t>(shape_.head_dim), tokens = static_cast<std::size_t>(shape_.tokens);
  double worst = 0, largest = 0;
  for (const float v : values) largest = std::max(largest, std::abs(static_cast<double>(v)));
  for (std::size_t h = 0; h < static_cast<std::size_t>(shape_.q_heads()); ++h) {
    const std::size_t head = h / static_cast<std::size_t>(shape_.group) * tokens * d;
    const float* query = query_.data() + h * d;
    std::vector<double> score(tokens), out(d);
    for (std::size_t t = 0; t < tokens; ++t)
      score[t] = std::inner_product(query, query + d, keys.data() + head + t * d, 0.0) /
                 std::sqrt(static_cast<double>(d));
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      const double p = std::exp(score[t] - top);
      sum += p;
      for (std::size_t e = 0; e < d; ++e) out[e] += p * static_cast<double>(values[head + t * d + e]);
    }
    for (std::size_t e = 0; e < d; ++e)
      worst = std::max(worst, std::abs(out[e] / sum - static_cast<double>(out_[h * d + e])));
  }
  return worst / largest;
}

}  // namespace turboquant::command
