// SPDX-License-Identifier: Apache-2.0
// decode at head_dim 128: four lanes a vector (quads.cuh), eight tokens of a page a warp at once, bound by
// memory.
#include "kernels/cuda/decode/history.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/quads.cuh"

namespace turboquant::kernels::cuda {
namespace {

// A lane's coordinates 32 q + j of a key as steps: word 4 c + q of the row has those of chunk c, in nibbles
// 0..3 j = 4 c + n, in nibbles 4..7 j = 16 + 4 c + n.
__device__ inline void key_steps(const std::uint8_t* area, int bits, int t, const float* table,
                                 float (&steps)[kQuadLane]) {
  const int q = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    std::uint32_t word;
    if (bits == 4) {
      word = reinterpret_cast<const std::uint32_t*>(area)[16 * t + 4 * c + q];
    } else {  // 2 bits: word i & 1 of a chunk's two holds i in bits 2 (i / 2); 1 bit: its word, in bit i
      word = reinterpret_cast<const std::uint32_t*>(area)[8 * t + 2 * c + (q & 1)] >> (2 * (q >> 1)) &
             0x33333333u;
      if (bits == 3)
        word |= (reinterpret_cast<const std::uint32_t*>(area + 16 * kQuadDim)[4 * t + c] >> q & 0x11111111u)
                << 2;
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) steps[(n < 4 ? 0 : 12) + 4 * c + n] = table[word >> (4 * n) & 15u];
  }
}

// Of a value: nibble m of the word of tokens (i, quarter) and a coordinate; 16-byte loads hold coordinates
// x, 8 + x, 16 + x, 24 + x of a lane.
__device__ inline void value_steps(const std::uint8_t* area, int bits, int i, int quarter, int m,
                                   const float* table, float (&steps)[kQuadLane]) {
  const int unit = 128 * static_cast<int>(threadIdx.x & 3) + 4 * quarter;
#pragma unroll
  for (int x = 0; x < 8; ++x) {
    std::uint32_t words[4];
    if (bits == 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(area + 4 * (4 * kQuadDim * i + unit + 16 * x));
      words[0] = four.x >> (4 * m);
      words[1] = four.y >> (4 * m);
      words[2] = four.z >> (4 * m);
      words[3] = four.w >> (4 * m);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        words[j] = eight_value_codes(area, kQuadDim, bits, i, quarter,
                                     kQuadLane * static_cast<int>(threadIdx.x & 3) + 8 * j + x) >>
                   (4 * m);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) steps[8 * j + x] = table[words[j] & 15u];
  }
}

__global__ void __launch_bounds__(32 * kDecodeWarps, 3)
    decode_quads(const __grid_constant__ DecodeCall call) {
  __shared__ float table[16];
  wait_for_previous_kernel();
  const DecodeArgs& a = call.args;
  const PageFormat& format = a.pages.format;
  const DecodePage at(call);
  if (at.begin >= at.span.length) return;
  fill_steps(format, at.is_key, table);
  // Slot g of warp m: the tokens whose value codes are nibble m of their words.
  const int g = static_cast<int>(threadIdx.x & 31) >> 2, q = static_cast<int>(threadIdx.x & 3);
  const int m = static_cast<int>(threadIdx.x / 32), i = g >> 2, quarter = g & 3;
  const int t = 32 * i + 8 * (m & 3) + 2 * quarter + (m >> 2);
  const std::int64_t p = at.begin + t;
  float y[kQuadLane];
  const __half* exact = p >= at.span.start && p < at.span.length ? at.fringe_vector(a, p) : nullptr;
  if (exact != nullptr) {
    load_quad(DType::kF16, exact, 0, y);
  } else if (p < at.span.start || p >= at.span.length) {
#pragma unroll
    for (int j = 0; j < kQuadLane; ++j) y[j] = 0.0f;
  } else {
    const float stored = at.stored_scale(format, t), step = fabsf(stored) * (1.0f / core::kScaleUnit);
    if (at.is_key) {
      key_steps(at.page, format.k_bits, t, table, y);
      const float centre_step =
          (__float_as_uint(stored) >> 31) == 0 ? fp16_at(at.page + format.centre_step_offset(), 0) : 0.0f;
      const auto* centre =
          reinterpret_cast<const char4*>(at.page + format.centre_offset()) + kQuadLane / 4 * q;
#pragma unroll
      for (int j = 0; j < kQuadLane; j += 4) {
        const char4 c = centre[j / 4];
        y[j] = step * y[j] + centre_step * static_cast<float>(c.x);
        y[j + 1] = step * y[j + 1] + centre_step * static_cast<float>(c.y);
        y[j + 2] = step * y[j + 2] + centre_step * static_cast<float>(c.z);
        y[j + 3] = step * y[j + 3] + centre_step * static_cast<float>(c.w);
      }
    } else {
      value_steps(at.page + format.v_codes_offset(), format.v_bits, i, quarter, m, table, y);
#pragma unroll
      for (int j = 0; j < kQuadLane; ++j) y[j] = step * y[j];
    }
  }
  quad_hadamard(y);
  const auto* signs = reinterpret_cast<const float4*>(at.signs(a)) + kQuadLane / 4 * q;
#pragma unroll
  for (int j = 0; j < kQuadLane; j += 4) {
    const float4 s = signs[j / 4];
    y[j] = y[j] * call.scale * s.x;
    y[j + 1] = y[j + 1] * call.scale * s.y;
    y[j + 2] = y[j + 2] * call.scale * s.z;
    y[j + 3] = y[j + 3] * call.scale * s.w;
  }
  if (p < at.span.length)
    store_quad(a.dtype, at.is_key ? a.keys : a.values, (at.sequence_head * a.max_tokens + p) * kQuadDim, y);
}

bool is_aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

}  // namespace

bool decode_quads_serves(const DecodeArgs& args) {
  return args.pages.format.head_dim == kQuadDim && is_aligned(args.keys) && is_aligned(args.values) &&
         is_aligned(args.fringe.data) && is_aligned(args.basis.query_signs) &&
         is_aligned(args.basis.value_signs);
}

Status launch_decode_quads(const DecodeCall& call, const Context& context) {
  const std::int64_t blocks = std::int64_t{call.pages} * call.args.sequences.count * call.args.pages.kv_heads;
  const Launch how{"decode", dim3(static_cast<unsigned>(blocks), 2), dim3(32 * kDecodeWarps), 0, true};
  return launch(how, context, &decode_quads, call);
}

}  // namespace turboquant::kernels::cuda
