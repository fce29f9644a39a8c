// SPDX-License-Identifier: Apache-2.0
// A history may be cut anywhere: two parts with softmax maxima m1, m2, sums l1, l2 and unnormalised outputs
// o1, o2 are one part with m = max(m1, m2), l = sum of 2^(mi - m) li, o = sum of 2^(mi - m) oi. Rungs 2 to
// 4 cut every sequence into `splits` parts, write each part's (m, l, o), and merge them in a second launch.
#pragma once

#include <algorithm>

#include "page.cuh"

namespace ladder {

inline constexpr int kPartialFloats = kHeadDim + 4;  // o, then m and l

// Pages [first, last) of a sequence are the part `index` of `splits`.
struct Part {
  int first, last;
};
__device__ inline Part part_of(int length, int index, int splits) {
  const int pages = (length + kPageTokens - 1) / kPageTokens;
  return {pages * index / splits, pages * (index + 1) / splits};
}

__device__ inline float* partial_of(const Problem& p, int sequence, int head, int part, int splits) {
  return p.partials +
         ((static_cast<std::int64_t>(sequence) * kQueryHeads + head) * splits + part) * kPartialFloats;
}

// So many parts that about `workers` of them are at work at a time, but none without a page.
inline int splits_for(const Problem& p, int workers) {
  return std::clamp(workers / (p.sequences * kKvHeads), 1, p.max_pages);
}

// A block a query head, a thread a coordinate.
static __global__ void __launch_bounds__(kHeadDim) merge_kernel(Problem p, int splits) {
  extern __shared__ float shared[];
  float *weights = shared, *sums = shared + splits;
  const int head = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.y),
            thread = static_cast<int>(threadIdx.x);
  const float* partials = partial_of(p, sequence, head, 0, splits);
  for (int part = thread; part < splits; part += kHeadDim) {
    weights[part] = partials[part * kPartialFloats + kHeadDim];
    sums[part] = partials[part * kPartialFloats + kHeadDim + 1];
  }
  __syncthreads();
  float largest = -INFINITY, sum = 0, out = 0;
  for (int part = 0; part < splits; ++part) largest = fmaxf(largest, weights[part]);
#pragma unroll 8
  for (int part = 0; part < splits; ++part) {
    const float weight = exp2f(weights[part] - largest);  // 0 for a part without a token
    sum += weight * sums[part];
    out += weight * partials[part * kPartialFloats + thread];
  }
  p.out[(static_cast<std::int64_t>(sequence) * kQueryHeads + head) * kHeadDim + thread] = out / sum;
}

inline void merge(const Problem& problem, int splits, cudaStream_t stream) {
  const dim3 grid(kQueryHeads, static_cast<unsigned>(problem.sequences));
  const std::size_t shared = 2 * sizeof(float) * static_cast<std::size_t>(splits);
  merge_kernel<<<grid, kHeadDim, shared, stream>>>(problem, splits);
}

}  // namespace ladder
