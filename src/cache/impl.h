// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache/growth.h"
#include "cache/page_table.h"
#include "turboquant/cache.h"

namespace turboquant {
namespace cache {

// What one layer owns.
struct Layer {
  Buffer pool;                        // [pages, kv_heads, page_bytes]
  Buffer fringe;                      // [slots, kv_heads, S + W, 2, head_dim] fp16
  std::vector<std::int32_t> lengths;  // [slots]; layers differ in the middle of a model's step only
  std::vector<float> key_signs, query_signs, value_signs;  // [kv_heads, head_dim]
  bool balance_pending = false;
};

// An ascending run of a batch's sequences as the verbs take it: all slots from the first to the last, those
// between that the batch does not name with no tokens.
struct Run {
  int first_slot, slots;
  std::int64_t first_row, rows;
  const std::int32_t* token_starts;  // [slots + 1]
};

inline std::size_t size(std::int64_t n) {
  return static_cast<std::size_t>(n);
}
inline std::string number(std::int64_t n) {
  return std::to_string(n);
}

// rows from `row` on
inline Rows from_row(Rows rows, std::int64_t row) {
  if (rows.data != nullptr)
    rows.data = static_cast<const std::uint8_t*>(rows.data) +
                row * rows.token_stride * static_cast<int>(size_of(rows.dtype));
  return rows;
}
inline MutableRows from_row(MutableRows rows, std::int64_t row) {
  if (rows.data != nullptr)
    rows.data = static_cast<std::uint8_t*>(rows.data) +
                row * rows.token_stride * static_cast<int>(size_of(rows.dtype));
  return rows;
}

}  // namespace cache

struct PagedCache::Impl {
  CacheConfig config;
  std::vector<float> base_matrix;  // of the Hadamard plan
  int base = 1;
  cache::PageTable table;
  std::vector<cache::Layer> layers;
  std::vector<std::int32_t> recent_starts;  // [slots]; of all layers
  int slots = 0;                            // sequences that fringes and lengths have room for
  cache::Buffer workspace;
  std::vector<std::int32_t> token_starts;  // of a Run
  std::vector<std::int32_t> gathered;      // of reorder
  std::vector<cache::PageTable::Write> writes;
  std::vector<cache::PageTable::Change> changes;
  std::vector<std::uint8_t> seen;  // [slots]; which sequences a call has named

  // memory.cc
  Status grow_pages(std::int64_t pages);
  Status grow_slots(int needed);
  Status grow_workspace(std::size_t bytes);
  std::size_t pool_page_bytes() const;    // of one layer: a page of every KV head
  std::size_t fringe_slot_bytes() const;  // of one layer and sequence
  CacheUsage usage() const;

  // sequences.cc
  Status known(int sequence) const;
  std::int64_t longest(int sequence) const;  // over the layers
  Status truncate(int sequence, std::int64_t length);
  Status reorder(std::span<const int> targets, std::span<const int> sources);

  // step.cc
  Status check_batch(int layer, std::span<const NewTokens> batch);
  Status begin(int layer, std::span<const NewTokens> batch);  // pages for the batch's tokens
  void abandon();                                             // undoes begin
  void advance(int layer, std::span<const NewTokens> batch);
  Status encode(int layer, std::span<const NewTokens> batch, const BatchRows& rows);
  Status attend(int layer, std::span<const NewTokens> batch, const BatchRows& rows, const MutableRows& out,
                const AttendOptions& options);
  Status measure_balance(int layer, std::span<const NewTokens> batch, const BatchRows& rows);
  void set_balance(cache::Layer& layer, const float* balance);  // null: 1
  template <class F>
  Status for_each_run(std::span<const NewTokens> batch, F&& body);

  Pages pages(int layer) const;
  Basis basis(int layer) const;
  Fringe fringe(int layer, int first_slot) const;
  Sequences sequences(int layer, const cache::Run& run) const;
};

}  // namespace turboquant
