// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cuda/vectors.cuh"

// Eight vectors of 128 coordinates in a warp, four lanes each: lane 4 g + q holds coordinates 32 q .. 32 q +
// 31 of vector g. Two of the seven butterfly stages cross lanes (one warp a vector: five). Files that decide
// codes are built without contraction.
namespace turboquant::kernels::cuda {

inline constexpr int kQuadDim = 128, kQuadLane = 32;  // coordinates of a vector, of a lane

// 16-byte pieces 0..3 of a lane's coordinates as fp32.
__device__ inline void unpack_eight(DType dtype, const uint4& piece, float* out) {
  const std::uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (dtype == DType::kBF16) {
      out[2 * w] = __uint_as_float(words[w] << 16);
      out[2 * w + 1] = __uint_as_float(words[w] & 0xffff0000u);
    } else {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&words[w]));
      out[2 * w] = two.x;
      out[2 * w + 1] = two.y;
    }
  }
}

__device__ inline uint4 pack_eight(DType dtype, const float* x) {
  std::uint32_t words[4];
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    if (dtype == DType::kBF16) {
      const __nv_bfloat162 two = __floats2bfloat162_rn(x[2 * w], x[2 * w + 1]);
      words[w] = *reinterpret_cast<const std::uint32_t*>(&two);
    } else {
      const __half2 two = __floats2half2_rn(x[2 * w], x[2 * w + 1]);
      words[w] = *reinterpret_cast<const std::uint32_t*>(&two);
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

// A lane's coordinates from and to memory; `at` is the vector's first element, and the address of every
// vector a multiple of 16.
__device__ inline void load_quad(DType dtype, const void* data, std::int64_t at, float (&x)[kQuadLane]) {
  at += kQuadLane * static_cast<int>(threadIdx.x & 3);
  if (dtype == DType::kF32) {
    const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
#pragma unroll
    for (int j = 0; j < kQuadLane / 4; ++j) {
      const float4 four = from[j];
      x[4 * j] = four.x;
      x[4 * j + 1] = four.y;
      x[4 * j + 2] = four.z;
      x[4 * j + 3] = four.w;
    }
    return;
  }
  const auto* from = reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(data) + at);
  uint4 pieces[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) pieces[j] = from[j];
#pragma unroll
  for (int j = 0; j < 4; ++j) unpack_eight(dtype, pieces[j], x + 8 * j);
}
__device__ inline void store_quad(DType dtype, void* data, std::int64_t at, const float (&x)[kQuadLane]) {
  at += kQuadLane * static_cast<int>(threadIdx.x & 3);
  if (dtype == DType::kF32) {
    auto* to = reinterpret_cast<float4*>(static_cast<float*>(data) + at);
#pragma unroll
    for (int j = 0; j < kQuadLane / 4; ++j)
      to[j] = float4{x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]};
    return;
  }
  auto* to = reinterpret_cast<uint4*>(static_cast<std::uint16_t*>(data) + at);
#pragma unroll
  for (int j = 0; j < 4; ++j) to[j] = pack_eight(dtype, x + 8 * j);
}

// x <- H x. A crossing stage is other + x in the low lane and other - x in the high one: a fused multiply by
// +-1 rounds once, as the sum does.
__device__ inline void quad_hadamard(float (&x)[kQuadLane]) {
#pragma unroll
  for (int h = 1; h < kQuadLane; h *= 2)
#pragma unroll
    for (int j = 0; j < kQuadLane; ++j)
      if ((j & h) == 0) {
        const float u = x[j], v = x[j + h];
        x[j] = u + v;
        x[j + h] = u - v;
      }
#pragma unroll
  for (int apart = 1; apart < 4; apart *= 2) {
    const float sign = (threadIdx.x & apart) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int j = 0; j < kQuadLane; ++j) x[j] = __fmaf_rn(sign, x[j], __shfl_xor_sync(~0u, x[j], apart));
  }
}

}  // namespace turboquant::kernels::cuda
