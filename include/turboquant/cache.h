// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "turboquant/attention.h"
#include "turboquant/device.h"
#include "turboquant/format.h"
#include "turboquant/status.h"

namespace turboquant {

// Where the balance s of the keys (docs/algorithm.md) comes from, per layer and KV head.
enum class BalanceMode : std::uint8_t {
  kFirstCall,  // measured at a layer's first tokens, which need their queries; then frozen until reset()
  kOff,        // 1
  kGiven,      // CacheConfig::balance
};

struct CacheConfig {
  PageFormat format{};
  int layers = 1;
  int kv_heads = 0;
  int q_heads = 0;                   // a multiple of kv_heads
  std::int64_t capacity_tokens = 0;  // fixed, rounded up to pages of 64 and allocated at once; 0: grows
  int max_sequences = 0;             // the same for sequences (their fringes); 0: grows
  int fringe_first = 4;              // 16-bit copies of each sequence's first ...
  int fringe_recent = 28;            // ... and newest tokens; both 0: no fringe
  BalanceMode balance_mode = BalanceMode::kFirstCall;
  std::vector<float> balance{};  // [layers, kv_heads, head_dim], positive; of kGiven only
  std::uint64_t seed = 0;        // of the signs: keys of layer l take seed + 2 l, values seed + 2 l + 1
  Context context{};             // where every call runs
};

// Tokens of a call: `count` rows for each sequence, rows in this order; a Batch does not own them. Sequences
// in ascending order are read in one go, others in as many as they have ascending runs.
struct NewTokens {
  int sequence;
  std::int64_t count;
};
class Batch {
 public:
  Batch(int sequence, std::int64_t count) : one_{sequence, count} {}
  Batch(std::span<const NewTokens> many) : many_(many), is_many_(true) {}
  Batch(const std::vector<NewTokens>& many) : Batch(std::span(many)) {}
  std::span<const NewTokens> tokens() const { return is_many_ ? many_ : std::span(&one_, 1); }

 private:
  NewTokens one_{};
  std::span<const NewTokens> many_;
  bool is_many_ = false;
};

// Rows of a call, as attention.h has them. append needs no query once the balance stands; attend without
// keys and values sees the history only.
struct BatchRows {
  Rows query{};           // [tokens, q_heads, head_dim]
  Rows keys{}, values{};  // [tokens, kv_heads, head_dim]
};

// Rows [tokens, heads, head_dim] without gaps.
inline Rows contiguous(const void* data, int heads, int head_dim, DType dtype = DType::kF32) {
  return {dtype, data, std::int64_t{heads} * head_dim, head_dim};
}
inline MutableRows contiguous_out(void* data, int heads, int head_dim, DType dtype = DType::kF32) {
  return {dtype, data, std::int64_t{heads} * head_dim, head_dim};
}

struct AttendOptions {
  float scale = 0;               // 0: 1 / sqrt(head_dim)
  float softcap = 0;             // 0: none
  int window = 0;                // 0: none
  const float* sinks = nullptr;  // [q_heads]
  float* lse = nullptr;          // [tokens, q_heads], written
};

// What a cache holds of memory, exactly: total_bytes() is what its allocations add up to.
struct CacheUsage {
  std::int64_t pages = 0, used_pages = 0;  // in the pool of each layer
  std::size_t pool_bytes = 0;              // of all layers
  std::size_t fringe_bytes = 0;
  std::size_t table_bytes = 0;      // page table, lengths, signs, the object
  std::size_t workspace_bytes = 0;  // of attend and reorder
  std::size_t total_bytes() const { return pool_bytes + fringe_bytes + table_bytes + workspace_bytes; }

  std::size_t used_bytes = 0;      // of pool_bytes: pages that hold tokens
  std::size_t shared_bytes = 0;    // what forks would take besides if they were copies
  std::size_t baseline_bytes = 0;  // a 16-bit cache of the same sequences, each on its own
};

// The KV cache of one model: a pool of pages for each layer, and the sequences in it. A layer's tokens go
// through step() (or attend(), then append()); the layers of a model take the same tokens and share one
// page table, so the first layer's call finds the pages and the others meet them.
//
// Every call checks first: on an Error the cache is as it was (only memory that a growing cache has taken
// stays). Of a step that failed in the middle of the layers, truncate() to the old length frees the rest.
// Rows are ragged, there is no padding. One thread at a time; the executor's threads work inside.
class PagedCache {
 public:
  static Result<PagedCache> create(const CacheConfig& config);
  PagedCache(PagedCache&&) noexcept;
  PagedCache& operator=(PagedCache&&) noexcept;
  ~PagedCache();

  // Sequences have small numbers; that of a freed one is given again.
  Result<int> add_sequence();
  // A copy that shares all pages; who writes into the last one first gets a copy of it. Fringes are copied.
  Result<int> fork(int sequence);
  Status free(int sequence);
  // The newest tokens are forgotten, in every layer. What the fringe still holds stays.
  Status truncate(int sequence, std::int64_t length);
  // Sequence targets[i] becomes what sources[i] was, all at once (beam search): swaps and repeats are fine.
  Status reorder(std::span<const int> targets, std::span<const int> sources);
  // As created: no sequences, no balance. Memory is kept.
  void reset();

  // Stores keys and values of new tokens behind the sequences' ends.
  Status append(int layer, const Batch& batch, const BatchRows& rows);
  // Attention of new tokens over their sequences and themselves; stores nothing.
  Status attend(int layer, const Batch& batch, const BatchRows& rows, const MutableRows& out,
                const AttendOptions& options = {});
  // attend, then append.
  Status step(int layer, const Batch& batch, const BatchRows& rows, const MutableRows& out,
              const AttendOptions& options = {});
  // What the cache holds of a sequence, as vectors: keys and values [kv_heads, max_tokens, head_dim].
  Status decode(int layer, int sequence, DType dtype, std::int64_t max_tokens, void* keys,
                void* values) const;

  const CacheConfig& config() const;  // without its balance
  bool contains(int sequence) const;
  int sequences() const;
  std::int64_t length(int sequence, int layer = 0) const;  // 0 for an unknown one
  CacheUsage usage() const;

  // The plain arrays beneath, for the verbs of attention.h. Calls that write or grow may move them.
  Pages pages(int layer) const;
  Basis basis(int layer) const;
  std::span<const std::int32_t> page_numbers(int sequence) const;

 private:
  struct Impl;
  explicit PagedCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace turboquant
