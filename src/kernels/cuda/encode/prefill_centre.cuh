// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/centre.cuh"
#include "kernels/cuda/encode/prefill.cuh"

// Rules 2 and 3 for the keys of a page, by a team.
namespace turboquant::kernels::cuda {

// A team's tokens, a bit each, of which some are chosen.
struct Chosen {
  std::uint32_t low, high;

  __device__ bool operator==(const Chosen& other) const { return low == other.low && high == other.high; }
  __device__ int count() const { return __popc(low) + __popc(high); }
};
__device__ inline std::uint32_t chosen_of_warp(bool chosen) {
  return __ballot_sync(~0u, chosen) & 0xffffu;
}

// A centre as its page stores it, of which a lane has the coordinates 4 lane .. 4 lane + 3.
struct Stored {
  std::uint32_t steps;  // four int8
  std::uint32_t step;   // fp16 bits
};
__device__ inline void find_steps(const Stored& stored, float (&n)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    n[k] = static_cast<float>(static_cast<std::int8_t>(stored.steps >> (8 * k) & 255u));
}
// How a warp measures distances to it.
struct Measure {
  float step;     // times sqrt(d)
  float squares;  // of the steps: an integer

  // 2 y.c - |c|^2, over the step.
  __device__ float difference(float dot, float factor) const { return 2.0f * dot - step * factor * squares; }
};

// A warp takes up a stored centre, to measure distances to it; a lane's coordinates are n steps.
__device__ inline Measure take_centre(const Stored& stored, const float (&n)[4], float centre_scale,
                                      WarpCentre& out) {
  const int lane = this_thread() & 31;
  const auto pair = [](float a, float b) { return bits_of(__floats2half2_rn(a, b)); };
  std::uint32_t* steps = &out.steps[2 * (lane & 1)][lane / 2];
  __syncwarp();
  steps[0] = pair(n[0], n[2]);
  steps[sizeof(out.steps[0]) / sizeof(out.steps[0][0])] = pair(n[1], n[3]);
  int squares = __dp4a(static_cast<int>(stored.steps), static_cast<int>(stored.steps), 0);
  squares = __reduce_add_sync(~0u, squares);
  __syncwarp();
  return {__fmul_rn(float_of_half(stored.step), centre_scale), static_cast<float>(squares)};
}
// And what is subtracted of the nearer tokens.
__device__ inline void find_pairs(const float (&n)[4], const Measure& measure, WarpCentre& out) {
  const int lane = this_thread() & 31;
  const auto c = [&](int k) { return centre_at(measure.step, n[k], 1.0f); };
  reinterpret_cast<uint2*>(out.pairs)[lane] =
      uint2{bits_of(__floats2half2_rn(c(0), c(2))), bits_of(__floats2half2_rn(c(1), c(3)))};
  __syncwarp();
}

// A warp rounds a finite centre to what a page stores: its coordinates are n steps.
__device__ inline Stored round_four(const float (&c)[4], float (&n)[4]) {
  const float mine = fmaxf(fmaxf(fabsf(c[0]), fabsf(c[1])), fmaxf(fabsf(c[2]), fabsf(c[3])));
  const float largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(mine)));
  Stored out;
  out.step = __half_as_ushort(__float2half_rn(fminf(__fmul_rn(largest, 1.0f / 127.0f), 65504.0f)));
  const float inverse = inverse_of(float_of_half(out.step));
#pragma unroll
  for (int k = 0; k < 4; ++k) n[k] = __fmul_rn(c[k], inverse);
  if (is_for_warp(out.step < 0x0400u ||
                  out.step == 0x7bffu)) {  // else the step is near enough that none rounds to 128
#pragma unroll
    for (float& step : n) step = fminf(fmaxf(step, -127.0f), 127.0f);
  }
  std::uint32_t bytes[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float rounded = __fadd_rn(n[k], 0x1.8p23f);  // in the low byte
    bytes[k] = __float_as_uint(rounded);
    n[k] = __fadd_rn(rounded, -0x1.8p23f);
  }
  out.steps = permute(permute(bytes[0], bytes[1], 0x0040), permute(bytes[2], bytes[3], 0x0040), 0x5410);
  return out;
}

