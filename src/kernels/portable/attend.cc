// SPDX-License-Identifier: Apache-2.0
// attend. A task is a block of up to 32 rows, a row being a query of one head of a KV head's group, so that
// a page is unpacked once for all heads of its group; long histories are split over tasks, merged at the
// end. A tile is 64 tokens of keys [64][d] and values [d][64]: a page unpacked, a piece of the fringe, or
// a piece of the call's own rows. Bound by unpacking at one query, by multiply-adds from about 8 rows on.
#include <cmath>

#include "core/hadamard.h"
#include "kernels/encode_rules.h"
#include "kernels/portable/softmax.h"

namespace turboquant::kernels::TQ_ISA {
namespace {

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

struct Scratch {
  alignas(64) float raw[kMaxRows * kMaxDim];            // [row][d]: scale * q
  alignas(64) float rotated[kMaxRows * kMaxDim];        // [row][d]: the same in the rotated domain
  alignas(64) float stored[kMaxRows * kMaxDim];         // [row][d]: rotated, in the order of unpacked keys
  alignas(64) float keys[(kPageTokens + 1) * kMaxDim];  // row 64: the page's centre
  alignas(64) float values[kMaxDim * kPageTokens];
  alignas(64) float scores[kMaxRows * (kPageTokens + 16)];
  alignas(64) float products[kMaxRows * kMaxDim];
  Running running;
};
constexpr int kScoreStride = kPageTokens + 16;

inline std::int64_t query_position(const Plan& plan, const Block& block, int r) {
  return block.length + (block.first_row + r) / plan.group;
}

// The slots of a tile at `position` that row r sees, of those in [begin, end).
struct Seen {
  int begin, end;
};
inline Seen seen(const Plan& plan, const Block& block, int r, std::int64_t position, int begin, int end) {
  const std::int64_t at = query_position(plan, block, r);
  std::int64_t lowest = block.start;
  if (plan.a.window > 0 && at - plan.a.window + 1 > lowest) lowest = at - plan.a.window + 1;
  const std::int64_t from = lowest - position, to = at + 1 - position;
  return {from > begin ? static_cast<int>(from < end ? from : end) : begin,
          to < end ? static_cast<int>(to > begin ? to : begin) : end};
}

inline void cap(const Plan& plan, float* scores) {
  if (!(plan.a.softcap > 0)) return;
  for (int t = 0; t < kPageTokens; ++t) scores[t] = plan.a.softcap * std::tanh(scores[t] / plan.a.softcap);
}

// Adds weights x values; the weights are in scores, 0 where a row does not see a token.
void add_values(const Plan& plan, const Block& block, Scratch& s, float* sums) {
  const int d = plan.d();
  dot_products(s.scores, kScoreStride, block.rows, s.values, kPageTokens, d, kPageTokens, s.products, d);
  for (int x = 0; x < block.rows * d; x += kLanes) store(sums + x, load(sums + x) + load(s.products + x));
}

// A page's scales by slot; centred is 1 where the reference is the centre. Values outside [begin, end) get 0.
void load_scales(const std::uint8_t* page, const PageFormat& format, int begin, int end, float* key_scales,
                 float* centred, float* value_scales) {
  float keys[kPageTokens], values[kPageTokens], about_centre[kPageTokens];
  const std::uint8_t *k = page + format.k_scales_offset(), *v = page + format.v_scales_offset();
  for (int x = 0; x < kPageTokens; ++x) {
    const std::uint16_t stored = half_at(k, x);
    keys[x] = core::half_to_float(stored & 0x7fffu) * (1.0f / core::kScaleUnit);
    about_centre[x] = (stored & kReferenceIsZero) == 0 ? 1.0f : 0.0f;
    values[x] = core::half_to_float(half_at(v, x)) * (1.0f / core::kScaleUnit);
  }
  for (int t = 0; t < kPageTokens; ++t) {
    const int x = core::scale_index(t);
    key_scales[t] = keys[x];
    centred[t] = about_centre[x];
    value_scales[t] = t >= begin && t < end ? values[x] : 0.0f;
  }
}

// A page: slots [begin, end) that the fringe does not hold.
void attend_page(const Plan& plan, const Block& block, std::int64_t page_index, int begin, int end,
                 Scratch& s) {
  const PageFormat& format = plan.layout.format;
  const int d = format.head_dim;
  const std::uint8_t* page =
      page_of(plan.a.pages, plan.a.sequences, block.i, static_cast<int>(page_index), block.head);
  unpack_keys(page, plan.layout, s.keys);
  const float centre_step = core::half_to_float(half_at(page + format.centre_step_offset(), 0));
  const auto* centre = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  for (int x = 0; x < d; ++x)
    s.keys[kPageTokens * d + x] =
        centre_step * static_cast<float>(centre[plan.layout.unpacked_keys().keys[x]]);
  dot_products(s.stored, d, block.rows, s.keys, d, kPageTokens + 1, d, s.scores, kScoreStride);

  float key_scales[kPageTokens], centred[kPageTokens], value_scales[kPageTokens];
  load_scales(page, format, begin, end, key_scales, centred, value_scales);
  bool any = false;
  for (int r = 0; r < block.rows; ++r) {
    float* scores = s.scores + r * kScoreStride;
    const float centre_score = scores[kPageTokens];
    for (int t = 0; t < kPageTokens; ++t) scores[t] = key_scales[t] * scores[t] + centred[t] * centre_score;
    cap(plan, scores);
    const Seen slots = seen(plan, block, r, page_index * kPageTokens, begin, end);
    if (!weigh(scores, slots.begin, slots.end, s.running, r, d)) {
      for (int t = 0; t < kPageTokens; ++t) scores[t] = 0.0f;
      continue;
    }
    any = true;
    float weights[kPageTokens];
    for (int t = 0; t < kPageTokens; ++t)  // a token that r does not see may have a scale of NaN
      weights[t] = t >= slots.begin && t < slots.end ? scores[t] * value_scales[t] : 0.0f;
    for (int x = 0; x < kPageTokens; ++x) scores[x] = weights[plan.layout.unpacked_values().values[x]];
  }
  if (!any) return;
  unpack_values(page, plan.layout, s.values);
  add_values(plan, block, s, s.running.history);
}

bool all_finite(const float* x, int n) {
  bool yes = true;
  for (int e = 0; e < n; ++e) yes = yes && finite(x[e]);
  return yes;
}

// add_values where some value is NaN or infinite: rows that do not see its token must not multiply it by 0.
void add_seen_values(const Plan& plan, const Block& block, std::int64_t position, int count, float* sums,
                     Scratch& s) {
  const int d = plan.d();
  for (int r = 0; r < block.rows; ++r) {
    const Seen slots = seen(plan, block, r, position, 0, count);
    for (int e = 0; e < d; ++e)
      for (int t = slots.begin; t < slots.end; ++t)
        sums[r * d + e] += s.scores[r * kScoreStride + t] * s.values[e * kPageTokens + t];
  }
}

// Slots [0, count) of a tile whose keys and values are in s.keys and s.values, at `position`.
void attend_exact(const Plan& plan, const Block& block, const float* queries, std::int64_t position,
                  int count, float* sums, Scratch& s) {
  const int d = plan.d();
  dot_products(queries, d, block.rows, s.keys, d, kPageTokens, d, s.scores, kScoreStride);
  bool any = false;
  for (int r = 0; r < block.rows; ++r) {
    float* scores = s.scores + r * kScoreStride;
    cap(plan, scores);
    const Seen slots = seen(plan, block, r, position, 0, count);
    if (weigh(scores, slots.begin, slots.end, s.running, r, d)) any = true;
    else
      for (int t = 0; t < kPageTokens; ++t) scores[t] = 0.0f;
  }
  if (!any) return;
  if (all_finite(s.values, d * kPageTokens)) add_values(plan, block, s, sums);
  else add_seen_values(plan, block, position, count, sums, s);
}

void set_value(const float* value, int d, int t, float* values) {
  for (int e = 0; e < d; ++e) values[e * kPageTokens + t] = value[e];
}

// Positions [from, to) of the history, all in the fringe.
void attend_fringe(const Plan& plan, const Block& block, const FringeView& fringe, std::int64_t from,
                   std::int64_t to, Scratch& s) {
  const int d = plan.d();
  for (std::int64_t position = from; position < to; position += kPageTokens) {
    const int count = static_cast<int>(to - position < kPageTokens ? to - position : kPageTokens);
    for (int t = 0; t < kPageTokens; ++t) {
      float value[kMaxDim] = {};
      if (t < count) {
        const std::uint16_t* exact =
            fringe_vectors(plan.a.fringe, plan.a.pages, block.i, block.head, fringe.slot(position + t));
        for (int e = 0; e < d; ++e) {
          s.keys[t * d + e] = core::half_to_float(exact[e]);
          value[e] = core::half_to_float(exact[d + e]);
        }
      } else {
        for (int e = 0; e < d; ++e) s.keys[t * d + e] = 0.0f;
      }
      set_value(value, d, t, s.values);
    }
    attend_exact(plan, block, s.rotated, position, count, s.running.history, s);
  }
}

void attend_own(const Plan& plan, const Block& block, Scratch& s) {
  const int d = plan.d();
  const std::int64_t row = plan.a.sequences.token_starts[block.i];
  const std::int64_t to = query_position(plan, block, block.rows - 1) + 1;
  std::int64_t from = block.length;
  if (plan.a.window > 0) {
    const std::int64_t lowest = query_position(plan, block, 0) - plan.a.window + 1;
    if (lowest > from) from += (lowest - from) / kPageTokens * kPageTokens;
  }
  for (std::int64_t position = from; position < to; position += kPageTokens) {
    const int count = static_cast<int>(to - position < kPageTokens ? to - position : kPageTokens);
    for (int t = 0; t < kPageTokens; ++t) {
      float value[kMaxDim] = {};
      if (t < count) {
        load_vector(plan.a.keys, row + position - block.length + t, block.head, d, s.keys + t * d);
        load_vector(plan.a.values, row + position - block.length + t, block.head, d, value);
      } else {
        for (int e = 0; e < d; ++e) s.keys[t * d + e] = 0.0f;
      }
      set_value(value, d, t, s.values);
    }
    attend_exact(plan, block, s.raw, position, count, s.running.own, s);
  }
}

void load_queries(const Plan& plan, const Block& block, Scratch& s) {
  const AttendArgs& a = plan.a;
  const int d = plan.d();
  const float* signs = a.basis.query_signs + block.head * d;
  const float unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  float scratch[kMaxDim];
  for (int r = 0; r < block.rows; ++r) {
    const std::int64_t pair = block.first_row + r;
    float *raw = s.raw + r * d, *rotated = s.rotated + r * d, *stored = s.stored + r * d;
    const int head = block.head * plan.group + static_cast<int>(pair % plan.group);
    load_vector(a.query, a.sequences.token_starts[block.i] + pair / plan.group, head, d, raw);
    for (int e = 0; e < d; ++e) raw[e] = raw[e] * a.scale;
    for (int e = 0; e < d; ++e) rotated[e] = raw[e] * signs[e];
    core::hadamard_forward(rotated, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
    for (int e = 0; e < d; ++e) rotated[e] = rotated[e] * unit;
    for (int x = 0; x < d; ++x) stored[x] = rotated[plan.layout.unpacked_keys().keys[x]];
    s.running.largest[r] = -HUGE_VALF;
    s.running.sum[r] = 0.0f;
  }
  for (int x = 0; x < block.rows * d; ++x) s.running.history[x] = s.running.own[x] = 0.0f;
}

// out and LSE of one row from its sums: back out of the rotated domain, add the own part, normalise.
void finish_row(const Plan& plan, int i, int kv_head, std::int64_t pair, float largest, float sum,
                float* history, const float* own) {
  const AttendArgs& a = plan.a;
  const int d = plan.d(), head = kv_head * plan.group + static_cast<int>(pair % plan.group);
  const std::int64_t row = a.sequences.token_starts[i] + pair / plan.group;
  float factor = 1.0f;
  if (a.sinks != nullptr) {
    const float sink = a.sinks[head];
    const float most = sink > largest ? sink : largest;
    factor = std::exp(largest - most);
    sum = sum * factor + std::exp(sink - most);
    largest = most;
  }
  const float* signs = a.basis.value_signs + kv_head * d;
  const float unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  float scratch[kMaxDim];
  core::hadamard_transposed(history, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
  const float normal = sum == 0.0f ? 0.0f : factor / sum;
  for (int e = 0; e < d; ++e) history[e] = (history[e] * unit * signs[e] + own[e]) * normal;
  store_vector(a.out, row, head, d, history);
  if (a.lse != nullptr) a.lse[row * a.q_heads + head] = sum == 0.0f ? -HUGE_VALF : largest + std::log(sum);
}

// Where split `split` of the row of (sequence, KV head, pair) keeps its sums: history, own, largest, sum.
float* partial_of(const Plan& plan, int split, int i, int kv_head, std::int64_t pair) {
  const std::int64_t row = plan.a.sequences.token_starts[i] + pair / plan.group;
  const std::int64_t at = row * plan.a.q_heads + kv_head * plan.group + pair % plan.group;
  return plan.partials + (split * plan.rows() + at) * (2 * plan.d() + 2);
}

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

void merge_row(const Plan& plan, int i, int kv_head, std::int64_t pair) {
  const int d = plan.d();
  float largest = -HUGE_VALF, sum = 0.0f;
  for (int split = 0; split < plan.splits; ++split) {
    const float* partial = partial_of(plan, split, i, kv_head, pair);
    if (partial[2 * d] > largest) largest = partial[2 * d];
  }
  float history[kMaxDim] = {}, own[kMaxDim] = {};
  for (int split = 0; split < plan.splits; ++split) {
    const float* partial = partial_of(plan, split, i, kv_head, pair);
    if (partial[2 * d] == -HUGE_VALF) continue;
    const float factor = std::exp(partial[2 * d] - largest);
    sum += factor * partial[2 * d + 1];
    for (int e = 0; e < d; ++e) {
      history[e] += factor * partial[e];
      own[e] += factor * partial[d + e];
    }
  }
  finish_row(plan, i, kv_head, pair, largest, sum, history, own);
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
