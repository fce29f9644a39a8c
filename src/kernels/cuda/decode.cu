// SPDX-License-Identifier: Apache-2.0
// decode: a block takes the keys or the values of one page, a warp eight tokens of it, one at a time in
// registers. The eight are those whose value codes share a word. Bound by memory at head_dim 128.
#include <cmath>

#include "kernels/cuda/codes.cuh"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/warp_vector.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kWarps = 8;
static_assert(kWarps * 8 == kPageTokens);

struct DecodeCall {
  DecodeArgs args;
  float scale;  // 1 / sqrt(head_dim)
  int pages;    // that max_tokens spans
};

__device__ inline float half_at(const std::uint8_t* area, int index) {
  return __half2float(reinterpret_cast<const __half*>(area)[index]);
}

// The fringe's vector of position p, null: it holds none.
__device__ inline const __half* fringe_vector(const DecodeArgs& a, const FringeSpan& span, int i, int head,
                                              std::int64_t p, bool is_key) {
  if (a.fringe.data == nullptr || (p >= span.first_end && p < span.recent_start)) return nullptr;
  const std::int64_t slots = a.fringe.first + a.fringe.recent;
  const std::int64_t slot = p < span.first_end ? p - span.start : a.fringe.first + p % a.fringe.recent;
  const std::int64_t at = (static_cast<std::int64_t>(i) * a.pages.kv_heads + head) * slots + slot;
  return reinterpret_cast<const __half*>(a.fringe.data) +
         (2 * at + (is_key ? 0 : 1)) * a.pages.format.head_dim;
}

// Grid: (pages x sequences x kv_heads, 2): blockIdx.y 0 keys, 1 values.
template <int C>
__global__ void __launch_bounds__(32 * kWarps) decode_pages(const __grid_constant__ DecodeCall call) {
  __shared__ float scratch[kWarps][32 * C];
  wait_for_previous_kernel();
  const DecodeArgs& a = call.args;
  const PageFormat& format = a.pages.format;
  const int d = format.head_dim, warp = static_cast<int>(threadIdx.x / 32), first = lane_id() * C;
  const bool is_key = blockIdx.y == 0, holds = first < d;
  const std::uint32_t sequence_head = blockIdx.x / static_cast<std::uint32_t>(call.pages);
  const int page_index =
      static_cast<int>(blockIdx.x - sequence_head * static_cast<std::uint32_t>(call.pages));
  const int i = static_cast<int>(sequence_head) / a.pages.kv_heads;
  const int head = static_cast<int>(sequence_head) - i * a.pages.kv_heads;
  const FringeSpan span = fringe_span(a.fringe, a.sequences, i);
  const std::int64_t page_begin = static_cast<std::int64_t>(page_index) * kPageTokens;
  if (page_begin >= span.length) return;

  // A page of nothing but padding may not exist, and the bytes that are not read need not either.
  const bool has_page = page_begin + kPageTokens > span.start;
  const std::uint8_t* page = has_page ? page_of(a.pages, a.sequences, i, page_index, head,
                                                static_cast<std::int64_t>(format.page_bytes()))
                                      : nullptr;
  const float* all_signs =
      (is_key ? a.basis.query_signs : a.basis.value_signs) + static_cast<std::int64_t>(head) * d;
  const int bits = is_key ? format.k_bits : format.v_bits;
  const Steps steps = steps_of(bits, is_key);
  const int half = warp / 4, quarter = warp % 4;
  float signs[C], centre[C];
  std::uint32_t codes[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    signs[j] = holds ? all_signs[first + j] : 0.0f;
    centre[j] = 0.0f;
    codes[j] = 0;
    if (!holds || !has_page) continue;
    if (is_key)
      centre[j] =
          half_at(page + format.centre_step_offset(), 0) *
          static_cast<float>(reinterpret_cast<const std::int8_t*>(page + format.centre_offset())[first + j]);
    else codes[j] = eight_value_codes(page + format.v_codes_offset(), d, bits, half, quarter, first + j);
  }

  for (int k = 0; k < 8; ++k) {
    const int t = 32 * half + 8 * (k % 4) + 2 * quarter + k / 4;
    const std::int64_t p = page_begin + t;
    if (p >= span.length) continue;
    float y[C];
    if (p < span.start) {
#pragma unroll
      for (int j = 0; j < C; ++j) y[j] = 0.0f;
    } else if (const __half* exact = fringe_vector(a, span, i, head, p, is_key)) {
      load_warp_vector(DType::kF16, exact, 0, d, y);
    } else {
      const std::uint8_t* scales = page + (is_key ? format.k_scales_offset() : format.v_scales_offset());
      const float stored = half_at(scales, core::scale_index(t));
      const float step = fabsf(stored) * (1.0f / core::kScaleUnit);
      const bool centred = (__float_as_uint(stored) >> 31) == 0;
      std::uint32_t four = 0;
#pragma unroll
      for (int j = 0; j < C; ++j) {
        y[j] = 0.0f;
        if (!holds) continue;
        std::uint32_t code;
        if (!is_key) {
          code = codes[j] >> (4 * k) & 15u;
        } else if (C >= 4) {
          if (j % 4 == 0) four = four_key_codes(page, d, bits, t, first + j);
          code = four >> (4 * (j % 4)) & 15u;
        } else {
          code = core::read_code(page, core::key_position, d, bits, t, first + j);
        }
        y[j] = step * steps(code) + (centred ? centre[j] : 0.0f);
      }
    }
    hadamard(y, a.basis.base, d / a.basis.base, a.basis.base_matrix, true, scratch[warp]);
#pragma unroll
    for (int j = 0; j < C; ++j) y[j] = y[j] * call.scale * signs[j];
    const std::int64_t row = static_cast<std::int64_t>(sequence_head) * a.max_tokens + p;
    store_warp_vector(a.dtype, is_key ? a.keys : a.values, row * d, d, y);
  }
}

template <int C>
Status launch_decode(const DecodeCall& call, const Context& context) {
  const std::int64_t blocks = std::int64_t{call.pages} * call.args.sequences.count * call.args.pages.kv_heads;
  const Launch how{"decode", dim3(static_cast<unsigned>(blocks), 2), dim3(32 * kWarps), 0, true};
  return launch(how, context, &decode_pages<C>, call);
}

}  // namespace

Status decode(const DecodeArgs& args, const Context& context) {
  if (args.max_tokens <= 0 || args.sequences.count <= 0) return {};
  DecodeCall call{args, static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.pages.format.head_dim))),
                  static_cast<int>((args.max_tokens + kPageTokens - 1) / kPageTokens)};
  switch (coordinates_per_lane(args.pages.format.head_dim)) {
    case 1:
      return launch_decode<1>(call, context);
    case 2:
      return launch_decode<2>(call, context);
    case 4:
      return launch_decode<4>(call, context);
    case 8:
      return launch_decode<8>(call, context);
    default:
      return launch_decode<16>(call, context);
  }
}

}  // namespace turboquant::kernels::cuda
