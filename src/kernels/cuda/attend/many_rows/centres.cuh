// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/expand.cuh"
#include "kernels/cuda/attend/many_rows/work.cuh"

// q . centre for kCentreBatch pages at once: one 8-column MMA instead of one a page.
namespace turboquant::kernels::cuda::many {

// Starts copying the centres (and steps) of pages first .. first + 7 of the split's history.
template <int D>
__device__ inline void copy_centres(const AttendArgs& a, const PageConstants& constants, const Work& w,
                                    int first, int end, std::uint32_t to) {
  using L = Layout<D>;
  constexpr int kChunks = L::kCentrePitch / 16;
  const int thread = static_cast<int>(threadIdx.x);
  for (int index = thread; index < kCentreBatch * kChunks; index += static_cast<int>(blockDim.x)) {
    const int k = index / kChunks, chunk = index - k * kChunks;
    if (first + k >= end) break;
    const std::uint8_t* page = page_of(a.pages, a.sequences, w.sequence,
                                       static_cast<int>(w.page_begin) + first + k, w.head, constants.bytes);
    cp_async_16(to + k * L::kCentrePitch + chunk * 16, page + constants.centre + chunk * 16);
  }
}

// scores [row of the warp][8]: half of q . centre, in the unit of the queries, as tiles hold half of a key.
template <int D>
__device__ inline void score_centres(std::uint32_t queries, const std::uint8_t* centres, float* scores) {
  using L = Layout<D>;
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  float c[L::kMmaRows][4] = {};
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    std::uint32_t b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int e = stored_coordinate<D>(16 * k + 8 * half + 2 * q);
      const std::uint32_t two = *reinterpret_cast<const std::uint16_t*>(centres + g * L::kCentrePitch + e);
      // x + 128 in the last bits of 1024 + ..
      const std::uint32_t biased = __byte_perm(two ^ 0x8080u, 0x64646464u, 0x4140);
      b[half] = half2_bits(__hsub2(half2_of(biased), half2_of(0x64806480u)));
    }
#pragma unroll
    for (int m = 0; m < L::kMmaRows; ++m) {
      std::uint32_t x[4];
      ldmatrix_x4(x, queries + (16 * m + (lane & 15)) * L::kPitch + (lane >> 4) * 16 + 32 * k);
      mma_16816(c[m], x, b[0], b[1]);
    }
  }
  const auto step = [&](int page) {
    return 0.5f * __half2float(*reinterpret_cast<const __half*>(centres + page * L::kCentrePitch + D));
  };
  const float even = step(2 * q), odd = step(2 * q + 1);
#pragma unroll
  for (int m = 0; m < L::kMmaRows; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<float2*>(scores + (16 * m + 8 * half + g) * kCentreBatch + 2 * q) = {
          even * c[m][2 * half], odd * c[m][2 * half + 1]};
  __syncwarp();
}

}  // namespace turboquant::kernels::cuda::many
