// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/half.h"
#include "turboquant/attention.h"

// Head vectors in and out of Rows, whatever their dtype, and a few small sums. Internal linkage: files
// built for several instruction sets include this.
namespace turboquant::kernels {

static inline void load_vector(const Rows& rows, std::int64_t token, int head, int d, float* out) {
  const std::int64_t at = token * rows.token_stride + head * rows.head_stride;
  if (rows.dtype == DType::kF32) {
    const float* in = static_cast<const float*>(rows.data) + at;
    for (int e = 0; e < d; ++e) out[e] = in[e];
  } else {
    const std::uint16_t* in = static_cast<const std::uint16_t*>(rows.data) + at;
    if (rows.dtype == DType::kF16)
      for (int e = 0; e < d; ++e) out[e] = core::half_to_float(in[e]);
    else
      for (int e = 0; e < d; ++e) out[e] = core::bfloat_to_float(in[e]);
  }
}

static inline void store_vector(DType dtype, void* data, std::int64_t at, int d, const float* in) {
  if (dtype == DType::kF32) {
    float* out = static_cast<float*>(data) + at;
    for (int e = 0; e < d; ++e) out[e] = in[e];
  } else {
    std::uint16_t* out = static_cast<std::uint16_t*>(data) + at;
    if (dtype == DType::kF16)
      for (int e = 0; e < d; ++e) out[e] = core::float_to_half(in[e]);
    else
      for (int e = 0; e < d; ++e) out[e] = core::float_to_bfloat(in[e]);
  }
}

static inline void store_vector(const MutableRows& rows, std::int64_t token, int head, int d,
                                const float* in) {
  store_vector(rows.dtype, rows.data, token * rows.token_stride + head * rows.head_stride, d, in);
}

static inline std::int32_t start_of(const Sequences& sequences, int i) {
  return sequences.starts == nullptr ? 0 : sequences.starts[i];
}

// The page (all its bytes) of page index `page` of sequence i, KV head h.
static inline std::uint8_t* page_of(const Pages& pages, const Sequences& sequences, int i, int page, int h) {
  const std::int64_t entry = sequences.page_table[static_cast<std::int64_t>(i) * sequences.max_pages + page];
  return pages.data + (entry * pages.kv_heads + h) * static_cast<std::int64_t>(pages.format.page_bytes());
}

static inline std::uint16_t half_at(const std::uint8_t* area, int index) {
  std::uint16_t half;
  std::memcpy(&half, area + 2 * index, sizeof half);
  return half;
}
static inline void set_half(std::uint8_t* area, int index, std::uint16_t half) {
  std::memcpy(area + 2 * index, &half, sizeof half);
}

// Which of sequence i's positions the fringe holds, of the first `length`; slot() says where.
struct FringeView {
  int first, recent, start;
  std::int64_t recent_start, length;

  bool in_first(std::int64_t p) const { return p >= start && p < start + first && p < length; }
  bool in_recent(std::int64_t p) const { return recent > 0 && p >= recent_start && p < length; }
  bool holds(std::int64_t p) const { return in_first(p) || in_recent(p); }
  int slot(std::int64_t p) const {
    return in_first(p) ? static_cast<int>(p - start) : first + static_cast<int>(p % recent);
  }
};

// The fringe as a call finds it: of the positions before the call.
static inline FringeView fringe_view(const Fringe& fringe, const Sequences& sequences, int i) {
  const std::int64_t length = sequences.lengths[i], start = start_of(sequences, i);
  if (fringe.data == nullptr) return {0, 0, static_cast<int>(start), length, length};
  const std::int64_t truncated = fringe.recent_starts == nullptr ? 0 : fringe.recent_starts[i];
  const std::int64_t newest = length - fringe.recent;
  std::int64_t recent_start = newest > truncated ? newest : truncated;
  if (recent_start < start) recent_start = start;
  if (recent_start > length) recent_start = length;
  return {fringe.first, fringe.recent, static_cast<int>(start), recent_start, length};
}

// Slot's key, and head_dim further its value, of sequence i, KV head h.
static inline std::uint16_t* fringe_vectors(const Fringe& fringe, const Pages& pages, int i, int h,
                                            int slot) {
  const std::int64_t slots = fringe.first + fringe.recent;
  const std::int64_t at = (static_cast<std::int64_t>(i) * pages.kv_heads + h) * slots + slot;
  return fringe.data + at * 2 * pages.format.head_dim;
}

}  // namespace turboquant::kernels
