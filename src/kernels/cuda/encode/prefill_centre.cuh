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
__device__ inline void publish(const Team& team, bool chosen, std::uint16_t (&all)[kTeamWarps]) {
  const std::uint32_t tokens = __ballot_sync(~0u, chosen) & 0xffffu;
  if ((this_thread() & 31) == 0) all[team.warp] = static_cast<std::uint16_t>(tokens);
}
__device__ inline Chosen read(const std::uint16_t (&all)[kTeamWarps]) {
  const uint2 both = *reinterpret_cast<const uint2*>(all);
  return {both.x, both.y};
}

// A centre as its page stores it, of which a lane has the coordinates 4 lane .. 4 lane + 3.
struct Stored {
  std::uint32_t steps;  // four int8
  std::uint32_t step;   // fp16 bits
};
// How a warp measures distances to it.
struct Measure {
  float step;     // times sqrt(d)
  float squares;  // of the steps: an integer

  // 2 y.c - |c|^2, over the step.
  __device__ float difference(float dot, float factor) const { return 2.0f * dot - step * factor * squares; }
};

// A warp takes up a stored centre.
__device__ inline Measure take_centre(const Stored& stored, float centre_scale, WarpCentre& out) {
  const float step = __fmul_rn(float_of_half(stored.step), centre_scale);
  float n[4];
  int squares = __dp4a(static_cast<int>(stored.steps), static_cast<int>(stored.steps), 0);
#pragma unroll
  for (int k = 0; k < 4; ++k)
    n[k] = static_cast<float>(static_cast<std::int8_t>(stored.steps >> (8 * k) & 255u));
  const int lane = this_thread() & 31;
  const auto pair = [](float a, float b) { return bits_of(__floats2half2_rn(a, b)); };
  const auto c = [&](int k) { return centre_at(step, n[k], 1.0f); };
  reinterpret_cast<uint2*>(out.steps)[lane] = {pair(n[0], n[2]), pair(n[1], n[3])};
  reinterpret_cast<uint2*>(out.pairs)[lane] = {pair(c(0), c(2)), pair(c(1), c(3))};
  squares = __reduce_add_sync(~0u, squares);
  __syncwarp();
  return {step, static_cast<float>(squares)};
}

// A warp rounds a centre to what a page stores.
__device__ inline Stored round_four(const float (&c)[4]) {
  const float mine = fmaxf(fmaxf(fabsf(c[0]), fabsf(c[1])), fmaxf(fabsf(c[2]), fabsf(c[3])));
  const float largest = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(mine)));
  Stored out{0, centre_step_bits(largest)};
  const float inverse = inverse_of(float_of_half(out.step));
#pragma unroll
  for (int k = 0; k < 4; ++k)
    out.steps |= (static_cast<std::uint32_t>(steps_in(c[k], inverse)) & 255u) << (8 * k);
  return out;
}

// The mean of the rows by their weights: each thread adds up two coordinates of half of the rows, then each
// warp has all. Ends with all threads past a sync().
__device__ inline Stored mean_of_rows(const Team& team, float per_unit, PrefillKeys& keys) {
  const int thread = team.group.thread(), column = thread % kPairs, part = thread / kPairs;
  std::uint32_t sums[2] = {};
#pragma unroll 2
  for (int t = 0; t < kMeanSlots; t += 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = kMeanSlots * (2 * part + half) + t;
      const uint4 weights = *reinterpret_cast<const uint4*>(&keys.weights[row]);
      const auto add = [&](int i, std::uint32_t weight) {
        sums[half] =
            bits_of(__hfma2(as_half2(keys.rows[row + i][column]), as_half2(weight), as_half2(sums[half])));
      };
      add(0, weights.x);
      add(1, weights.y);
      add(2, weights.z);
      add(3, weights.w);
    }
  }
  const std::uint32_t sum = bits_of(__hadd2_rn(as_half2(sums[0]), as_half2(sums[1])));
  keys.sums[part][column] = sum;
  team.group.sync();
  const int lane = this_thread() & 31;
  const uint2 a = reinterpret_cast<const uint2*>(keys.sums[0])[lane],
              b = reinterpret_cast<const uint2*>(keys.sums[1])[lane];
  const float2 even = __half22float2(__hadd2_rn(as_half2(a.x), as_half2(b.x))),
               odd = __half22float2(__hadd2_rn(as_half2(a.y), as_half2(b.y)));
  const float c[4] = {__fmul_rn(even.x, per_unit), __fmul_rn(odd.x, per_unit), __fmul_rn(even.y, per_unit),
                      __fmul_rn(odd.y, per_unit)};
  return round_four(c);
}

// y . steps of the lane's token, off by less than 2^-16 |y| |steps|: each of eight sums of 17 products by
// less than 17 times 2^-24 of the largest.
__device__ inline float dot_with_steps(const PrefillKeys& keys, const Team& team) {
  const int lane = this_thread() & 31;
  const auto from = static_cast<std::uint32_t>(
      __cvta_generic_to_shared(&keys.rows[kWarpVectors * team.warp + (lane & 15)][4 * (lane >> 4)]));
  const std::uint32_t* steps = keys.centres[team.warp].steps + (lane & 3);
  float sums[4] = {};
#pragma unroll
  for (int k = 0; k < kPrefillDim / 16; ++k) {
    std::uint32_t a[4], b[2] = {};
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(from + 32 * k)
                 : "memory");
    if (lane < 4) {  // column 0
      b[0] = steps[8 * k];
      b[1] = steps[8 * k + 4];
    }
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  const int from_lane = 4 * (lane & 7);
  const float low = __shfl_sync(~0u, sums[0], from_lane), high = __shfl_sync(~0u, sums[2], from_lane);
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
  if (measure.squares == 0.0f) return true;
  const float difference = measure.difference(dot_with_steps(keys, team), factor);
  const float bound = 0x1p-11f * largest * root_about(measure.squares);
  const bool is_clear = fabsf(difference) > bound;
  bool nearer = difference > 0.0f;
  if (!__all_sync(~0u, is_clear)) {  // exactly: a sum of 2^-24 times integers below 2^53
    const std::uint32_t* steps = keys.centres[team.warp].steps + kSidePairs * this_side();
    const std::uint32_t* y = keys.rows[team.token] + kSidePairs * this_side();
    double dot = 0.0;
#pragma unroll 4
    for (int j = 0; j < kSidePairs; ++j) {
      const float2 a = __half22float2(as_half2(y[j])), n = __half22float2(as_half2(steps[j]));
      dot += static_cast<double>(a.x * n.x) + static_cast<double>(a.y * n.y);
    }
    dot += __shfl_xor_sync(~0u, dot, 16);
    nearer = 2.0 * dot >= static_cast<double>(measure.step) * static_cast<double>(factor) *
                              static_cast<double>(measure.squares);
  }
  return nearer;
}

}  // namespace turboquant::kernels::cuda
