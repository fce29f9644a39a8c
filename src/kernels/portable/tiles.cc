// SPDX-License-Identifier: Apache-2.0
// A tile against a block of queries: scores, weights, values. Bound by unpacking at one query, by
// multiply-adds from about 8 rows on.
#include "kernels/encode_rules.h"
#include "kernels/portable/attend.h"

namespace turboquant::kernels::TQ_ISA {
namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

}  // namespace turboquant::kernels::TQ_ISA
