// SPDX-License-Identifier: Apache-2.0
// The plain read that every rung is timed beside.
#include "ladder.h"

namespace ladder {
namespace {

__global__ void __launch_bounds__(256) read_kernel(const uint4* data, std::size_t count, float* sink) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  std::size_t at = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  unsigned mixed = 0;
  for (; at + 3 * stride < count; at += 4 * stride) {  // four loads in flight
    uint4 x[4];
    for (int k = 0; k < 4; ++k) x[k] = __ldcs(data + at + k * stride);
    for (int k = 0; k < 4; ++k) mixed ^= x[k].x ^ x[k].y ^ x[k].z ^ x[k].w;
  }
  for (; at < count; at += stride) mixed ^= data[at].x;
  if (mixed == 0x12345678u) *sink = 1;  // never, but the compiler cannot know
}

}  // namespace

void read(const void* data, std::size_t bytes, float* sink, cudaStream_t stream) {
  int device = 0, sm_count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sm_count, cudaDevAttrMultiProcessorCount, device);
  read_kernel<<<static_cast<unsigned>(8 * sm_count), 256, 0, stream>>>(static_cast<const uint4*>(data),
                                                                       bytes / 16, sink);
}

}  // namespace ladder
