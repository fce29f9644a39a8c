// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/merge.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxChunks = kMaxPageHeadDim / 128;  // of 4 coordinates a lane

// The sequence of a row of the call.
__device__ int sequence_of(const Sequences& sequences, std::int64_t token) {
  int low = 0, high = sequences.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (sequences.token_starts[middle] <= token) low = middle;
    else high = middle - 1;
  }
  return low;
}

// A warp a row.
__global__ void __launch_bounds__(32 * kWarps) merge_kernel(AttendArgs a, int min_rows, Partials partials) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= partials.rows) return;
  const int lane = static_cast<int>(threadIdx.x & 31), d = a.pages.format.head_dim;
  const std::int64_t token = row / a.q_heads;
  const int head = static_cast<int>(row - token * a.q_heads), group = a.q_heads / a.pages.kv_heads;
  const int i = sequence_of(a.sequences, token);
  const std::int64_t tokens = a.sequences.token_starts[i + 1] - a.sequences.token_starts[i];
  if (tokens * group <= min_rows || token >= a.sequences.token_starts[i + 1]) return;

  float largest = -INFINITY, sum = 0.0f;
  for (int split = 0; split < partials.splits; ++split)
    largest = fmaxf(largest, partials.softmax(split, row)->x);
  float4 total[kMaxChunks] = {};
  for (int split = 0; split < partials.splits; ++split) {
    const float2 end = *partials.softmax(split, row);
    if (end.y == 0.0f) continue;  // saw nothing
    const float factor = exp2f(end.x - largest);
    sum += factor * end.y;
    const auto* from = reinterpret_cast<const float4*>(partials.sums(split, row, d));
#pragma unroll
    for (int k = 0; k < kMaxChunks; ++k) {
      if (128 * k + 4 * lane >= d) break;
      const float4 x = from[32 * k + lane];
      total[k].x += factor * x.x, total[k].y += factor * x.y;
      total[k].z += factor * x.z, total[k].w += factor * x.w;
    }
  }
  const Ending ending = end_row(a, head, largest, sum);
  const std::int64_t at = row_at(a.out, token, head);
#pragma unroll
  for (int k = 0; k < kMaxChunks; ++k) {
    if (128 * k + 4 * lane >= d) break;
    const float values[4] = {total[k].x, total[k].y, total[k].z, total[k].w};
#pragma unroll
    for (int c = 0; c < 4; ++c)
      store_element(a.out.dtype, a.out.data, at + 128 * k + 4 * lane + c, values[c] * ending.normal);
  }
  if (lane == 0 && a.lse != nullptr) a.lse[row] = ending.lse;
}

}  // namespace

Status merge(const AttendArgs& args, int min_rows, const Partials& partials, const Context& context) {
  const auto blocks = static_cast<unsigned>((partials.rows + kWarps - 1) / kWarps);
  return launch({"attend: merge", dim3(blocks), dim3(32 * kWarps)}, context, merge_kernel, args, min_rows,
                partials);
}

}  // namespace turboquant::kernels::cuda
