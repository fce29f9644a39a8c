// SPDX-License-Identifier: Apache-2.0
// Rung 1: attention as the formula says it. A block is one query head of one sequence; thread t computes
// the scores of tokens t, t + 128, ..., then thread e the output's coordinate e. Every code is looked up by
// the functions that define the format.
//
// What bounds it: instructions. A code costs 78 of them for its address, its table and its scale, and each of
// the 4 query heads that share a KV head decodes it again. With few sequences most of the device is idle: 32
// blocks a sequence, however long its history is.
//
// On an H100 16.7 ms at 32 x 11,264, 131 times a plain read of the bytes; 4.4 ms at 1 x 11,264, 800 times.
#include "page.cuh"

namespace ladder {
namespace {

__global__ void __launch_bounds__(kHeadDim) naive_kernel(Problem p) {
  extern __shared__ float weights[];  // [length]: the scores first
  const int head = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.y);
  const int kv_head = head / kGroup, length = p.lengths[sequence], thread = static_cast<int>(threadIdx.x);
  const std::int16_t* query = query_of(p, sequence, head);

  for (int t = thread; t < length; t += kHeadDim) {
    const std::uint8_t* page = page_of(p, sequence, t / kPageTokens, kv_head);
    float score = 0;
    for (int e = 0; e < kHeadDim; ++e) score += query[e] * key_at(page, t % kPageTokens, e);
    weights[t] = score * kScoreUnit;
  }
  __syncthreads();

  // The largest score first, so that no exponential overflows.
  float largest = -INFINITY;
  for (int t = 0; t < length; ++t) largest = fmaxf(largest, weights[t]);
  __syncthreads();
  for (int t = thread; t < length; t += kHeadDim) weights[t] = exp2f(weights[t] - largest);
  __syncthreads();

  float sum = 0, out = 0;
  for (int t = 0; t < length; ++t) {
    const std::uint8_t* page = page_of(p, sequence, t / kPageTokens, kv_head);
    sum += weights[t];
    out += weights[t] * value_at(page, t % kPageTokens, thread);
  }
  p.out[(static_cast<std::int64_t>(sequence) * kQueryHeads + head) * kHeadDim + thread] = out / sum;
}

}  // namespace

void naive(const Problem& problem, cudaStream_t stream) {
  const int shared = problem.max_length * static_cast<int>(sizeof(float));
  cudaFuncSetAttribute(naive_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  const dim3 grid(kQueryHeads, static_cast<unsigned>(problem.sequences));
  naive_kernel<<<grid, kHeadDim, static_cast<std::size_t>(shared), stream>>>(problem);
}

}  // namespace ladder
