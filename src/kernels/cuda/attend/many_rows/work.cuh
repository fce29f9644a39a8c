// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/layout.cuh"
#include "kernels/cuda/vectors.cuh"

// What a CTA does: which rows, and which tiles of 64 tokens they meet, in this order: pages of the history,
// the fringe's first tokens, its recent tokens, the call's own tokens. A split takes an even share of them.
namespace turboquant::kernels::cuda::many {

struct Work {
  int sequence, head;      // KV head
  std::int64_t first_row;  // of the sequence's (query, head of group) pairs
  int rows;                // of the tile; 0: nothing to do
  int first_token;         // row of the call where the sequence begins
  std::int64_t length, start;
  int first_query, last_query;  // the tile's, of the sequence's tokens
  int own_tokens;               // of the sequence that this tile may see
  FringeSpan span;
  std::int64_t page_begin, first_from, recent_from, own_from;  // positions, page_begin a page index
  int pages_end, first_end, recent_end;                        // tile numbers where each kind ends
  int begin, end;                                              // this split's tile numbers
  int whole_begin, whole_end;                                  // pages of which every row sees every token
};

// Row tile `index` of all the sequences with more than min_rows rows, in order: which sequence, and which of
// its tiles; or sequence -1. Called by one warp; the result is in all its lanes.
__device__ inline int2 find_tile(const Sequences& sequences, int group, int min_rows, int tile_rows,
                                 int index) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int each = (sequences.count + 31) / 32, first = lane * each;
  const auto tiles_of = [&](int i) {
    if (i >= sequences.count) return 0;
    const std::int64_t rows = std::int64_t{sequences.token_starts[i + 1] - sequences.token_starts[i]} * group;
    return rows > min_rows ? static_cast<int>((rows + tile_rows - 1) / tile_rows) : 0;
  };
  int mine = 0;
  for (int k = 0; k < each; ++k) mine += tiles_of(first + k);
  int upto = mine;
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, upto, step);
    if (lane >= step) upto += below;
  }
  const bool here = index < upto && index >= upto - mine;
  const unsigned owner = __ballot_sync(0xffffffffu, here);
  if (owner == 0) return {-1, 0};
  int2 found = {-1, 0};
  if (here) {
    int left = index - (upto - mine), i = first;
    for (int tiles = tiles_of(i); left >= tiles; tiles = tiles_of(i)) left -= tiles, ++i;
    found = {i, left};
  }
  const int source = __ffs(static_cast<int>(owner)) - 1;
  found.x = __shfl_sync(0xffffffffu, found.x, source);
  found.y = __shfl_sync(0xffffffffu, found.y, source);
  return found;
}

__device__ inline int tiles_for(std::int64_t from, std::int64_t to) {
  return to > from ? static_cast<int>((to - from + kPageTokens - 1) / kPageTokens) : 0;
}

