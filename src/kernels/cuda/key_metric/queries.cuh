// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/ptx.cuh"
#include "kernels/cuda/quads.cuh"
#include "kernels/cuda/warp_vector.cuh"
#include "kernels/metric_rules.h"

// Rules 1 and 2 of kernels/metric_rules.h: a round of queries, rotated and rounded, into shared memory by all
// warps of a block. Two queries at a time: unit (pair, e) is a 16-bit word, coordinate e of both. Files that
// include this are built without contraction.
namespace turboquant::kernels::cuda {

// n / divisor for n below 2^31, of a divisor that the host knows.
struct Divisor {
  std::uint32_t divisor, factor;
  int shift;

  explicit Divisor(std::uint32_t by) : divisor(by), shift(31) {
    while (std::uint64_t{by} > std::uint64_t{1} << (shift - 31)) ++shift;
    factor = static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + by - 1) / by);
  }
  __device__ std::uint32_t divide(std::uint32_t n) const {
    return static_cast<std::uint32_t>(std::uint64_t{n} * factor >> shift);
  }
};

// Queries 0 .. count - 1 of a KV head: its query heads of one sampled token, then those of the next.
struct Sampled {
  std::uint32_t count, step;
  Divisor group, tokens;
};

struct Place {
  std::int64_t at;  // of the query's first element
  bool counts;
};
__device__ inline Place place_of(const KeyMetricArgs& a, const Sampled& of, std::uint32_t index, int h) {
  const std::uint32_t known = min(index, of.count - 1), sample = of.group.divide(known);
  const std::uint32_t head =
      static_cast<std::uint32_t>(h) * of.group.divisor + known - sample * of.group.divisor;
  const std::uint32_t row = (sample + 1) * of.step - 1, sequence = of.tokens.divide(row);
  const std::uint32_t token = row - sequence * of.tokens.divisor;
  const bool seen = a.starts == nullptr || static_cast<std::int32_t>(token) >= a.starts[sequence];
  return {sequence * a.sequence_stride + token * a.query.token_stride + head * a.query.head_stride,
          index < of.count && seen};
}

// Rule 1's f, and 0 for a query that does not count.
__device__ inline float factor_of(float largest, bool counts) {
  const float factor = __fdiv_rn(127.0f, largest);
  return counts && query_counts(factor) ? factor : 0.0f;
}
// Rule 2, in the low byte.
__device__ inline std::uint32_t level(float y, float factor) {
  return __float_as_uint(__fadd_rn(__fmul_rn(y, factor), 0x1.8p23f));
}

// head_dim = 32 kLanes, a power of two: a lane has 32 coordinates of a vector, so that few stages of the
// rotation cross lanes. Addresses are multiples of 16. kBytes: of an element.
template <int kLanes, int kBytes>
struct Lanes {
  static constexpr int kPairs = kLanes == 2 ? 256 : 128, kScratch = 1;  // 64 vectors or more by all warps
  static constexpr int kTogether = 32 / kLanes;                         // pairs that a warp has at a time

  __device__ static int first_coordinate() { return 32 * (static_cast<int>(threadIdx.x) & (kLanes - 1)); }

  __device__ static void load(const KeyMetricArgs& a, std::int64_t at, uint4 (&raw)[2 * kBytes]) {
    const auto* from = reinterpret_cast<const uint4*>(static_cast<const char*>(a.query.data) +
                                                      kBytes * (at + first_coordinate()));
#pragma unroll
    for (int j = 0; j < 2 * kBytes; ++j) raw[j] = from[j];
  }

  __device__ static void levels(const KeyMetricArgs& a, const float* signs, const uint4 (&raw)[2 * kBytes],
                                bool counts, std::uint32_t (&out)[8]) {
    float y[32];
#pragma unroll
    for (int j = 0; j < 2 * kBytes; ++j) {
      if constexpr (kBytes == 2) {
        unpack_eight(a.query.dtype, raw[j], y + 8 * j);
      } else {
        y[4 * j] = __uint_as_float(raw[j].x);
        y[4 * j + 1] = __uint_as_float(raw[j].y);
        y[4 * j + 2] = __uint_as_float(raw[j].z);
        y[4 * j + 3] = __uint_as_float(raw[j].w);
      }
    }
    const auto* from = reinterpret_cast<const float4*>(signs + first_coordinate());
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float4 four = from[j];
      y[4 * j] = __fmul_rn(y[4 * j], four.x);
      y[4 * j + 1] = __fmul_rn(y[4 * j + 1], four.y);
      y[4 * j + 2] = __fmul_rn(y[4 * j + 2], four.z);
      y[4 * j + 3] = __fmul_rn(y[4 * j + 3], four.w);
    }
#pragma unroll
    for (int h = 1; h < 32; h *= 2)
#pragma unroll
      for (int j = 0; j < 32; ++j)
        if ((j & h) == 0) {
          const float u = y[j], v = y[j + h];
          y[j] = u + v;
          y[j + h] = u - v;
        }
        // Other + y in the low lane, other - y in the high one: a fused multiply by +-1 rounds once, as the
        // sum does.
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2) {
      const float sign = (threadIdx.x & apart) != 0 ? -1.0f : 1.0f;
#pragma unroll
      for (int j = 0; j < 32; ++j) y[j] = __fmaf_rn(sign, y[j], __shfl_xor_sync(~0u, y[j], apart));
    }
    float largest = 0.0f;
