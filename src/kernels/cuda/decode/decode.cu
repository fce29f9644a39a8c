// SPDX-License-Identifier: Apache-2.0
// decode: a warp takes eight tokens of its block's page, one at a time in registers. The eight are those
// whose value codes share a word.
#include <cmath>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode/history.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/warp_vector.cuh"

namespace turboquant::kernels::cuda {
namespace {

template <int C>
__global__ void __launch_bounds__(32 * kDecodeWarps) decode_pages(const __grid_constant__ DecodeCall call) {
  __shared__ float scratch[kDecodeWarps][32 * C];
  __shared__ float table[16];
  wait_for_previous_kernel();
  const DecodeArgs& a = call.args;
  const PageFormat& format = a.pages.format;
  const int d = format.head_dim, warp = static_cast<int>(threadIdx.x / 32), first = lane_id() * C;
  const DecodePage at(call);
  if (at.begin >= at.span.length) return;
  fill_steps(format, at.is_key, table);
  const bool holds = first < d;
  const int bits = at.is_key ? format.k_bits : format.v_bits, half = warp / 4, quarter = warp % 4;
  float signs[C], centre[C];
  std::uint32_t codes[C];
#pragma unroll
  for (int j = 0; j < C; ++j) {
    signs[j] = holds ? at.signs(a)[first + j] : 0.0f;
    centre[j] = 0.0f;
    codes[j] = 0;
    if (!holds || at.page == nullptr) continue;
    if (at.is_key)
      centre[j] = fp16_at(at.page + format.centre_step_offset(), 0) *
                  static_cast<float>(
                      reinterpret_cast<const std::int8_t*>(at.page + format.centre_offset())[first + j]);
    else codes[j] = eight_value_codes(at.page + format.v_codes_offset(), d, bits, half, quarter, first + j);
  }

  for (int k = 0; k < 8; ++k) {
    const int t = 32 * half + 8 * (k % 4) + 2 * quarter + k / 4;
    const std::int64_t p = at.begin + t;
    if (p >= at.span.length) continue;
    float y[C];
    if (p < at.span.start) {
#pragma unroll
      for (int j = 0; j < C; ++j) y[j] = 0.0f;
    } else if (const __half* exact = at.fringe_vector(a, p)) {
      load_warp_vector(DType::kF16, exact, 0, d, y);
    } else {
      const float stored = at.stored_scale(format, t);
      const float step = fabsf(stored) * (1.0f / core::kScaleUnit);
      const bool centred = (__float_as_uint(stored) >> 31) == 0;
      std::uint32_t four = 0;
#pragma unroll
      for (int j = 0; j < C; ++j) {
        y[j] = 0.0f;
        if (!holds) continue;
        std::uint32_t code;
        if (!at.is_key) {
          code = codes[j] >> (4 * k) & 15u;
        } else if (C >= 4) {
          if (j % 4 == 0) four = four_key_codes(at.page, d, bits, t, first + j);
          code = four >> (4 * (j % 4)) & 15u;
        } else {
          code = core::read_code(at.page, core::key_position, d, bits, t, first + j);
        }
        y[j] = step * table[code] + (centred ? centre[j] : 0.0f);
      }
    }
    hadamard(y, a.basis.base, d / a.basis.base, a.basis.base_matrix, true, scratch[warp]);
#pragma unroll
    for (int j = 0; j < C; ++j) y[j] = y[j] * call.scale * signs[j];
    store_warp_vector(a.dtype, at.is_key ? a.keys : a.values, (at.sequence_head * a.max_tokens + p) * d, d,
                      y);
  }
}

template <int C>
Status launch_decode(const DecodeCall& call, const Context& context) {
  const std::int64_t blocks = std::int64_t{call.pages} * call.args.sequences.count * call.args.pages.kv_heads;
  const Launch how{"decode", dim3(static_cast<unsigned>(blocks), 2), dim3(32 * kDecodeWarps), 0, true};
  return launch(how, context, &decode_pages<C>, call);
}

}  // namespace

Status decode(const DecodeArgs& args, const Context& context) {
  if (args.max_tokens <= 0 || args.sequences.count <= 0) return {};
  DecodeCall call{args, static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.pages.format.head_dim))),
                  static_cast<int>((args.max_tokens + kPageTokens - 1) / kPageTokens)};
  if (decode_quads_serves(args)) return launch_decode_quads(call, context);
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
