// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cuda/vectors.cuh"

// A head vector in the registers of one warp: lane L holds coordinates C L .. C L + C - 1, and zeros from
// head_dim on, where C = the power of two from head_dim on over 32. The fp32 operations on a coordinate are
// those of core/hadamard.h and kernels/encode_rules.h in their order, so the results have the same bits.
// Files that include this are built without contraction.
namespace turboquant::kernels::cuda {

__host__ __device__ constexpr int coordinates_per_lane(int head_dim) {
  int n = 32;
  while (n < head_dim) n *= 2;
  return n / 32;
}

__device__ inline int lane_id() {
  return static_cast<int>(threadIdx.x & 31);
}

__device__ inline float element_of_bits(DType dtype, std::uint32_t bits) {
  if (dtype == DType::kF16) return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  return __uint_as_float(bits << 16);
}

// The vector that starts `at` elements into data.
template <int C>
__device__ inline void load_warp_vector(DType dtype, const void* data, std::int64_t at, int head_dim,
                                        float (&x)[C]) {
  const int first = lane_id() * C;
#pragma unroll
  for (int j = 0; j < C; ++j) x[j] = 0.0f;
  if (first >= head_dim) return;
  if (dtype == DType::kF32) {
    const float* in = static_cast<const float*>(data) + at + first;
#pragma unroll
    for (int j = 0; j < C; ++j) x[j] = in[j];
    return;
  }
  const auto* in = static_cast<const std::uint16_t*>(data) + at + first;
  constexpr int kWords = C >= 4 ? 2 : 1;  // 4 bytes each, at a time; rows may start anywhere
  if (C >= 2 && reinterpret_cast<std::uintptr_t>(in) % (4 * kWords) == 0) {
#pragma unroll
    for (int j = 0; j + 1 < C; j += 2 * kWords) {
      std::uint32_t words[kWords];
      if constexpr (kWords == 2) {
        const uint2 two = *reinterpret_cast<const uint2*>(in + j);
        words[0] = two.x;
        words[1] = two.y;
      } else {
        words[0] = *reinterpret_cast<const std::uint32_t*>(in + j);
      }
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        x[j + 2 * w] = element_of_bits(dtype, words[w] & 0xffffu);
        x[j + 2 * w + 1] = element_of_bits(dtype, words[w] >> 16);
      }
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < C; ++j) x[j] = element_of_bits(dtype, in[j]);
}

__device__ inline std::uint32_t pair_bits(DType dtype, float low, float high) {
  if (dtype == DType::kF16) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

template <int C>
__device__ inline void store_warp_vector(DType dtype, void* data, std::int64_t at, int head_dim,
                                         const float (&x)[C]) {
  const int first = lane_id() * C;
  if (first >= head_dim) return;
  auto* out = static_cast<std::uint16_t*>(data) + at + first;
  if (C >= 4 && dtype != DType::kF32 && reinterpret_cast<std::uintptr_t>(out) % 8 == 0) {
#pragma unroll
    for (int j = 0; j + 3 < C; j += 4)
      *reinterpret_cast<uint2*>(out + j) =
          uint2{pair_bits(dtype, x[j], x[j + 1]), pair_bits(dtype, x[j + 2], x[j + 3])};
    return;
  }
#pragma unroll
  for (int j = 0; j < C; ++j) store_element(dtype, data, at + first + j, x[j]);
}

// The nearest fp16 number.
__device__ inline float round_to_half(float x) {
  return __half2float(__float2half_rn(x));
}
struct Unrounded {
  __device__ float operator()(float x) const { return x; }
};
struct RoundedToHalf {
  __device__ float operator()(float x) const { return round_to_half(x); }
};

// x <- H x, or H^T x, unscaled; `power` is at least C. `round` is done to every sum of a butterfly, and to
// the result. scratch [32 C] floats in shared memory, this warp's own; not used where base is 1.
template <int C, class Round = Unrounded>
__device__ inline void hadamard(float (&x)[C], int base, int power, const float* __restrict__ base_matrix,
                                bool transposed, float* scratch, const Round& round = {}) {
  const int lane = lane_id();
#pragma unroll
  for (int h = 1; h < C; h *= 2)
#pragma unroll
    for (int j = 0; j < C; ++j)
      if ((j & h) == 0) {
        const float u = x[j], v = x[j + h];
        x[j] = round(u + v);
        x[j + h] = round(u - v);
      }
  for (int apart = 1; apart * C < power; apart *= 2) {
    const bool high = (lane & apart) != 0;
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const float other = __shfl_xor_sync(~0u, x[j], apart);
      x[j] = round(high ? other - x[j] : x[j] + other);
    }
  }
  if (base == 1) return;
  const int head_dim = base * power, first = lane * C;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < C; ++j) scratch[first + j] = x[j];
  __syncwarp();
  if (first >= head_dim) return;
  const int block = first / power, offset = first - block * power;  // C divides power: one block a lane
  const int along = transposed ? base : 1;
  const float* row = base_matrix + block * (transposed ? 1 : base);
#pragma unroll
  for (int j = 0; j < C; ++j) x[j] = __fmul_rn(row[0], scratch[offset + j]);
  for (int i = 1; i < base; ++i) {
    const float entry = row[i * along];
#pragma unroll
    for (int j = 0; j < C; ++j) x[j] = __fadd_rn(x[j], __fmul_rn(entry, scratch[i * power + offset + j]));
  }
#pragma unroll
  for (int j = 0; j < C; ++j) x[j] = round(x[j]);
}

// sum x_e^2 over a tree of neighbours, in every lane.
template <int C>
__device__ inline float tree_squared_norm(const float (&x)[C]) {
  float sums[C];
#pragma unroll
  for (int j = 0; j < C; ++j) sums[j] = __fmul_rn(x[j], x[j]);
#pragma unroll
  for (int n = C / 2; n > 0; n /= 2)
#pragma unroll
    for (int j = 0; j < n; ++j) sums[j] = __fadd_rn(sums[2 * j], sums[2 * j + 1]);
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2)
    sums[0] = __fadd_rn(sums[0], __shfl_xor_sync(~0u, sums[0], apart));
  return sums[0];
}

}  // namespace turboquant::kernels::cuda
