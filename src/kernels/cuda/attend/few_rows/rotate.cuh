// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/vectors.cuh"

// The Hadamard rotation of a few rows by one warp, in registers: lane l holds coordinates l + 32 i of each
// row. A stage of distance h < 32 is one shuffle and one fma a coordinate. Outputs are only bounded here,
// codes are not decided; encode has its own, bit-exact rotation.
namespace turboquant::kernels::cuda::few_rows {

template <int kDim>
inline constexpr int kEach = (kDim + 31) / 32;  // coordinates a lane
template <int kDim, int kRows>
using RowsInLanes = float[kRows][kEach<kDim>];

template <int kDim>
__device__ __forceinline__ bool has(int i) {  // coordinate lane + 32 i exists
  return kDim % 32 == 0 || static_cast<int>(threadIdx.x & 31) + 32 * i < kDim;
}

// x <- H x, or H^T x, unscaled. staged: [kRows][kStride] floats of the warp, used where the base is not 1.
template <int kDim, int kRows, bool kTransposed>
__device__ void hadamard(RowsInLanes<kDim, kRows>& x, const float* __restrict__ base_matrix, float* staged,
                         int stride) {
  constexpr int kBase = hadamard_base(kDim), kPower = kDim / kBase, kN = kEach<kDim>;
  const int lane = static_cast<int>(threadIdx.x & 31);
  constexpr int kUnroll = kRows <= 2 ? 5 : 1;  // code is as dear as time: see schedule.cuh
#pragma unroll kUnroll
  for (int h = 1; h < (kPower < 32 ? kPower : 32); h *= 2) {
    const float sign = (lane & h) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kN; ++i) x[r][i] = fmaf(x[r][i], sign, __shfl_xor_sync(~0u, x[r][i], h));
  }
#pragma unroll
  for (int h = 32; h < kPower; h *= 2) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if ((i * 32 & h) != 0) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float u = x[r][i], v = x[r][i + h / 32];
        x[r][i] = u + v;
        x[r][i + h / 32] = u - v;
      }
    }
  }
  if constexpr (kBase > 1) {
    __syncwarp();
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kN; ++i)
        if (has<kDim>(i)) staged[r * stride + lane + 32 * i] = x[r][i];
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const int e = has<kDim>(i) ? lane + 32 * i : 0, j = e / kPower, offset = e % kPower;
      float row[kBase];
#pragma unroll
      for (int k = 0; k < kBase; ++k) row[k] = base_matrix[kTransposed ? k * kBase + j : j * kBase + k];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < kBase; ++k) sum = fmaf(row[k], staged[r * stride + k * kPower + offset], sum);
        x[r][i] = sum;
      }
    }
    __syncwarp();
  }
}

// A 16-bit element as float, and back.
__device__ __forceinline__ float from_16_bits(bool is_half, unsigned short bits) {
  return is_half ? __half2float(__ushort_as_half(bits)) : __uint_as_float(static_cast<unsigned>(bits) << 16);
}
__device__ __forceinline__ unsigned short to_16_bits(bool is_half, float x) {
  return is_half ? __half_as_ushort(__float2half_rn(x)) : __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

// Rows of 16-bit elements as they are loaded. They become numbers where they are used, so that a warp waits
// for them there.
template <int kDim, int kRows>
struct RawRows {
  unsigned short bits[kRows][kEach<kDim>];

  // Row r from element at[r] of the data; zeros where at[r] < 0.
  __device__ __forceinline__ void load(const Rows& from, const std::int64_t (&at)[kRows]) {
    const auto* data = static_cast<const unsigned short*>(from.data) + (threadIdx.x & 31);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kEach<kDim>; ++i)
        bits[r][i] = at[r] >= 0 && has<kDim>(i) ? data[at[r] + 32 * i] : static_cast<unsigned short>(0);
  }
  __device__ __forceinline__ float get(bool is_half, int r, int i) const {
    return from_16_bits(is_half, bits[r][i]);
  }
};

// Of a head size that is a power of 2, a row may also lie in a warp so that a lane has kEach adjacent
// coordinates: one load or store each. The stages of the rotation are the same, in another order.
constexpr bool rotates_adjacent(int dim) {
  return hadamard_base(dim) == 1 && dim % 64 == 0;
}

