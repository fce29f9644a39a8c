// SPDX-License-Identifier: Apache-2.0
// decode: a page of a KV head a task. Bound by the inverse rotation, d log2 d additions a vector.
#include <cmath>

#include "core/hadamard.h"
#include "kernels/encode_rules.h"
#include "kernels/portable/portable.h"

namespace turboquant::kernels::TQ_ISA {
namespace {

struct Unpacked {
  alignas(64) float keys[kPageTokens * kMaxDim];    // [64][d], coordinate order
  alignas(64) float values[kPageTokens * kMaxDim];  // the same
};

// Both halves of a page as vectors of the rotated domain, in coordinate order.
void decode_page(const std::uint8_t* page, const Layout& layout, Unpacked& out) {
  const PageFormat& format = layout.format;
  const int d = format.head_dim;
  alignas(64) float steps[kPageTokens * kMaxDim];
  float centre[kMaxDim];
  const float centre_step = core::half_to_float(half_at(page + format.centre_step_offset(), 0));
  const auto* row = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  for (int e = 0; e < d; ++e) centre[e] = centre_step * static_cast<float>(row[e]);
  unpack_keys(page, layout, steps);
  for (int t = 0; t < kPageTokens; ++t) {
    const std::uint16_t stored = half_at(page + format.k_scales_offset(), core::scale_index(t));
    const float scale = core::half_to_float(stored & 0x7fffu) * (1.0f / core::kScaleUnit);
    const bool centred = (stored & kReferenceIsZero) == 0;
    for (int x = 0; x < d; ++x) {
      const int e = layout.unpacked_keys().keys[x];
      out.keys[t * d + e] = scale * steps[t * d + x] + (centred ? centre[e] : 0.0f);
    }
  }
  unpack_values(page, layout, steps);
  for (int x = 0; x < kPageTokens; ++x) {
    const int t = layout.unpacked_values().values[x];
    const float scale = core::half_to_float(half_at(page + format.v_scales_offset(), core::scale_index(t))) *
                        (1.0f / core::kScaleUnit);
    for (int e = 0; e < d; ++e) out.values[t * d + e] = scale * steps[e * kPageTokens + x];
  }
}

void store_unrotated(const DecodeArgs& a, float* y, const float* signs, void* out, std::int64_t at) {
  const int d = a.pages.format.head_dim;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  float scratch[kMaxDim];
  core::hadamard_transposed(y, a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch);
  for (int e = 0; e < d; ++e) y[e] = y[e] * scale * signs[e];
  store_vector(a.dtype, out, at * d, d, y);
}

void decode_part(const DecodeArgs& a, const Layout& layout, int i, int h, std::int64_t page) {
  const int d = a.pages.format.head_dim;
  const std::int64_t length = a.sequences.lengths[i], start = start_of(a.sequences, i);
  const std::int64_t from = page * kPageTokens,
                     to = length < from + kPageTokens ? length : from + kPageTokens;
  const FringeView fringe = fringe_view(a.fringe, a.sequences, i);
  Unpacked unpacked;
  if (to > start) decode_page(page_of(a.pages, a.sequences, i, static_cast<int>(page), h), layout, unpacked);
  for (std::int64_t p = from; p < to; ++p) {
    float* key = unpacked.keys + (p - from) * d;
    float* value = unpacked.values + (p - from) * d;
    if (p < start) {
      for (int e = 0; e < d; ++e) key[e] = value[e] = 0.0f;
    } else if (fringe.holds(p)) {
      const std::uint16_t* exact = fringe_vectors(a.fringe, a.pages, i, h, fringe.slot(p));
      for (int e = 0; e < d; ++e) {
        key[e] = core::half_to_float(exact[e]);
        value[e] = core::half_to_float(exact[d + e]);
      }
    }
    const std::int64_t at = (std::int64_t{i} * a.pages.kv_heads + h) * a.max_tokens + p;
    store_unrotated(a, key, a.basis.query_signs + h * d, a.keys, at);
    store_unrotated(a, value, a.basis.value_signs + h * d, a.values, at);
  }
}

}  // namespace

void decode(const DecodeArgs& a, Executor& executor) {
  Layout layout;
  make_layout(a.pages.format, layout);
  std::int64_t longest = 0;
  for (int i = 0; i < a.sequences.count; ++i)
    if (a.sequences.lengths[i] > longest) longest = a.sequences.lengths[i];
  const auto pages = static_cast<std::size_t>((longest + kPageTokens - 1) / kPageTokens);
  const auto heads = static_cast<std::size_t>(a.pages.kv_heads);
  executor.for_each(static_cast<std::size_t>(a.sequences.count) * heads * pages, [&](std::size_t task) {
    const int i = static_cast<int>(task / (heads * pages)), h = static_cast<int>(task / pages % heads);
    const auto page = static_cast<std::int64_t>(task % pages);
    if (page * kPageTokens < a.sequences.lengths[i]) decode_part(a, layout, i, h, page);
  });
}

}  // namespace turboquant::kernels::TQ_ISA
