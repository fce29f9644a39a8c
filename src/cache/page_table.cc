// SPDX-License-Identifier: Apache-2.0
#include "cache/page_table.h"

#include <algorithm>

#include "cache/growth.h"
#include "turboquant/format.h"

namespace turboquant::cache {
namespace {

std::size_t index(int i) {
  return static_cast<std::size_t>(i);
}

template <class T>
std::size_t heap_bytes(const std::vector<T>& v) {
  return v.capacity() * sizeof(T);
}

int first_page(const PageTable::Write& write) {
  return static_cast<int>(write.begin / kPageTokens);
}
int end_page(const PageTable::Write& write) {
  if (write.begin == write.end) return first_page(write);
  return static_cast<int>((write.end + kPageTokens - 1) / kPageTokens);
}

}  // namespace

void PageTable::add_pages(std::int32_t count) {
  const std::int32_t old = pages();
  references_.resize(references_.size() + index(count), 0);
  free_.reserve(references_.size());
  // Behind the pages that are free already, and so that the lowest number is taken first: a pool fills from
  // its start, and memory that was never touched costs nothing.
  const auto added = free_.insert(free_.begin(), index(count), 0);
  for (std::int32_t i = 0; i < count; ++i) added[i] = old + count - 1 - i;
}

int PageTable::add() {
  const auto free_slot = std::find(page_counts_.begin(), page_counts_.end(), kNone);
  const int sequence = static_cast<int>(free_slot - page_counts_.begin());
  if (free_slot == page_counts_.end()) {
    page_counts_.push_back(0);
    table_.resize(page_counts_.size() * index(width_), 0);
  } else {
    *free_slot = 0;
  }
  ++sequences_;
  return sequence;
}

void PageTable::remove(int sequence) {
  truncate(sequence, 0);
  page_counts_[index(sequence)] = kNone;
  --sequences_;
}

int PageTable::fork(int source) {
  const int sequence = add();
  const int targets[] = {sequence}, sources[] = {source};
  assign(targets, sources);
  return sequence;
}

void PageTable::truncate(int sequence, int pages) {
  std::int32_t& count = page_counts_[index(sequence)];
  while (count > pages) release(table_[row_offset(sequence) + index(--count)]);
}

void PageTable::assign(std::span<const int> targets, std::span<const int> sources) {
  scratch_.clear();
  for (const int source : sources) {
    for (const std::int32_t page : pages_of(source)) {
      ++references_[index(page)];  // before any is released, so that none becomes free on the way
      ++all_references_;
      scratch_.push_back(page);
    }
    scratch_.push_back(kNone);
  }
  auto next = scratch_.begin();
  for (const int target : targets) {
    truncate(target, 0);
    std::int32_t* const out = table_.data() + row_offset(target);
    for (; *next != kNone; ++next) out[page_counts_[index(target)]++] = *next;
    ++next;
  }
}

void PageTable::clear() {
  for (int sequence = 0; sequence < slots(); ++sequence)
    if (contains(sequence)) remove(sequence);
}

std::int32_t PageTable::pages_needed(std::span<const Write> writes) {
  // Counts as prepare() acts: of r owners of a page that all write, r - 1 need a copy.
  scratch_.clear();
  std::int32_t needed = 0;
  for (const Write& write : writes) {
    const std::span<const std::int32_t> own = pages_of(write.sequence);
    for (int i = first_page(write); i < end_page(write); ++i) {
      if (index(i) >= own.size()) {
        ++needed;
      } else if (std::int32_t& references = references_[index(own[index(i)])]; references > 1) {
        --references;
        ++needed;
        scratch_.push_back(own[index(i)]);
      }
    }
  }
  for (const std::int32_t page : scratch_) ++references_[index(page)];
  return needed;
}

void PageTable::prepare(std::span<const Write> writes, std::vector<Change>& changes) {
  for (const Write& write : writes) {
    widen(end_page(write));
    std::int32_t& count = page_counts_[index(write.sequence)];
    for (int i = first_page(write); i < end_page(write); ++i) {
      std::int32_t& entry = table_[row_offset(write.sequence) + index(i)];
      const std::int32_t before = i < count ? entry : kNone;
      if (before != kNone && references(before) == 1) continue;
      entry = take();
      if (before == kNone) {
        ++count;
      } else {
        release(before);
      }
      changes.push_back({write.sequence, i, before, entry});
    }
  }
}

void PageTable::undo(std::span<const Change> changes) {
  for (auto change = changes.rbegin(); change != changes.rend(); ++change) {
    release(change->after);
    if (change->before == kNone) {
      --page_counts_[index(change->sequence)];
    } else {
      table_[row_offset(change->sequence) + index(change->index)] = change->before;
      ++references_[index(change->before)];
      ++all_references_;
    }
  }
}

std::size_t PageTable::bytes() const {
  return heap_bytes(table_) + heap_bytes(page_counts_) + heap_bytes(references_) + heap_bytes(free_) +
         heap_bytes(scratch_);
}

void PageTable::widen(std::int64_t entries) {
  if (entries <= width_) return;
  const int width = static_cast<int>(grown(width_, entries));
  std::vector<std::int32_t> table(page_counts_.size() * index(width), 0);
  for (std::size_t row = 0; row < page_counts_.size(); ++row)
    std::copy_n(table_.begin() + static_cast<std::ptrdiff_t>(row * index(width_)), width_,
                table.begin() + static_cast<std::ptrdiff_t>(row * index(width)));
  table_ = std::move(table);
  width_ = width;
}

std::int32_t PageTable::take() {
  const std::int32_t page = free_.back();
  free_.pop_back();
  references_[index(page)] = 1;
  ++all_references_;
  return page;
}

void PageTable::release(std::int32_t page) {
  --all_references_;
  if (--references_[index(page)] == 0) free_.push_back(page);
}

}  // namespace turboquant::cache
