// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/vectors.cuh"

// What decode's kernels share. A block takes the keys or the values of one page of one KV head.
// Grid: (pages x sequences x kv_heads, 2), blockIdx.y 0 keys, 1 values.
namespace turboquant::kernels::cuda {

inline constexpr int kDecodeWarps = 8;
static_assert(kDecodeWarps * 8 == kPageTokens);

struct DecodeCall {
  DecodeArgs args;
  float scale;  // 1 / sqrt(head_dim)
  int pages;    // that max_tokens spans
};

// decode_quads.cu: head_dim 128.
bool decode_quads_serves(const DecodeArgs& args);
Status launch_decode_quads(const DecodeCall& call, const Context& context);

__device__ inline float fp16_at(const std::uint8_t* area, int index) {
  return __half2float(reinterpret_cast<const __half*>(area)[index]);
}

// A block's page.
struct DecodePage {
  int sequence, head;
  std::int64_t sequence_head, begin;  // position of slot 0
  FringeSpan span;
  const std::uint8_t* page;  // null: nothing but padding, whose page may not exist
  bool is_key;

  __device__ explicit DecodePage(const DecodeCall& call) {
    const DecodeArgs& a = call.args;
    const auto pages = static_cast<std::uint32_t>(call.pages);
    const std::uint32_t both = blockIdx.x / pages;
    const int index = static_cast<int>(blockIdx.x - both * pages);
    sequence_head = both;
    sequence = static_cast<int>(both) / a.pages.kv_heads;
    head = static_cast<int>(both) - sequence * a.pages.kv_heads;
    is_key = blockIdx.y == 0;
    span = fringe_span(a.fringe, a.sequences, sequence);
    begin = static_cast<std::int64_t>(index) * kPageTokens;
    page = nullptr;
    if (begin < span.length && begin + kPageTokens > span.start)
      page = page_of(a.pages, a.sequences, sequence, index, head,
                     static_cast<std::int64_t>(a.pages.format.page_bytes()));
  }
  // The fringe's vector of position p, null: it holds none.
  __device__ const __half* fringe_vector(const DecodeArgs& a, std::int64_t p) const {
    if (a.fringe.data == nullptr || (p >= span.first_end && p < span.recent_start)) return nullptr;
    const std::int64_t slots = a.fringe.first + a.fringe.recent;
    const std::int64_t slot = p < span.first_end ? p - span.start : a.fringe.first + p % a.fringe.recent;
    return reinterpret_cast<const __half*>(a.fringe.data) +
           (2 * (sequence_head * slots + slot) + (is_key ? 0 : 1)) * a.pages.format.head_dim;
  }
  // What a token's codes are multiplied with; negative in a key's sign bit only.
  __device__ float stored_scale(const PageFormat& format, int t) const {
    return fp16_at(page + (is_key ? format.k_scales_offset() : format.v_scales_offset()),
                   core::scale_index(t));
  }
  __device__ const float* signs(const DecodeArgs& a) const {
    return (is_key ? a.basis.query_signs : a.basis.value_signs) +
           static_cast<std::int64_t>(head) * a.pages.format.head_dim;
  }
};

// All codes of a table as steps, in shared memory; 16 entries. Ends with a __syncthreads().
__device__ inline void fill_steps(const PageFormat& format, bool is_key, float* table) {
  if (threadIdx.x < 16) {
    const int bits = is_key ? format.k_bits : format.v_bits;
    table[threadIdx.x] = steps_of(bits, is_key)(threadIdx.x & ((1u << bits) - 1));
  }
  __syncthreads();
}

}  // namespace turboquant::kernels::cuda
