// SPDX-License-Identifier: Apache-2.0
// One sequence of random keys and values in pages, and a decode step over it: what `turboquant bench` times.
#pragma once

#include <cstdint>
#include <vector>

#include "turboquant/attention.h"
#include "turboquant/rotation.h"

namespace turboquant::command {

struct BenchShape {
  int head_dim = 128, k_bits = 4, v_bits = 4;
  int tokens = 2048, kv_heads = 8, group = 4;  // group: query heads a KV head

  PageFormat format() const { return {head_dim, k_bits, v_bits}; }
  int pages() const { return (tokens + kPageTokens - 1) / kPageTokens; }
  int q_heads() const { return kv_heads * group; }
  std::size_t sequence_bytes() const {
    return static_cast<std::size_t>(pages()) * static_cast<std::size_t>(kv_heads) * format().page_bytes();
  }
};

// size is a multiple of 8.
std::uint64_t sum_of(const std::uint64_t* data, std::size_t size);

// The same sequence lies in the pool several times, so that attend(i) can find its pages cold.
class BenchProblem {
 public:
  // Draws the vectors; nothing is encoded yet.
  static Result<BenchProblem> make(const BenchShape& shape, int copies);

  // Encodes all tokens into the first copy, in one call.
  Status encode_all();
  // After encode_all(): the other copies.
  void copy_pages();
  // One query a head over all tokens of a copy.
  Status attend_copy(int copy);
  // After attend_copy(): the largest difference of its output from a double-precision softmax over the
  // decoded pages, over the largest decoded value.
  Result<double> attend_error();

 private:
  explicit BenchProblem(const BenchShape& shape) : shape_(shape) {}
  Pages pages();
  Basis basis() const;

  BenchShape shape_;
  HadamardPlan plan_;
  std::vector<float> signs_;              // [kv_heads, head_dim], for keys, queries and values
  std::vector<float> keys_, values_;      // [tokens, kv_heads, head_dim]
  std::vector<float> query_, out_;        // [q_heads, head_dim]
  std::vector<std::uint8_t> pool_;        // [copies, pages, kv_heads, page_bytes]
  std::vector<std::int32_t> page_table_;  // [copies, pages]
  std::vector<std::uint8_t> workspace_;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace turboquant::command
