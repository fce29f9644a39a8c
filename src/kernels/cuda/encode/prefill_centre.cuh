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
  __syncwarp();
  *reinterpret_cast<float4*>(&out.steps[lane / 16][4 * (lane % 16)]) = {n[0], n[2], n[1], n[3]};
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

// y . steps of the lane's token, off by less than 2^-19 |y| |steps|: a product is in 19 sums, each off by
// less than 2^-24 of what it adds up. Not on tensor cores: a kernel that uses them has all of its fp16
// arithmetic on one pipe, an instruction every second cycle (docs/encode.md).
__device__ inline float dot_with_steps(const PrefillKeys& keys, const Team& team) {
  const int side = this_side();
  const auto* y = reinterpret_cast<const uint4*>(&keys.rows[team.token][kSidePairs * side]);
  const auto* steps = reinterpret_cast<const float4*>(keys.centres[team.warp].steps[side]);
  float sums[4] = {};
#pragma unroll
  for (int j = 0; j < kSidePairs / 4; ++j) {
    const uint4 four = y[j];
    const auto add = [&](std::uint32_t a, std::uint32_t b, float4 n) {
      const float2 first = __half22float2(as_half2(a)), second = __half22float2(as_half2(b));
      sums[0] = __fmaf_rn(first.x, n.x, sums[0]);
      sums[1] = __fmaf_rn(first.y, n.y, sums[1]);
      sums[2] = __fmaf_rn(second.x, n.z, sums[2]);
      sums[3] = __fmaf_rn(second.y, n.w, sums[3]);
    };
    add(four.x, four.y, steps[2 * j]);
    add(four.z, four.w, steps[2 * j + 1]);
  }
  const float sum = __fadd_rn(__fadd_rn(sums[0], sums[1]), __fadd_rn(sums[2], sums[3]));
  return __fadd_rn(sum, other_side(sum));
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
  const float bound = 0x1p-14f * largest * root_about(measure.squares);
  const bool is_clear = fabsf(difference) > bound;
  bool nearer = difference > 0.0f;
  if (!__all_sync(~0u, is_clear)) {  // exactly: a sum of 2^-24 times integers below 2^53
    const WarpCentre& centre = keys.centres[team.warp];
    const float* steps = centre.steps[this_side()];
    const std::uint32_t* y = keys.rows[team.token] + kSidePairs * this_side();
    double dot = 0.0;
#pragma unroll 4
    for (int j = 0; j < kSidePairs; ++j) {
      const float2 a = __half22float2(as_half2(y[j]));
      dot += static_cast<double>(a.x * steps[2 * j]) + static_cast<double>(a.y * steps[2 * j + 1]);
    }
    dot += __shfl_xor_sync(~0u, dot, 16);
    nearer = 2.0 * dot >= static_cast<double>(measure.step) * static_cast<double>(factor) *
                              static_cast<double>(measure.squares);
  }
  return nearer;
}

}  // namespace turboquant::kernels::cuda
