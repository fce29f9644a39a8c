// SPDX-License-Identifier: Apache-2.0
// attend: blocks of rows, each with its pages, fringe and own tokens; long histories are split over tasks
// and merged at the end. The stages are in attend.h.
#include "kernels/portable/attend.h"

namespace turboquant::kernels::TQ_ISA {
namespace {

void attend_block(const Plan& plan, const Block& block, int split) {
  Scratch s;
  const int d = plan.d();
  load_queries(plan, block, s);
  const FringeView fringe = fringe_view(plan.a.fringe, plan.a.sequences, block.i);
  // The fringe holds [start, first_end) and [recent_start, length); pages supply what lies between.
  std::int64_t first_end = block.start + fringe.first;
  if (first_end > fringe.recent_start) first_end = fringe.recent_start;
  if (first_end < block.start) first_end = block.start;
  std::int64_t lowest = first_end;
  if (plan.a.window > 0) {
    const std::int64_t reach = query_position(plan, block, 0) - plan.a.window + 1;
    if (reach > lowest) lowest = reach;
  }
  for (std::int64_t page = block.page_begin; page < block.page_end; ++page) {
    const std::int64_t position = page * kPageTokens;
    const std::int64_t from = lowest - position, to = fringe.recent_start - position;
    const int begin = from > 0 ? static_cast<int>(from < kPageTokens ? from : kPageTokens) : 0;
    const int end = to < kPageTokens ? static_cast<int>(to > 0 ? to : 0) : kPageTokens;
    if (begin < end) attend_page(plan, block, page, begin, end, s);
  }
  if (block.exact) {
    attend_fringe(plan, block, fringe, block.start, first_end, s);
    attend_fringe(plan, block, fringe, fringe.recent_start, block.length, s);
    if (plan.a.keys.data != nullptr) attend_own(plan, block, s);
  }
  for (int r = 0; r < block.rows; ++r) {
    const std::int64_t pair = block.first_row + r;
    float *history = s.running.history + r * d, *own = s.running.own + r * d;
    if (plan.splits == 1) {
      finish_row(plan, block.i, block.head, pair, s.running.largest[r], s.running.sum[r], history, own);
      continue;
    }
    float* partial = partial_of(plan, split, block.i, block.head, pair);
    for (int e = 0; e < d; ++e) {
      partial[e] = history[e];
      partial[d + e] = own[e];
    }
    partial[2 * d] = s.running.largest[r];
    partial[2 * d + 1] = s.running.sum[r];
  }
}

// Splits only where blocks alone would leave threads idle; independent of lengths, so that the workspace is.
int split_count(int kv_heads, int q_heads, int sequences, std::int64_t tokens, int threads) {
  const std::int64_t blocks_of_tokens = tokens * (q_heads / kv_heads) / kMaxRows;
  const std::int64_t blocks = kv_heads * (blocks_of_tokens > sequences ? blocks_of_tokens : sequences);
  const std::int64_t wanted = (std::int64_t{4} * threads + blocks - 1) / blocks;
  return static_cast<int>(wanted < 1 ? 1 : wanted > 64 ? 64 : wanted);
}

void run_task(const Plan& plan, std::size_t task) {
  const AttendArgs& a = plan.a;
  const int split = static_cast<int>(task % static_cast<std::size_t>(plan.splits));
  auto index = static_cast<std::int64_t>(task / static_cast<std::size_t>(plan.splits));
  Block block;
  block.first_row = index % plan.most_blocks * kMaxRows;
  index /= plan.most_blocks;
  block.head = static_cast<int>(index % a.pages.kv_heads);
  block.i = static_cast<int>(index / a.pages.kv_heads);
  const std::int64_t tokens = a.sequences.token_starts[block.i + 1] - a.sequences.token_starts[block.i];
  const std::int64_t left = tokens * plan.group - block.first_row;
  if (left <= 0) return;
  block.rows = static_cast<int>(left < kMaxRows ? left : kMaxRows);
  block.length = a.sequences.lengths[block.i];
  block.start = start_of(a.sequences, block.i);
  const std::int64_t pages = (block.length + kPageTokens - 1) / kPageTokens;
  std::int64_t first = block.start / kPageTokens;
  if (a.window > 0) {
    const std::int64_t lowest = query_position(plan, block, 0) - a.window + 1;
    if (lowest / kPageTokens > first) first = lowest / kPageTokens;
  }
  if (first > pages) first = pages;
  block.page_begin = first + (pages - first) * split / plan.splits;
  block.page_end = first + (pages - first) * (split + 1) / plan.splits;
  block.exact = split == plan.splits - 1;
  attend_block(plan, block, split);
}

}  // namespace

void attend(const AttendArgs& a, Executor& executor) {
  const Sequences& sequences = a.sequences;
  if (sequences.count == 0 || sequences.token_starts[sequences.count] == 0) return;
  Plan plan{a, {}, a.q_heads / a.pages.kv_heads, 1, 0, static_cast<float*>(a.workspace)};
  make_layout(a.pages.format, plan.layout);
  plan.splits = split_count(a.pages.kv_heads, a.q_heads, sequences.count,
                            sequences.token_starts[sequences.count], executor.threads());
  for (int i = 0; i < sequences.count; ++i) {
    const std::int64_t rows =
        std::int64_t{sequences.token_starts[i + 1] - sequences.token_starts[i]} * plan.group;
    const std::int64_t blocks = (rows + kMaxRows - 1) / kMaxRows;
    if (blocks > plan.most_blocks) plan.most_blocks = blocks;
  }
  const std::int64_t tasks =
      std::int64_t{sequences.count} * a.pages.kv_heads * plan.most_blocks * plan.splits;
  executor.for_each(static_cast<std::size_t>(tasks), [&](std::size_t task) { run_task(plan, task); });
  if (plan.splits == 1) return;
  executor.for_each(static_cast<std::size_t>(sequences.count), [&](std::size_t task) {
    const int i = static_cast<int>(task);
    const std::int64_t tokens = sequences.token_starts[i + 1] - sequences.token_starts[i];
    for (int h = 0; h < a.pages.kv_heads; ++h)
      for (std::int64_t pair = 0; pair < tokens * plan.group; ++pair) merge_row(plan, i, h, pair);
  });
}

std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, int threads) {
  const auto splits = static_cast<std::size_t>(split_count(kv_heads, q_heads, sequences, tokens, threads));
  if (splits == 1) return 0;
  const auto row_floats = static_cast<std::size_t>(2 * format.head_dim + 2);
  return splits * static_cast<std::size_t>(tokens) * static_cast<std::size_t>(q_heads) * row_floats *
         sizeof(float);
}

}  // namespace turboquant::kernels::TQ_ISA
