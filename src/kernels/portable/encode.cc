// SPDX-License-Identifier: Apache-2.0
// encode by the rules of kernels/encode_rules.h, a page of a KV head a task. Pages whose centre comes from
// the page before (at most the last of each sequence) wait for a second round.
#include "core/hadamard.h"
#include "kernels/portable/search.h"

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

struct Work {
  alignas(64) float y[kPageTokens * kMaxDim];  // [slot][d]
  bool is_finite[kPageTokens];
};

bool all_codable(const float* y, int d) {
  int wrong = 0;
  for (int e = 0; e < d; ++e) wrong |= codable(y[e]) ? 0 : 1;
  return wrong == 0;
}

void load_rotated(const EncodeArgs& a, const Part& part, const Rows& rows, const float* signs, Work& work) {
  const int d = a.pages.format.head_dim;
  float scratch[kMaxDim];
  for (int t = part.begin; t < part.end; ++t) {
    float* y = work.y + t * d;
    load_vector(rows, part.row + t - part.begin, part.head, d, y);
    for (int e = 0; e < d; ++e) y[e] = y[e] * signs[e];
    core::hadamard_forward(y, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
    work.is_finite[t] = all_codable(y, d);
  }
}

void subtract(const float* y, const float* c, int d, float* u) {
  for (int e = 0; e < d; ++e) u[e] = y[e] - c[e];
}

void own_centre(const Part& part, const Work& work, int d, float* c) {
  float u[kMaxDim];
  for (int round = 0; round < 2; ++round) {
    float total[kMaxDim] = {};
    int count = 0;
    for (int t = part.begin; t < part.end; ++t) {
      const float* y = work.y + t * d;
      if (!work.is_finite[t]) continue;
      if (round == 1) {
        subtract(y, c, d, u);
        if (!(tree_squared_norm(u, d) <= tree_squared_norm(y, d))) continue;
      }
      ++count;
      for (int e = 0; e < d; ++e) total[e] = total[e] + y[e];
    }
    for (int e = 0; e < d; ++e) c[e] = count > 0 ? total[e] / static_cast<float>(count) : 0.0f;
  }
  for (int e = 0; e < d; ++e) c[e] = c[e] * one_over_root_of(d);
}

// Times `factor`.
void load_centre(const std::uint8_t* page, const PageFormat& format, float factor, float* out) {
  const float step = core::half_to_float(half_at(page + format.centre_step_offset(), 0)) * factor;
  const auto* row = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  for (int e = 0; e < format.head_dim; ++e) out[e] = step * static_cast<float>(row[e]);
}

void previous_centre(const Part& part, const Layout& layout, float* unpacked, float* c) {
  const PageFormat& format = layout.format;
  const int d = format.head_dim;
  float centre[kMaxDim];
  load_centre(part.previous, format, 1.0f, centre);
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

void store_centre(const float* c, const PageFormat& format, std::uint8_t* page) {
  const int d = format.head_dim;
  float largest = 0.0f;
  for (int e = 0; e < d; ++e) largest = std::fabs(c[e]) > largest ? std::fabs(c[e]) : largest;
  const std::uint16_t half = core::float_to_half_clamped(largest / 127.0f);
  const float step = core::half_to_float(half);
  set_half(page + format.centre_step_offset(), 0, half);
  auto* row = reinterpret_cast<std::int8_t*>(page + format.centre_offset());
  for (int e = 0; e < d; ++e) {
    const float steps = step > 0.0f ? std::nearbyint(c[e] / step) : 0.0f;
    row[e] = static_cast<std::int8_t>(steps > 127.0f ? 127.0f : steps < -127.0f ? -127.0f : steps);
  }
}

void store_fringe(const EncodeArgs& a, const Part& part, const Work& work, int which) {
  const Fringe& fringe = a.fringe;
  if (fringe.data == nullptr) return;
  const int d = a.pages.format.head_dim;
  const std::int64_t start = start_of(a.sequences, part.i), slots = fringe.first + fringe.recent;
  const std::int64_t end =
      a.sequences.lengths[part.i] + a.sequences.token_starts[part.i + 1] - a.sequences.token_starts[part.i];
  std::uint16_t* rows = fringe.data + (std::int64_t{part.i} * a.pages.kv_heads + part.head) * slots * 2 * d;
  for (int t = part.begin; t < part.end; ++t) {
    const std::int64_t p = part.position + t;
    const bool among_first =
        p - start<fringe.first, among_recent = fringe.recent> 0 && p >= end - fringe.recent;
    for (int e = 0; e < d && (among_first || among_recent); ++e) {
      const std::uint16_t half = fringe_half(work.y[t * d + e] * one_over_root_of(d));
      if (among_first) rows[((p - start) * 2 + which) * d + e] = half;
      if (among_recent) rows[((fringe.first + p % fringe.recent) * 2 + which) * d + e] = half;
    }
  }
}

// Rules 4 to 6 of one token, or a NaN token.
void code_token(const float* u, bool is_finite, int d, const core::CodeTable& table, Searched& token) {
  if (is_finite) return search(u, d, table, token);
  token.scale = kNanScale;
  for (int e = 0; e < d; ++e) token.codes[e] = 0;
}

void encode_keys(const EncodeArgs& a, const Part& part, const Layout& layout, Work& work) {
  const PageFormat& format = layout.format;
  const int d = format.head_dim;
  load_rotated(a, part, a.keys, a.basis.key_signs + part.head * d, work);
  float centre[kMaxDim] = {}, u[kMaxDim];
  if (part.opens) {
    const bool alone = part.previous == nullptr && part.end - part.begin < 2;
    if (part.follows) {
      alignas(64) float unpacked[kPageTokens * kMaxDim];
      previous_centre(part, layout, unpacked, centre);
    } else if (!alone) {
      own_centre(part, work, d, centre);
    }
    std::memset(part.page, 0, format.page_bytes());
    store_centre(centre, format, part.page);
  }
  load_centre(part.page, format, static_cast<float>(std::sqrt(static_cast<double>(d))), centre);
  Searched token;
  for (int t = part.begin; t < part.end; ++t) {
    const float* y = work.y + t * d;
    subtract(y, centre, d, u);
    const bool centred = tree_squared_norm(u, d) <= tree_squared_norm(y, d);
    const bool is_finite = work.is_finite[t];
    code_token(centred ? u : y, is_finite, d, core::key_table(format.k_bits), token);
    if (is_finite && !centred) token.scale = static_cast<std::uint16_t>(token.scale | kReferenceIsZero);
    pack_key(token.codes, layout, t, part.page);
    set_half(part.page + format.k_scales_offset(), core::scale_index(t), token.scale);
  }
  store_fringe(a, part, work, 0);
}

void encode_values(const EncodeArgs& a, const Part& part, const Layout& layout, Work& work) {
  const PageFormat& format = layout.format;
  const int d = format.head_dim;
  load_rotated(a, part, a.values, a.basis.value_signs + part.head * d, work);
  Searched token;
  for (int t = part.begin; t < part.end; ++t) {
    code_token(work.y + t * d, work.is_finite[t], d, core::value_table(format.v_bits), token);
    pack_value(token.codes, layout, t, part.page);
    set_half(part.page + format.v_scales_offset(), core::scale_index(t), token.scale);
  }
  store_fringe(a, part, work, 1);
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
