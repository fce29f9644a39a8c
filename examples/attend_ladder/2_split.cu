// SPDX-License-Identifier: Apache-2.0
// Rung 2: flash decoding. A block takes some pages of one KV head, decodes each once for the 4 query heads
// that share it, and keeps a running softmax (maximum, sum, output) that it corrects when the maximum
// grows. A second launch merges the blocks (merge.cuh). Now a single long sequence fills the device.
//
// What bounds it: still instructions, 86 a code for addresses, tables and products, but four times fewer
// codes.
//
// On an H100 2.9 ms at 32 x 11,264, 23 times a plain read; 0.11 ms at 1 x 11,264, 19 times.
#include "merge.cuh"

namespace ladder {
namespace {

constexpr int kWarps = kHeadDim / 32;  // threads are coordinates in the values' half

__global__ void __launch_bounds__(kHeadDim) split_kernel(Problem p, int splits) {
  __shared__ float weights[kGroup][kPageTokens];  // the scores first
  const int kv_head = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.y),
            index = static_cast<int>(blockIdx.z), e = static_cast<int>(threadIdx.x);
  const int warp = e / 32, lane = e % 32, length = p.lengths[sequence];
  const Part part = part_of(length, index, splits);

  float query[kGroup][4];  // this lane's coordinates of the scores: lane, lane + 32, ...
  for (int head = 0; head < kGroup; ++head)
    for (int k = 0; k < 4; ++k)
      query[head][k] = query_of(p, sequence, kv_head * kGroup + head)[lane + 32 * k] * kScoreUnit;

  float largest[kGroup], sum[kGroup], out[kGroup];
  for (int head = 0; head < kGroup; ++head) largest[head] = -INFINITY, sum[head] = out[head] = 0;

  for (int index_of_page = part.first; index_of_page < part.last; ++index_of_page) {
    const std::uint8_t* page = page_of(p, sequence, index_of_page, kv_head);
    const int tokens = min(kPageTokens, length - index_of_page * kPageTokens);

    // Scores: a warp takes a token, a lane 4 coordinates, butterflies add the lanes.
    for (int t = warp; t < tokens; t += kWarps) {
      float score[kGroup] = {};
      for (int k = 0; k < 4; ++k) {
        const float key = key_at(page, t, lane + 32 * k);
        for (int head = 0; head < kGroup; ++head) score[head] += query[head][k] * key;
      }
      for (int head = 0; head < kGroup; ++head) {
        for (int apart = 16; apart > 0; apart /= 2)
          score[head] += __shfl_xor_sync(kAllLanes, score[head], apart);
        if (lane == 0) weights[head][t] = score[head];
      }
    }
    __syncthreads();

    // Softmax: every thread follows all heads' maxima, and so knows how its output shrinks.
    float before[kGroup];
    for (int head = 0; head < kGroup; ++head) {
      before[head] = largest[head];
      for (int t = 0; t < tokens; ++t) largest[head] = fmaxf(largest[head], weights[head][t]);
    }
    __syncthreads();
    for (int head = 0; head < kGroup; ++head)
      if (e < tokens) weights[head][e] = exp2f(weights[head][e] - largest[head]);
    __syncthreads();

    // Values: thread e adds coordinate e.
    for (int head = 0; head < kGroup; ++head) {
      const float shrink = exp2f(before[head] - largest[head]);
      sum[head] *= shrink, out[head] *= shrink;
    }
    for (int t = 0; t < tokens; ++t) {
      const float value = value_at(page, t, e);
      for (int head = 0; head < kGroup; ++head)
        sum[head] += weights[head][t], out[head] += weights[head][t] * value;
    }
    __syncthreads();
  }

  for (int head = 0; head < kGroup; ++head) {
    float* partial = partial_of(p, sequence, kv_head * kGroup + head, index, splits);
    partial[e] = out[head];
    if (e == 0) partial[kHeadDim] = largest[head], partial[kHeadDim + 1] = sum[head];
  }
}

}  // namespace

void split(const Problem& problem, cudaStream_t stream) {
  const int splits = splits_for(problem, problem.sm_count * 12);
  const dim3 grid(kKvHeads, static_cast<unsigned>(problem.sequences), static_cast<unsigned>(splits));
  split_kernel<<<grid, kHeadDim, 0, stream>>>(problem, splits);
  merge(problem, splits, stream);
}

}  // namespace ladder
