// SPDX-License-Identifier: Apache-2.0
// encode as the rules state it (kernels/encode_rules.h), one token and one coordinate at a time. Codes are
// defined by fp16 and fp32 arithmetic, so this definition is in both; every other kernel must write its
// bytes.
#include <cmath>
#include <cstring>

#include "core/hadamard.h"
#include "core/layout.h"
#include "kernels/encode_rules.h"
#include "kernels/kernels.h"
#include "kernels/reference/flips.h"
#include "kernels/reference/pivot.h"
#include "kernels/reference/reference.h"
#include "kernels/vectors.h"

namespace turboquant::kernels::reference {
namespace {

using core::CodeTable;

constexpr int kMaxDim = kMaxPageHeadDim;

struct Vectors {
  float y[kPageTokens][kMaxDim];  // fp16 numbers, times factor
  float factor[kPageTokens];
  bool is_finite[kPageTokens];
  float exact[kPageTokens][kMaxDim];  // what the fringe gets
};

float root_of(int d) {
  return static_cast<float>(std::sqrt(static_cast<double>(d)));
}
float one_over_root_of(int d) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
}

// Rule 1 of x [d], which has its signs.
void rotate_to_half(float* x, int d, const Basis& basis, float* scratch) {
  const int base = basis.base, power = d / base;
  for (int h = 1; h < power; h *= 2)
    for (int e = 0; e < d; ++e) {
      if ((e & h) != 0) continue;
      const float u = x[e], v = x[e + h];
      x[e] = round_to_11_bits(u + v);
      x[e + h] = round_to_11_bits(u - v);
    }
  if (base == 1) return;
  core::hadamard_base(x, base, power, basis.base_matrix, base, 1, scratch);
  for (int e = 0; e < d; ++e) x[e] = round_to_half(x[e]);
}

// Rule 4: sets level [d]; m. Nothing is set where that is 0.
float find_levels(const float* u, int d, int* level) {
  float m = 0.0f;
  for (int e = 0; e < d; ++e) m = std::fabs(u[e]) > m ? std::fabs(u[e]) : m;
  if (m == 0.0f) return m;
  const float levels_per_unit = round_to_11_bits(static_cast<float>(core::kMaxLevel) / m);
  for (int e = 0; e < d; ++e)
    level[e] = static_cast<int>(std::nearbyint(round_to_11_bits(std::fabs(u[e]) * levels_per_unit)));
  return m;
}

// Rules 4 to 6; metric [d, d] or null.
void encode_vector(const float* u, float factor, int d, const CodeTable& table, const std::int8_t* metric,
                   Encoded& out) {
  out.scale = 0;
  std::memset(out.codes, 0, sizeof out.codes);
  int level[kMaxDim];
  const float m = find_levels(u, d, level);
  if (m == 0.0f) return;
  float best_a = 0.0f, best_b = 1.0f, n = 0.0f;  // A A, B of the best; N
  for (int j = 0; j < table.candidates; ++j) {
    std::int32_t sum_a = 0, sum_b = 0, sum_n = 0;
    std::uint8_t index[kMaxDim];
    for (int e = 0; e < d; ++e) {
      index[e] = static_cast<std::uint8_t>(core::index_of(table, j, level[e]));
      sum_a += level[e] * table.magnitudes[index[e]];
      sum_b += table.magnitudes[index[e]] * table.magnitudes[index[e]];
      sum_n += level[e] * level[e];
    }
    const float a = static_cast<float>(sum_a) * static_cast<float>(sum_a), b = static_cast<float>(sum_b);
    n = static_cast<float>(sum_n);
    if (!(a * best_b > best_a * b)) continue;
    best_a = a;
    best_b = b;
    for (int e = 0; e < d; ++e)
      out.codes[e] = static_cast<std::uint8_t>(index[e] | (std::signbit(u[e]) ? table.magnitude_count : 0));
  }
  if (metric != nullptr) best_b = flip_codes(metric, level, d, table, n, best_b, out.codes);
  out.scale =
      core::float_to_half_clamped(m * (1.0f / factor) * one_over_root_of(d) * core::scale_unit(table) *
                                  std::sqrt(table.unbiased ? n * n / best_a : n / best_b));
}

// A centre as its page stores it, next to keys that are not yet over sqrt(d).
struct Centre {
  float step;
  std::int8_t n[kMaxDim];
};
Centre centre_of(const std::uint8_t* page, const PageFormat& format) {
  Centre out;
  out.step = core::half_to_float(half_at(page + format.centre_step_offset(), 0)) * root_of(format.head_dim);
  std::memcpy(out.n, page + format.centre_offset(), static_cast<std::size_t>(format.head_dim));
  return out;
}
// Rounds a centre into its page.
void store_centre(const float* c, const PageFormat& format, std::uint8_t* page) {
  float largest = 0.0f;
  for (int e = 0; e < format.head_dim; ++e)
    if (std::fabs(c[e]) > largest) largest = std::fabs(c[e]);
  const std::uint16_t half = centre_step(largest);
  const float step = core::half_to_float(half), inverse = step > 0.0f ? 1.0f / step : 0.0f;
  set_half(page + format.centre_step_offset(), 0, half);
  auto* row = reinterpret_cast<std::int8_t*>(page + format.centre_offset());
  for (int e = 0; e < format.head_dim; ++e) row[e] = steps_in(c[e], inverse);
}

// Rule 2: the mean of the keys in `chosen`, 0 if there are none.
void mean(const Vectors& keys, const bool* chosen, float least, int d, float* out) {
  int count = 0;
  for (int t = 0; t < kPageTokens; ++t) count += chosen[t] ? 1 : 0;
  for (int e = 0; e < d; ++e) {
    float sums[4] = {};
    for (int t = 0; t < kPageTokens; ++t) {
      if (!chosen[t]) continue;
      const float weight = round_to_half(0x1p-6f * (least * (1.0f / keys.factor[t])));
      float& sum = sums[t / kMeanSlots];
      sum = round_to_half(sum + keys.y[t][e] * weight);
    }
    const float sum =
        round_to_11_bits(round_to_11_bits(sums[0] + sums[1]) + round_to_11_bits(sums[2] + sums[3]));
    const float per_unit = 64.0f * (1.0f / least) * (one_over_root_of(d) / static_cast<float>(count));
    out[e] = count == 0 ? 0.0f : sum * per_unit;
  }
}

// Rule 3, in integers: y is a multiple of 2^-24 below 2^16.
bool chooses(const Centre& centre, const float* y, float factor, int d) {
  double dot = 0.0, squares = 0.0;
  for (int e = 0; e < d; ++e) {
    dot += static_cast<double>(y[e]) * centre.n[e];
    squares += static_cast<double>(centre.n[e]) * centre.n[e];
  }
  return 2.0 * dot >= static_cast<double>(centre.step) * static_cast<double>(factor) * squares;
}

// Leaves it in the page.
void own_centre(const Vectors& keys, int begin, int end, const PageFormat& format, std::uint8_t* page) {
  const int d = format.head_dim;
  bool chosen[kPageTokens] = {};
  float c[kMaxDim], least = 0x1p127f;
  for (int t = begin; t < end; ++t) {
    chosen[t] = keys.is_finite[t];
    if (chosen[t] && keys.factor[t] < least) least = keys.factor[t];
  }
  mean(keys, chosen, least, d, c);
  store_centre(c, format, page);
  const Centre first = centre_of(page, format);
  for (int t = begin; t < end; ++t)
    chosen[t] = keys.is_finite[t] && chooses(first, keys.y[t], keys.factor[t], d);
  mean(keys, chosen, least, d, c);
  store_centre(c, format, page);
}

// The mean of the decoded keys of slots [begin, 64) of a full page that chose its centre.
void previous_centre(const std::uint8_t* page, const PageFormat& format, int begin, float* c) {
  const int d = format.head_dim;
  float centre[kMaxDim];
  load_centre(page, format, centre);
  int count = 0;
  for (int e = 0; e < d; ++e) c[e] = 0.0f;
  for (int t = begin; t < kPageTokens; ++t) {
    const std::uint16_t scale = half_at(page + format.k_scales_offset(), core::scale_index(t));
    if ((scale & kReferenceIsZero) != 0 || scale == kNanScale) continue;
    ++count;
    const float step = core::half_to_float(scale) * (1.0f / core::kScaleUnit);
    for (int e = 0; e < d; ++e) {
      const int code = core::read_code(page, core::key_position, d, format.k_bits, t, e);
      c[e] = c[e] + (centre[e] + step * signed_steps(core::key_table(format.k_bits), code));
    }
  }
  for (int e = 0; e < d && count > 0; ++e) c[e] = c[e] / static_cast<float>(count);
}

// Rules 3 to 6 of one key, next to a stored centre.
void encode_key(const float* y, float factor, bool is_finite, const Centre& centre, const PageFormat& format,
                const std::int8_t* metric, Encoded& out) {
  const int d = format.head_dim;
  if (!is_finite) {
    out = {kNanScale, {}};
    return;
  }
  float u[kMaxDim];
  const bool centred = chooses(centre, y, factor, d);
  for (int e = 0; e < d; ++e)
    u[e] = centred ? round_to_11_bits(y[e] - centre_half(centre.step, centre.n[e], factor)) : y[e];
  encode_vector(u, factor, d, core::key_table(format.k_bits), metric, out);
  if (!centred) out.scale |= kReferenceIsZero;
}

// Rule 2a: the pivot's slot among [begin, end), or -1.
int pivot_of(const Vectors& keys, int begin, int end, const Centre& centre, const std::int8_t* metric,
             int d) {
  std::int8_t v[kMaxDim];
  main_direction(metric, d, v);
  int pivot = -1;
  double most = -1.0;
  for (int t = begin; t < end; ++t) {
    if (!keys.is_finite[t] || !chooses(centre, keys.y[t], keys.factor[t], d)) continue;
    const double score = pivot_score(keys.y[t], keys.factor[t], centre.step, centre.n, v, d);
    if (!(score > most)) continue;
    most = score;
    pivot = t;
  }
  return pivot;
}

// Moves the page's centre. The pivot's slot, and what it is coded as; or -1.
int move_centre(const Vectors& keys, int begin, int end, const PageFormat& format, const std::int8_t* metric,
                std::uint8_t* page, Encoded& token) {
  const int d = format.head_dim;
  const Centre centre = centre_of(page, format);
  const int pivot = pivot_of(keys, begin, end, centre, metric, d);
  if (pivot < 0) return -1;
  const float *y = keys.y[pivot], factor = keys.factor[pivot];
  encode_key(y, factor, true, centre, format, metric, token);
  float c[kMaxDim];
  left_of_pivot(y, factor, token, core::key_table(format.k_bits), one_over_root_of(d), d, c);
  store_centre(c, format, page);
  const float step = core::half_to_float(half_at(page + format.centre_step_offset(), 0));
  flip_centre(metric, c, step, d, reinterpret_cast<std::int8_t*>(page + format.centre_offset()));
  return pivot;
}

void store_token(const Encoded& token, bool is_key, const PageFormat& format, int t, std::uint8_t* page) {
  const int bits = is_key ? format.k_bits : format.v_bits;
  std::uint8_t* codes = page + (is_key ? format.k_codes_offset() : format.v_codes_offset());
  for (int e = 0; e < format.head_dim; ++e)
    core::write_code(codes, is_key ? core::key_position : core::value_position, format.head_dim, bits, t, e,
                     token.codes[e]);
  set_half(page + (is_key ? format.k_scales_offset() : format.v_scales_offset()), core::scale_index(t),
           token.scale);
}

// The call's tokens in one page: slots [begin, end), whose first row is `row`.
void load_rotated(const Rows& rows, std::int64_t row, int begin, int end, int head, const float* signs,
                  const EncodeArgs& a, Vectors& out) {
  const int d = a.pages.format.head_dim;
  float scratch[kMaxDim];
  for (int t = begin; t < end; ++t) {
    float *x = out.exact[t], *y = out.y[t], most = 0.0f;
    load_vector(rows, row + t - begin, head, d, x);
    out.is_finite[t] = true;
    for (int e = 0; e < d; ++e) {
      x[e] = x[e] * signs[head * d + e];
      out.is_finite[t] = out.is_finite[t] && std::fabs(x[e]) < kLargest;
      most = std::fabs(x[e]) > most ? std::fabs(x[e]) : most;
    }
    const float factor = out.is_finite[t] ? factor_of(most, d) : 1.0f;
    out.factor[t] = factor;
    for (int e = 0; e < d; ++e) y[e] = out.is_finite[t] ? round_to_half(x[e] * factor) : 0.0f;
    rotate_to_half(y, d, a.basis, scratch);
    core::hadamard_forward(x, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
  }
}

void store_fringe(const EncodeArgs& a, int i, int h, std::int64_t position, const float* key,
                  const float* value) {
  const Fringe& fringe = a.fringe;
  if (fringe.data == nullptr) return;
  const int d = a.pages.format.head_dim;
  const std::int64_t new_length =
      a.sequences.lengths[i] + a.sequences.token_starts[i + 1] - a.sequences.token_starts[i];
  const auto store = [&](std::int64_t slot) {
    const std::int64_t slots = fringe.first + fringe.recent;
    std::uint16_t* out =
        fringe.data + ((static_cast<std::int64_t>(i) * a.pages.kv_heads + h) * slots + slot) * 2 * d;
    for (int e = 0; e < d; ++e) {
      out[e] = fringe_half(key[e] * one_over_root_of(d));
      out[d + e] = fringe_half(value[e] * one_over_root_of(d));
    }
  };
  if (position - start_of(a.sequences, i) < fringe.first) store(position - start_of(a.sequences, i));
  if (fringe.recent > 0 && position >= new_length - fringe.recent)
    store(fringe.first + position % fringe.recent);
}

// The counted tokens of the call in page `page_index` of sequence i, KV head h.
void encode_page(const EncodeArgs& a, int i, int h, int page_index, Vectors& keys, Vectors& values) {
  const PageFormat& format = a.pages.format;
  const int d = format.head_dim;
  const std::int64_t length = a.sequences.lengths[i], start = start_of(a.sequences, i);
  const std::int64_t first_row = a.sequences.token_starts[i];
  const std::int64_t page_begin = static_cast<std::int64_t>(page_index) * kPageTokens;
  const std::int64_t end_position = length + a.sequences.token_starts[i + 1] - first_row;
  const std::int64_t counted = start > page_begin ? start : page_begin;
  const std::int64_t from = length > counted ? length : counted;
  const std::int64_t to = end_position < page_begin + kPageTokens ? end_position : page_begin + kPageTokens;
  if (from >= to) return;
  const int begin = static_cast<int>(from - page_begin), end = static_cast<int>(to - page_begin);
  load_rotated(a.keys, first_row + from - length, begin, end, h, a.basis.key_signs, a, keys);
  load_rotated(a.values, first_row + from - length, begin, end, h, a.basis.value_signs, a, values);

  std::uint8_t* page = page_of(a.pages, a.sequences, i, page_index, h);
  const std::int8_t* metric =
      a.basis.key_metric == nullptr ? nullptr : a.basis.key_metric + std::int64_t{h} * d * d;
  int pivot = -1;
  Encoded pivot_token;
  if (from == counted) {
    const bool has_previous = start < page_begin;
    std::memset(page, 0, format.page_bytes());
    if (end - begin >= kCentreTokens || (end - begin >= 2 && !has_previous)) {
      own_centre(keys, begin, end, format, page);
      if (metric != nullptr) pivot = move_centre(keys, begin, end, format, metric, page, pivot_token);
    } else if (has_previous) {
      const std::int64_t previous_begin = page_begin - kPageTokens;
      float centre[kMaxDim];
      previous_centre(page_of(a.pages, a.sequences, i, page_index - 1, h), format,
                      static_cast<int>(start > previous_begin ? start - previous_begin : 0), centre);
      store_centre(centre, format, page);
    }
  }
  const Centre centre = centre_of(page, format);

  for (int t = begin; t < end; ++t) {
    Encoded token;
    if (t == pivot) token = pivot_token;
    else encode_key(keys.y[t], keys.factor[t], keys.is_finite[t], centre, format, metric, token);
    store_token(token, true, format, t, page);
    if (values.is_finite[t])
      encode_vector(values.y[t], values.factor[t], d, core::value_table(format.v_bits), nullptr, token);
    else token = {kNanScale, {}};
    store_token(token, false, format, t, page);
    store_fringe(a, i, h, page_begin + t, keys.exact[t], values.exact[t]);
  }
}

}  // namespace

void encode(const EncodeArgs& a, Executor& executor) {
  const auto heads = static_cast<std::size_t>(a.pages.kv_heads);
  executor.for_each(static_cast<std::size_t>(a.sequences.count) * heads, [&](std::size_t task) {
    const int i = static_cast<int>(task / heads), h = static_cast<int>(task % heads);
    const std::int64_t length = a.sequences.lengths[i];
    const std::int64_t end = length + a.sequences.token_starts[i + 1] - a.sequences.token_starts[i];
    Vectors keys, values;
    for (std::int64_t page = length / kPageTokens; page * kPageTokens < end; ++page)
      encode_page(a, i, h, static_cast<int>(page), keys, values);
  });
}

}  // namespace turboquant::kernels::reference