// A warp's own rows, added up by their weights, four at a time: a quarter of the page's. A lane has four
// coordinates.
template <class Weights>
__device__ inline uint2 sum_of_rows(const std::uint32_t (*rows)[kPaddedRow], const Weights& weights_from) {
  static_assert(kWarpVectors == kMeanSlots);
  const int lane = this_thread() & 31;
  uint2 sum{0, 0};
#pragma unroll
  for (int t = 0; t < kMeanSlots; t += 4) {
    const uint4 four = weights_from(t);
    const auto add = [&](int row, std::uint32_t weight) {
      const uint2 two = reinterpret_cast<const uint2*>(rows[row])[lane];
      sum.x = bits_of(__hfma2(as_half2(two.x), as_half2(weight), as_half2(sum.x)));
      sum.y = bits_of(__hfma2(as_half2(two.y), as_half2(weight), as_half2(sum.y)));
    };
    add(t, four.x);
    add(t + 1, four.y);
    add(t + 2, four.z);
    add(t + 3, four.w);
  }
  return sum;
}
// The mean of the page's rows, of the warps' sums.
__device__ inline Stored mean_of_sums(const uint2 (&sums)[kTeamWarps][32], float per_unit, float (&n)[4]) {
  const int lane = this_thread() & 31;
  const uint2 a = sums[0][lane], b = sums[1][lane], c = sums[2][lane], d = sums[3][lane];
  const auto add = [](std::uint32_t x, std::uint32_t y) {
    return bits_of(__hadd2_rn(as_half2(x), as_half2(y)));
  };
  const float2 even = __half22float2(as_half2(add(add(a.x, b.x), add(c.x, d.x)))),
               odd = __half22float2(as_half2(add(add(a.y, b.y), add(c.y, d.y))));
  const float mean[4] = {__fmul_rn(even.x, per_unit), __fmul_rn(odd.x, per_unit), __fmul_rn(even.y, per_unit),
                         __fmul_rn(odd.y, per_unit)};
  return round_four(mean, n);
}

// y . steps of the lane's token, off by less than 2^-16 |y| |steps|: each of eight sums of 17 products by
// less than 17 times 2^-24 of the largest, and once more where both halves meet. All columns of the product
// are alike.
__device__ inline float dot_with_steps(const PrefillKeys& keys, const Team& team) {
  const int lane = this_thread() & 31;
  const auto from = static_cast<std::uint32_t>(
      __cvta_generic_to_shared(&keys.rows[kWarpVectors * team.warp + (lane & 15)][4 * (lane >> 4)]));
  const auto* steps = reinterpret_cast<const uint4*>(keys.centres[team.warp].steps[lane & 3]);
  float sums[2][4] = {};  // a chain of sums each
#pragma unroll
  for (int k = 0; k < kPrefillDim / 16; k += 2) {
    const uint4 four = steps[k / 2];
    const auto add = [&](int at, std::uint32_t b0, std::uint32_t b1, float(&sum)[4]) {
      std::uint32_t a[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                   : "r"(from + 32 * at)
                   : "memory");
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    };
    add(k, four.x, four.y, sums[0]);
    add(k + 1, four.z, four.w, sums[1]);
  }
  const int from_lane = 4 * (lane & 7);
  const float low = __shfl_sync(~0u, __fadd_rn(sums[0][0], sums[1][0]), from_lane),
              high = __shfl_sync(~0u, __fadd_rn(sums[0][2], sums[1][2]), from_lane);
  return (lane & 8) != 0 ? high : low;
}

__device__ inline float root_about(float x) {
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}

// Rule 3 of the lane's token, whose row is y: it is not longer than sqrt(128) times its largest.
__device__ inline bool is_nearer(float largest, float factor, const Measure& measure, const Team& team,
                                 const PrefillKeys& keys) {
  if (is_for_warp(measure.squares == 0.0f)) return true;
  const float difference = measure.difference(dot_with_steps(keys, team), factor);
  const float bound = 0x1p-11f * largest * root_about(measure.squares);
  const bool is_clear = fabsf(difference) > bound;
  bool nearer = difference > 0.0f;
  if (!__all_sync(~0u, is_clear)) {  // exactly: a sum of 2^-24 times integers below 2^53
    const WarpCentre& centre = keys.centres[team.warp];
    const int first = kSidePairs * this_side();
    const std::uint32_t* y = keys.rows[team.token] + first;
    double dot = 0.0;
#pragma unroll 4
    for (int j = 0; j < kSidePairs; ++j) {
      const float2 a = __half22float2(as_half2(y[j])),
                   n = __half22float2(as_half2(centre.steps[j % 4][first / 4 + j / 4]));
      dot += static_cast<double>(a.x * n.x) + static_cast<double>(a.y * n.y);
    }
    dot += __shfl_xor_sync(~0u, dot, 16);
    nearer = 2.0 * dot >= static_cast<double>(measure.step) * static_cast<double>(factor) *
                              static_cast<double>(measure.squares);
  }
  return nearer;
}

}  // namespace turboquant::kernels::cuda
