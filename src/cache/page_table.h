// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace turboquant::cache {

// Which page holds which tokens of which sequence: sequences, reference counts and the free list, as plain
// integers. It knows no bytes: page numbers are the same in the pool of every layer.
//
// A page of several owners is never written. prepare() gives a writer pages of its own (copy on write) and
// returns what it changed, so that the caller can copy the bytes, or undo() all of it.
// Nothing here checks its arguments: the cache does.
class PageTable {
 public:
  // Positions [begin, end) of a sequence, about to be written; begin lies within its pages or at their end.
  struct Write {
    int sequence;
    std::int64_t begin, end;
  };
  // Entry `index` of a sequence went from page `before` (kNone: the sequence got longer) to page `after`.
  struct Change {
    int sequence;
    int index;
    std::int32_t before, after;
  };
  static constexpr std::int32_t kNone = -1;

  void add_pages(std::int32_t count);  // to the pool, free

  int add();  // an empty sequence; its number is the smallest free one
  void remove(int sequence);
  int fork(int source);  // a new sequence of the same pages
  void truncate(int sequence, int pages);
  // Sequence targets[i] becomes what sources[i] was, all at once. Targets are distinct.
  void assign(std::span<const int> targets, std::span<const int> sources);
  void clear();  // removes every sequence; the pages stay

  // How many free pages prepare() of these writes takes. Sequences are distinct.
  std::int32_t pages_needed(std::span<const Write> writes);
  void prepare(std::span<const Write> writes, std::vector<Change>& changes);  // appends to changes
  void undo(std::span<const Change> changes);  // those of the last prepare(), nothing in between

  bool contains(int sequence) const {
    return sequence >= 0 && sequence < slots() && page_counts_[static_cast<std::size_t>(sequence)] != kNone;
  }
  int slots() const { return static_cast<int>(page_counts_.size()); }  // sequence numbers are below
  int sequences() const { return sequences_; }
  std::int32_t pages() const { return static_cast<std::int32_t>(references_.size()); }
  std::int32_t free_pages() const { return static_cast<std::int32_t>(free_.size()); }
  std::int32_t references(std::int32_t page) const { return references_[static_cast<std::size_t>(page)]; }
  std::int64_t all_references() const { return all_references_; }  // a copy of each would take so many pages
  std::span<const std::int32_t> pages_of(int sequence) const {
    return {row(sequence), static_cast<std::size_t>(page_counts_[static_cast<std::size_t>(sequence)])};
  }
  const std::int32_t* row(int sequence) const { return table_.data() + row_offset(sequence); }
  int width() const { return width_; }  // entries in a row
  std::size_t bytes() const;            // held in the heap

 private:
  std::size_t row_offset(int sequence) const {
    return static_cast<std::size_t>(sequence) * static_cast<std::size_t>(width_);
  }
  void widen(std::int64_t entries);
  std::int32_t take();
  void release(std::int32_t page);

  std::vector<std::int32_t> table_;        // [slots, width]
  std::vector<std::int32_t> page_counts_;  // [slots]; kNone: no such sequence
  std::vector<std::int32_t> references_;   // [pages]
  std::vector<std::int32_t> free_;         // the last one is taken first
  std::vector<std::int32_t> scratch_;
  std::int64_t all_references_ = 0;
  int sequences_ = 0;
  int width_ = 4;
};

}  // namespace turboquant::cache