__device__ inline Work make_work(const AttendArgs& a, int2 tile, int tile_rows, int head, int split,
                                 int splits) {
  Work w{};
  if (tile.x < 0) return w;
  const int group = a.q_heads / a.pages.kv_heads;
  w.sequence = tile.x, w.head = head;
  w.first_token = a.sequences.token_starts[tile.x];
  const int tokens = a.sequences.token_starts[tile.x + 1] - w.first_token;
  w.first_row = std::int64_t{tile.y} * tile_rows;
  const std::int64_t left = std::int64_t{tokens} * group - w.first_row;
  w.rows = static_cast<int>(left < tile_rows ? left : tile_rows);
  w.first_query = static_cast<int>(w.first_row / group);
  w.last_query = static_cast<int>((w.first_row + w.rows - 1) / group);
  w.span = fringe_span(a.fringe, a.sequences, tile.x);
  w.length = w.span.length, w.start = w.span.start;

  std::int64_t lowest = w.start;  // of the positions that any row sees
  if (a.window > 0) {
    const std::int64_t reach = w.length + w.first_query - a.window + 1;
    if (reach > lowest) lowest = reach;
  }
  const auto clipped = [&](std::int64_t from) { return from > lowest ? from : lowest; };
  const std::int64_t stored_from = clipped(w.span.first_end);
  w.page_begin = stored_from / kPageTokens;
  const int pages =
      w.span.recent_start > stored_from ? tiles_for(w.page_begin * kPageTokens, w.span.recent_start) : 0;
  w.first_from = clipped(w.span.start);
  w.recent_from = clipped(w.span.recent_start);
  w.own_tokens = a.keys.data == nullptr ? 0 : w.last_query + 1;
  w.own_from = w.length;
  if (lowest > w.length) w.own_from += (lowest - w.length) / kPageTokens * kPageTokens;
  w.pages_end = pages;
  w.first_end = w.pages_end + tiles_for(w.first_from, w.span.first_end);
  w.recent_end = w.first_end + tiles_for(w.recent_from, w.length);
  const std::int64_t all = w.recent_end + tiles_for(w.own_from, w.length + w.own_tokens);
  w.begin = static_cast<int>(all * split / splits);
  w.end = static_cast<int>(all * (split + 1) / splits);

  std::int64_t whole_from = w.span.first_end;  // what the last query sees
  if (a.window > 0) {
    const std::int64_t reach = w.length + w.last_query - a.window + 1;
    if (reach > whole_from) whole_from = reach;
  }
  w.whole_begin = static_cast<int>((whole_from + kPageTokens - 1) / kPageTokens - w.page_begin);
  w.whole_end = static_cast<int>(w.span.recent_start / kPageTokens - w.page_begin);
  return w;
}

// Tile `item`: slot s holds position `position` + s, for s in [begin, end).
struct TileSpan {
  std::int64_t position;
  int begin, end;
};
__device__ inline TileSpan tile_span(const Work& w, int item) {
  std::int64_t position, from, to;
  if (item < w.pages_end) {
    position = (w.page_begin + item) * kPageTokens, from = w.span.first_end, to = w.span.recent_start;
  } else if (item < w.first_end) {
    position = from = w.first_from + std::int64_t{item - w.pages_end} * kPageTokens, to = w.span.first_end;
  } else if (item < w.recent_end) {
    position = from = w.recent_from + std::int64_t{item - w.first_end} * kPageTokens, to = w.length;
  } else {
    position = from = w.own_from + std::int64_t{item - w.recent_end} * kPageTokens;
    to = w.length + w.own_tokens;
  }
  return {position, from > position ? static_cast<int>(from - position) : 0,
          to - position < kPageTokens ? static_cast<int>(to - position) : kPageTokens};
}

// The slots of a tile that the query `token` of the sequence sees.
struct Seen {
  int begin, end;
};
__device__ inline Seen seen_slots(const AttendArgs& a, const Work& w, const TileSpan& tile, int token) {
  const std::int64_t at = w.length + token;
  std::int64_t lowest = w.start;
  if (a.window > 0 && at - a.window + 1 > lowest) lowest = at - a.window + 1;
  const std::int64_t from = lowest - tile.position, to = at + 1 - tile.position;
  return {from > tile.begin ? static_cast<int>(from < tile.end ? from : tile.end) : tile.begin,
          to < tile.end ? static_cast<int>(to > tile.begin ? to : tile.begin) : tile.end};
}
// Whether every row sees every slot: what the first query must reach up to, and the last one down to.
__device__ inline bool all_seen(const AttendArgs& a, const Work& w, const TileSpan& tile) {
  const Seen first = seen_slots(a, w, tile, w.first_query), last = seen_slots(a, w, tile, w.last_query);
  return first.begin == 0 && first.end == kPageTokens && last.begin == 0 && last.end == kPageTokens;
}

}  // namespace turboquant::kernels::cuda::many