template <int kDim, int kRows>
__device__ void hadamard_adjacent(RowsInLanes<kDim, kRows>& x) {
  constexpr int kN = kEach<kDim>, kUnroll = kRows <= 2 ? 5 : 1;  // as above
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int h = 1; h < kN; h *= 2) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if ((i & h) != 0) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float u = x[r][i], v = x[r][i + h];
        x[r][i] = u + v;
        x[r][i + h] = u - v;
      }
    }
  }
#pragma unroll kUnroll
  for (int h = 1; h < 32; h *= 2) {
    const float sign = (lane & h) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < kN; ++i) x[r][i] = fmaf(x[r][i], sign, __shfl_xor_sync(~0u, x[r][i], h));
  }
}

// kN words of this lane, in memory that is aligned to all of them.
template <int kN>
__device__ __forceinline__ void load_words_at(const std::uint32_t* from, std::uint32_t (&x)[kN]) {
  if constexpr (kN == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else if constexpr (kN == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    x[0] = v.x, x[1] = v.y;
  } else {
    x[0] = *from;
  }
}
template <int kN>
__device__ __forceinline__ void store_words_at(std::uint32_t* to, const std::uint32_t (&x)[kN]) {
  if constexpr (kN == 4) *reinterpret_cast<uint4*>(to) = {x[0], x[1], x[2], x[3]};
  else if constexpr (kN == 2) *reinterpret_cast<uint2*>(to) = {x[0], x[1]};
  else *to = x[0];
}

// As RawRows.
template <int kDim, int kRows>
struct AdjacentRows {
  static constexpr int kWords = kEach<kDim> / 2;
  std::uint32_t words[kRows][kWords];

  __device__ __forceinline__ void load(const Rows& from, const std::int64_t (&at)[kRows]) {
    const auto* data = static_cast<const unsigned short*>(from.data) + (threadIdx.x & 31) * kEach<kDim>;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[r][i] = 0;
      if (at[r] < 0) continue;
      const unsigned short* row = data + at[r];
      if (reinterpret_cast<std::uintptr_t>(row) % (4 * kWords) == 0) {
        load_words_at(reinterpret_cast<const std::uint32_t*>(row), words[r]);
      } else {  // a part of something
#pragma unroll
        for (int i = 0; i < kWords; ++i)
          words[r][i] = row[2 * i] | static_cast<std::uint32_t>(row[2 * i + 1]) << 16;
      }
    }
  }
  __device__ __forceinline__ float get(bool is_half, int r, int i) const {
    return from_16_bits(is_half, static_cast<unsigned short>(words[r][i / 2] >> (16 * (i % 2))));
  }
};

// A head's signs, in shared memory, by lane.
template <int kDim>
__device__ __forceinline__ void load_signs(const float* signs, float (&x)[kEach<kDim>]) {
#pragma unroll
  for (int i = 0; i < kEach<kDim>; ++i) x[i] = has<kDim>(i) ? signs[(threadIdx.x & 31) + 32 * i] : 1.0f;
}

// A lane's coordinates in a row of sums in memory, where they lie side by side: [32 lanes][kEach].
template <int kDim>
inline constexpr int kRowFloats = 32 * kEach<kDim>;
template <int kN>
__device__ __forceinline__ void load_lane_at(const float* from, float (&x)[kN]) {
  constexpr int kWidth = kN % 4 == 0 ? 4 : kN % 2 == 0 ? 2 : 1;
#pragma unroll
  for (int i = 0; i < kN; i += kWidth) {
    if constexpr (kWidth == 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    } else if constexpr (kWidth == 2) {
      const float2 v = *reinterpret_cast<const float2*>(from + i);
      x[i] = v.x, x[i + 1] = v.y;
    } else {
      x[i] = from[i];
    }
  }
}
template <int kDim>
__device__ __forceinline__ void load_lane(const float* row, float (&x)[kEach<kDim>]) {
  load_lane_at<kEach<kDim>>(row + (threadIdx.x & 31) * kEach<kDim>, x);
}
template <int kDim>
__device__ __forceinline__ void store_lane(float* row, int lane, const float (&x)[kEach<kDim>]) {
  constexpr int kN = kEach<kDim>, kWidth = kN % 4 == 0 ? 4 : kN % 2 == 0 ? 2 : 1;
  float* to = row + lane * kN;
#pragma unroll
  for (int i = 0; i < kN; i += kWidth) {
    if constexpr (kWidth == 4) *reinterpret_cast<float4*>(to + i) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
    else if constexpr (kWidth == 2) *reinterpret_cast<float2*>(to + i) = {x[i], x[i + 1]};
    else to[i] = x[i];
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
