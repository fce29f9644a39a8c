// SPDX-License-Identifier: Apache-2.0
// encode by the rules of kernels/encode_rules.h, a page of a KV head a task. Pages whose centre comes from
// the page before (at most the last of each sequence) wait for a second round.
#include "kernels/portable/pivot.h"

namespace turboquant::kernels::TQ_ISA {
namespace {

// The call's counted tokens in one page of one KV head.
struct Part {
  std::uint8_t* page;
  const std::uint8_t* previous;  // the page before, null: there is none
  int i, head;
  int previous_begin;     // its first counted slot
  int begin, end;         // slots
  std::int64_t row;       // of slot `begin` in keys and values
  std::int64_t position;  // of slot 0
  bool opens, follows;    // is opened by this call; takes its centre from the page before
};

bool find_part(const EncodeArgs& a, int i, int h, std::int64_t page, Part& out) {
  const std::int64_t length = a.sequences.lengths[i], start = start_of(a.sequences, i);
  const std::int64_t first_row = a.sequences.token_starts[i];
  const std::int64_t end = length + a.sequences.token_starts[i + 1] - first_row;
  const std::int64_t page_begin = page * kPageTokens, page_end = page_begin + kPageTokens;
  const std::int64_t counted = start > page_begin ? start : page_begin;
  const std::int64_t from = length > counted ? length : counted, to = end < page_end ? end : page_end;
  if (from >= to) return false;
  const bool has_previous = start < page_begin;
  const std::int64_t tokens = to - from;
  out.i = i;
  out.head = h;
  out.page = page_of(a.pages, a.sequences, i, static_cast<int>(page), h);
  out.previous = has_previous ? page_of(a.pages, a.sequences, i, static_cast<int>(page - 1), h) : nullptr;
  out.previous_begin =
      start > page_begin - kPageTokens ? static_cast<int>(start - page_begin + kPageTokens) : 0;
  out.begin = static_cast<int>(from - page_begin);
  out.end = static_cast<int>(to - page_begin);
  out.row = first_row + from - length;
  out.position = page_begin;
  out.opens = from == counted;
  out.follows = out.opens && has_previous && tokens < kCentreTokens;
  return true;
}

// x [d] = signs * vector; whether it is finite, and its largest size.
bool load_signed(const Rows& rows, std::int64_t row, int head, const float* signs, int d, float* x,
                 float& most) {
  load_vector(rows, row, head, d, x);
  int wrong = 0;
  for (int e = 0; e < d; ++e) {
    x[e] = x[e] * signs[e];
    wrong |= std::fabs(x[e]) < kLargest ? 0 : 1;
  }
  most = largest_size(x, d);
  return wrong == 0;
}

void load_rotated(const EncodeArgs& a, const Part& part, const Rows& rows, const float* signs, Work& work) {
  const int d = a.pages.format.head_dim;
  float scratch[kMaxDim];
  for (int t = part.begin; t < part.end; ++t) {
    float *y = work.y + t * d, most;
    const bool is_finite = load_signed(rows, part.row + t - part.begin, part.head, signs, d, y, most);
    const float factor = is_finite ? factor_of(most, d) : 1.0f;
    work.is_finite[t] = is_finite;
    work.factor[t] = factor;
    for (int e = 0; e < d; ++e) y[e] = is_finite ? round_to_half(y[e] * factor) : 0.0f;
    rotate_to_half(y, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
  }
}

void previous_centre(const Part& part, const Layout& layout, float* unpacked, float* c) {
  const PageFormat& format = layout.format;
  const int d = format.head_dim;
  float centre[kMaxDim];
  const float centre_step = core::half_to_float(half_at(part.previous + format.centre_step_offset(), 0));
  const auto* row = reinterpret_cast<const std::int8_t*>(part.previous + format.centre_offset());
  for (int e = 0; e < d; ++e) centre[e] = centre_step * static_cast<float>(row[e]);
  unpack_keys(part.previous, layout, unpacked);
  int count = 0;
  for (int e = 0; e < d; ++e) c[e] = 0.0f;
  for (int t = part.previous_begin; t < kPageTokens; ++t) {
    const std::uint16_t scale = half_at(part.previous + format.k_scales_offset(), core::scale_index(t));
    if ((scale & kReferenceIsZero) != 0 || scale == kNanScale) continue;
    ++count;
    const float step = core::half_to_float(scale) * (1.0f / core::kScaleUnit);
    for (int x = 0; x < d; ++x) {
      const int e = layout.unpacked_keys().keys[x];
      c[e] = c[e] + (centre[e] + step * unpacked[t * d + x]);
    }
  }
  for (int e = 0; e < d && count > 0; ++e) c[e] = c[e] / static_cast<float>(count);
}

void store_fringe(const EncodeArgs& a, const Part& part, const Rows& rows, const float* signs, int which) {
  const Fringe& fringe = a.fringe;
  if (fringe.data == nullptr) return;
  const int d = a.pages.format.head_dim;
  const std::int64_t start = start_of(a.sequences, part.i), slots = fringe.first + fringe.recent;
  const std::int64_t end =
      a.sequences.lengths[part.i] + a.sequences.token_starts[part.i + 1] - a.sequences.token_starts[part.i];
  std::uint16_t* out = fringe.data + (std::int64_t{part.i} * a.pages.kv_heads + part.head) * slots * 2 * d;
  float x[kMaxDim], scratch[kMaxDim], most;
  for (int t = part.begin; t < part.end; ++t) {
    const std::int64_t p = part.position + t;
    const bool among_first = p - start < fringe.first;
    const bool among_recent = fringe.recent > 0 && p >= end - fringe.recent;
    if (!among_first && !among_recent) continue;
    load_signed(rows, part.row + t - part.begin, part.head, signs, d, x, most);
    core::hadamard_forward(x, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
    for (int e = 0; e < d; ++e) {
      const std::uint16_t half = fringe_half(x[e] * one_over_root_of(d));
      if (among_first) out[((p - start) * 2 + which) * d + e] = half;
      if (among_recent) out[((fringe.first + p % fringe.recent) * 2 + which) * d + e] = half;
    }
  }
}

// Rules 4 to 6 of one token, or a NaN token.
void code_token(const float* u, bool is_finite, float factor, int d, const core::CodeTable& table,
                const std::int8_t* metric, Searched& token) {
  if (is_finite) return search(u, factor, d, table, metric, token);
  token.scale = kNanScale;
  for (int e = 0; e < d; ++e) token.codes[e] = 0;
}

// The page's centre, in the page too. A pivot's slot, and what it is coded as; or -1.
int open_page(const Part& part, const Layout& layout, const Work& work, const std::int8_t* metric,
              Centre& centre, Searched& token) {
  const PageFormat& format = layout.format;
  const bool alone = part.previous == nullptr && part.end - part.begin < 2;
  float c[kMaxDim] = {};
  if (part.follows) {
    alignas(64) float unpacked[kPageTokens * kMaxDim];
    previous_centre(part, layout, unpacked, c);
  }
  std::memset(part.page, 0, format.page_bytes());
  if (part.follows || alone) {
    store_centre(c, format, part.page);
    centre.load(part.page, format);
    return -1;
  }
  own_centre(work, part.begin, part.end, format, part.page, centre);
  if (metric == nullptr) return -1;
  return move_centre(work, part.begin, part.end, format, metric, part.page, centre, token);
}

void encode_keys(const EncodeArgs& a, const Part& part, const Layout& layout, Work& work) {
  const PageFormat& format = layout.format;
  const int d = format.head_dim;
  const float* signs = a.basis.key_signs + part.head * d;
  load_rotated(a, part, a.keys, signs, work);
  const std::int8_t* metric =
      a.basis.key_metric == nullptr ? nullptr : a.basis.key_metric + std::int64_t{part.head} * d * d;
  Centre centre;
  Searched token;
  const auto store = [&](int t) {
    pack_key(token.codes, layout, t, part.page);
    set_half(part.page + format.k_scales_offset(), core::scale_index(t), token.scale);
  };
  int pivot = -1;
  if (part.opens) pivot = open_page(part, layout, work, metric, centre, token);
  else centre.load(part.page, format);
  if (pivot >= 0) store(pivot);
  float u[kMaxDim];
  for (int t = part.begin; t < part.end; ++t) {
    if (t == pivot) continue;
    const float *y = work.y + t * d, factor = work.factor[t];
    const bool centred = centre.is_chosen_by(y, factor, d), is_finite = work.is_finite[t];
    if (centred) centre.subtract_from(y, factor, d, u);
    code_token(centred ? u : y, is_finite, factor, d, core::key_table(format.k_bits), metric, token);
    if (is_finite && !centred) token.scale = static_cast<std::uint16_t>(token.scale | kReferenceIsZero);
    store(t);
  }
  store_fringe(a, part, a.keys, signs, 0);
}

void encode_values(const EncodeArgs& a, const Part& part, const Layout& layout, Work& work) {
  const PageFormat& format = layout.format;
  const int d = format.head_dim;
  const float* signs = a.basis.value_signs + part.head * d;
  load_rotated(a, part, a.values, signs, work);
  Searched token;
  for (int t = part.begin; t < part.end; ++t) {
    code_token(work.y + t * d, work.is_finite[t], work.factor[t], d, core::value_table(format.v_bits),
               nullptr, token);
    pack_value(token.codes, layout, t, part.page);
    set_half(part.page + format.v_scales_offset(), core::scale_index(t), token.scale);
  }
  store_fringe(a, part, a.values, signs, 1);
}

void encode_part(const EncodeArgs& a, const Part& part, const Layout& layout) {
  Work work;
  encode_keys(a, part, layout, work);  // keys first: they zero a page they open
  encode_values(a, part, layout, work);
}

}  // namespace

void encode(const EncodeArgs& a, Executor& executor) {
  Layout layout;
  make_layout(a.pages.format, layout);
  const auto heads = static_cast<std::size_t>(a.pages.kv_heads);
  std::int64_t most_pages = 0;
  for (int i = 0; i < a.sequences.count; ++i) {
    const std::int64_t length = a.sequences.lengths[i];
    const std::int64_t own = a.sequences.token_starts[i + 1] - a.sequences.token_starts[i];
    const std::int64_t pages = own == 0 ? 0 : (length + own - 1) / kPageTokens - length / kPageTokens + 1;
    if (pages > most_pages) most_pages = pages;
  }
  const auto pages = static_cast<std::size_t>(most_pages);
  const std::size_t sequences = static_cast<std::size_t>(a.sequences.count);
  executor.for_each(sequences * heads * pages, [&](std::size_t task) {
    const int i = static_cast<int>(task / (heads * pages)), h = static_cast<int>(task / pages % heads);
    Part part;
    const std::int64_t page = a.sequences.lengths[i] / kPageTokens + static_cast<std::int64_t>(task % pages);
    if (find_part(a, i, h, page, part) && !part.follows) encode_part(a, part, layout);
  });
  executor.for_each(sequences * heads, [&](std::size_t task) {
    const int i = static_cast<int>(task / heads), h = static_cast<int>(task % heads);
    const std::int64_t end =
        a.sequences.lengths[i] + a.sequences.token_starts[i + 1] - a.sequences.token_starts[i];
    Part part;
    if (end > 0 && find_part(a, i, h, (end - 1) / kPageTokens, part) && part.follows)
      encode_part(a, part, layout);
  });
}

}  // namespace turboquant::kernels::TQ_ISA