#pragma unroll
    for (int j = 0; j < 32; ++j) largest = fmaxf(largest, fabsf(y[j]));
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
    const float factor = factor_of(largest, counts);
    const std::uint32_t kept = factor > 0.0f ? ~0u : 0u;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      out[j] = kept & prmt(prmt(level(y[4 * j], factor), level(y[4 * j + 1], factor), 0x0040),
                           prmt(level(y[4 * j + 2], factor), level(y[4 * j + 3], factor), 0x0040), 0x5410);
  }

  // `pairs` of them, from query `first` on, as units [pairs, pitch].
  template <int kWarps>
  __device__ static void round(const KeyMetricArgs& a, const Sampled& of, const float* signs,
                               std::uint32_t first, int pairs, int h, std::uint16_t* units, int pitch,
                               float*) {
    for (int base = kTogether * static_cast<int>(threadIdx.x / 32); base < pairs;
         base += kTogether * kWarps) {
      const int pair = base + lane_id() / kLanes;
      const std::uint32_t index = first + 2 * static_cast<std::uint32_t>(pair);
      const Place here = place_of(a, of, index, h), next = place_of(a, of, index + 1, h);
      uint4 raw[2 * kBytes], other_raw[2 * kBytes];
      std::uint32_t one[8], other[8];
      load(a, here.at, raw);
      if constexpr (kBytes == 2) load(a, next.at, other_raw);
      levels(a, signs, raw, here.counts, one);
      if constexpr (kBytes == 4) load(a, next.at, other_raw);
      levels(a, signs, other_raw, next.counts, other);
      auto* to = reinterpret_cast<uint4*>(units + pair * pitch + first_coordinate());
#pragma unroll
      for (int j = 0; j < 4; ++j)
        to[j] = {prmt(one[2 * j], other[2 * j], 0x5140), prmt(one[2 * j], other[2 * j], 0x7362),
                 prmt(one[2 * j + 1], other[2 * j + 1], 0x5140),
                 prmt(one[2 * j + 1], other[2 * j + 1], 0x7362)};
    }
  }
};

// Any head_dim and address: a warp a pair, lane L has coordinates C L .. C L + C - 1.
template <int C>
struct Warps {
  static constexpr int kPairs = C <= 8 ? 128 : 64, kScratch = 32 * C;

  __device__ static void levels(const KeyMetricArgs& a, const float* signs, const Place& place,
                                float* scratch, std::uint32_t (&out)[C]) {
    float y[C], largest = 0.0f;
    load_warp_vector(a.query.dtype, a.query.data, place.at, a.head_dim, y);
    const int first = lane_id() * C;
#pragma unroll
    for (int j = 0; j < C; ++j) y[j] = first < a.head_dim ? __fmul_rn(y[j], signs[first + j]) : 0.0f;
    hadamard(y, a.base, a.head_dim / a.base, a.base_matrix, false, scratch);
#pragma unroll
    for (int j = 0; j < C; ++j) largest = fmaxf(largest, fabsf(y[j]));
#pragma unroll
    for (int apart = 1; apart < 32; apart *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
    const float factor = factor_of(largest, place.counts);
#pragma unroll
    for (int j = 0; j < C; ++j) out[j] = factor > 0.0f ? level(y[j], factor) : 0u;
  }

  template <int kWarps>
  __device__ static void round(const KeyMetricArgs& a, const Sampled& of, const float* signs,
                               std::uint32_t first, int pairs, int h, std::uint16_t* units, int pitch,
                               float* scratch) {
    for (int pair = static_cast<int>(threadIdx.x / 32); pair < pairs; pair += kWarps) {
      std::uint32_t one[C], other[C];
      const std::uint32_t index = first + 2 * static_cast<std::uint32_t>(pair);
      levels(a, signs, place_of(a, of, index, h), scratch, one);
      levels(a, signs, place_of(a, of, index + 1, h), scratch, other);
      if (lane_id() * C >= a.head_dim) continue;
      std::uint16_t* to = units + pair * pitch + lane_id() * C;
#pragma unroll
      for (int j = 0; j < C; ++j) to[j] = static_cast<std::uint16_t>(prmt(one[j], other[j], 0x0040));
    }
  }
};

}  // namespace turboquant::kernels::cuda
