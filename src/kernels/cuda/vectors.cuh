// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "turboquant/attention.h"

// Single elements and positions, for kernels. Conversions round to nearest even; a NaN stays a NaN.
namespace turboquant::kernels::cuda {

// m of the Hadamard plan (turboquant/rotation.h) of the head_dims that attend has fast kernels for.
constexpr int hadamard_base(int head_dim) {
  while (head_dim % 2 == 0 && head_dim > 20) head_dim /= 2;
  return head_dim == 12 || head_dim == 20 ? head_dim : 1;
}
static_assert(hadamard_base(64) == 1 && hadamard_base(80) == 20 && hadamard_base(96) == 12 &&
              hadamard_base(192) == 12 && hadamard_base(256) == 1);

__device__ inline float load_element(DType dtype, const void* data, std::int64_t at) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[at];
  if (dtype == DType::kF16) return __half2float(static_cast<const __half*>(data)[at]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
}
__device__ inline void store_element(DType dtype, void* data, std::int64_t at, float value) {
  if (dtype == DType::kF32) static_cast<float*>(data)[at] = value;
  else if (dtype == DType::kF16) static_cast<__half*>(data)[at] = __float2half_rn(value);
  else static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(value);
}

__device__ inline std::int64_t row_at(const Rows& rows, std::int64_t token, int head) {
  return token * rows.token_stride + head * rows.head_stride;
}
__device__ inline std::int64_t row_at(const MutableRows& rows, std::int64_t token, int head) {
  return token * rows.token_stride + head * rows.head_stride;
}

__device__ inline std::int32_t start_of(const Sequences& sequences, int i) {
  return sequences.starts == nullptr ? 0 : sequences.starts[i];
}

// The page of page index `page` of sequence i, KV head h; page_bytes is the format's.
__device__ inline std::uint8_t* page_of(const Pages& pages, const Sequences& sequences, int i, int page,
                                        int h, std::int64_t page_bytes) {
  const std::int64_t entry = sequences.page_table[static_cast<std::int64_t>(i) * sequences.max_pages + page];
  return pages.data + (entry * pages.kv_heads + h) * page_bytes;
}

// Which of a sequence's first `length` positions the fringe holds: [start, first_end) in slots 0, 1, ...,
// [recent_start, length) in slot first + p % recent. Pages supply [first_end, recent_start).
struct FringeSpan {
  std::int64_t start, first_end, recent_start, length;
};
__device__ inline FringeSpan fringe_span(const Fringe& fringe, const Sequences& sequences, int i) {
  const std::int64_t length = sequences.lengths[i], start = start_of(sequences, i);
  if (fringe.data == nullptr) return {start, start, length > start ? length : start, length};
  const std::int64_t truncated = fringe.recent_starts == nullptr ? 0 : fringe.recent_starts[i];
  std::int64_t recent_start = length - fringe.recent;
  if (recent_start < truncated) recent_start = truncated;
  if (recent_start < start) recent_start = start;
  if (recent_start > length) recent_start = length;
  std::int64_t first_end = start + fringe.first;
  if (first_end > recent_start) first_end = recent_start;
  if (first_end < start) first_end = start;
  return {start, first_end, recent_start, length};
}

}  // namespace turboquant::kernels::cuda
