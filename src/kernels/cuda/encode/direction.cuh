// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/block.cuh"
#include "kernels/cuda/encode/flips.cuh"

// Rule 2a: the direction that a metric weighs most, about.
namespace turboquant::kernels::cuda {

inline constexpr int kDirectionRounds = 3;

// A group's scratch. n: the padded head_dim.
template <int n>
struct DirectionScratch {
  int product[n];
  std::uint32_t most[kDirectionRounds + 1];
};

// All threads of a group: v [n] of a metric [d, d], zeros from d on. Ends with the group's sync(). v is
// 16-byte aligned.
template <int n>
__device__ inline void find_direction(const std::int8_t* metric, int d, const Group& group,
                                      DirectionScratch<n>& scratch, std::int8_t* v) {
  constexpr int C = n / 32;
  const int thread = group.thread();
  if (thread <= kDirectionRounds) scratch.most[thread] = 0;
  group.sync();
  const auto take_most = [&](int round, std::uint32_t mine) {
    mine = __reduce_max_sync(~0u, mine);
    if (thread % 32 == 0) atomicMax(&scratch.most[round], mine);
    group.sync();
    return scratch.most[round];
  };
  constexpr int kRows = 1 << 10;  // and more than there are
  std::uint32_t largest = 0;      // of the diagonal, the first of equals
  for (int e = thread; e < d; e += group.threads)
    largest = max(largest, static_cast<std::uint32_t>((metric[e * (d + 1)] + 128) * kRows + kRows - 1 - e));
  const int row = kRows - 1 - static_cast<int>(take_most(0, largest) % kRows);
  for (int e = thread; e < n; e += group.threads) v[e] = e < d ? metric[row * d + e] : std::int8_t{0};
  group.sync();
#pragma unroll 1
  for (int round = 1; round <= kDirectionRounds; ++round) {
    const uint4 chunk = reinterpret_cast<const uint4*>(v)[thread % (2 * C)];
    const std::uint32_t part[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    std::uint32_t mine = 0;
    for (int j = thread / 32; j < C; j += group.threads / 32) {
      int sum[1];
      multiply_some_rows<C>(metric, d, part, j, sum);
      const int e = C * (thread % 32) + j;
      if (e >= d) continue;
      scratch.product[e] = sum[0];
      mine = max(mine, static_cast<std::uint32_t>(abs(sum[0])));
    }
    const std::uint32_t most = take_most(round, mine);
    const float per_unit = most > 0 ? divide_normal(127.0f, __uint2float_rn(most)) : 0.0f;
    for (int e = thread; e < d; e += group.threads) {
      const float x = rintf(__fmul_rn(__int2float_rn(scratch.product[e]), per_unit));
      v[e] = static_cast<std::int8_t>(fminf(fmaxf(x, -127.0f), 127.0f));
    }
    group.sync();
  }
}

}  // namespace turboquant::kernels::cuda
