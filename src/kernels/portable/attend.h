// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/portable/softmax.h"

// What the stages of attend share. A task is a block of up to 32 rows, a row being a query of one head of a
// KV head's group, so that a page is unpacked once for all heads of its group. A tile is 64 tokens of keys
// [64][d] and values [d][64]: a page unpacked, a piece of the fringe, or a piece of the call's own rows.
// The stages: load_queries; attend_page, attend_fringe, attend_own; finish_row or, of splits, merge_row.
namespace turboquant::kernels::TQ_ISA {

struct Plan {
  const AttendArgs& a;
  Layout layout;
  int group, splits;
  std::int64_t most_blocks;  // of a sequence's rows
  float* partials;           // splits > 1: [splits, tokens * q_heads, 2 d + 2]

  int d() const { return layout.format.head_dim; }
  std::int64_t rows() const { return std::int64_t{a.sequences.token_starts[a.sequences.count]} * a.q_heads; }
};

// A block and the part of its history that a task does. Positions are of the sequence.
struct Block {
  int i, head;             // sequence, KV head
  std::int64_t first_row;  // of token_starts[i]'s (query, head of group) pairs
  int rows;
  std::int64_t length, start;
  std::int64_t page_begin, page_end;  // this task's pages
  bool exact;                         // this task does fringe and own tokens too
};

static constexpr int kScoreStride = kPageTokens + 16;  // a tile's 64 scores and its centre's, padded

struct Scratch {
  alignas(64) float raw[kMaxRows * kMaxDim];            // [row][d]: scale * q
  alignas(64) float rotated[kMaxRows * kMaxDim];        // [row][d]: the same in the rotated domain
  alignas(64) float stored[kMaxRows * kMaxDim];         // [row][d]: rotated, in the order of unpacked keys
  alignas(64) float keys[(kPageTokens + 1) * kMaxDim];  // row 64: the page's centre
  alignas(64) float values[kMaxDim * kPageTokens];
  alignas(64) float scores[kMaxRows * kScoreStride];
  alignas(64) float products[kMaxRows * kMaxDim];
  Running running;
};

static inline std::int64_t query_position(const Plan& plan, const Block& block, int r) {
  return block.length + (block.first_row + r) / plan.group;
}

// The slots of a tile at `position` that row r sees, of those in [begin, end).
struct Seen {
  int begin, end;
};
static inline Seen seen(const Plan& plan, const Block& block, int r, std::int64_t position, int begin,
                        int end) {
  const std::int64_t at = query_position(plan, block, r);
  std::int64_t lowest = block.start;
  if (plan.a.window > 0 && at - plan.a.window + 1 > lowest) lowest = at - plan.a.window + 1;
  const std::int64_t from = lowest - position, to = at + 1 - position;
  return {from > begin ? static_cast<int>(from < end ? from : end) : begin,
          to < end ? static_cast<int>(to > begin ? to : begin) : end};
}

// tiles.cc: each adds a tile's weights and values to s.running.
void attend_page(const Plan& plan, const Block& block, std::int64_t page_index, int begin, int end,
                 Scratch& s);
void attend_fringe(const Plan& plan, const Block& block, const FringeView& fringe, std::int64_t from,
                   std::int64_t to, Scratch& s);
void attend_own(const Plan& plan, const Block& block, Scratch& s);

// merge.cc: a block's queries in, a row's sums out.
void load_queries(const Plan& plan, const Block& block, Scratch& s);
void finish_row(const Plan& plan, int i, int kv_head, std::int64_t pair, float largest, float sum,
                float* history, const float* own);
float* partial_of(const Plan& plan, int split, int i, int kv_head, std::int64_t pair);
void merge_row(const Plan& plan, int i, int kv_head, std::int64_t pair);

}  // namespace turboquant::kernels::TQ_ISA
