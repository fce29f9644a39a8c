// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/cuda/vectors.cuh"

// What the splits of a history leave each other, and how a row ends. Maxima are in powers of two: scores
// times log2 e.
namespace turboquant::kernels::cuda {

// In the workspace: [splits][rows][head_dim] sums, in the model's basis, then [splits][rows] (largest score,
// sum of weights). rows: tokens * q_heads, of the whole call.
struct Partials {
  int splits = 1;
  std::int64_t rows = 0;
  float* data = nullptr;

  __device__ float* sums(int split, std::int64_t row, int head_dim) const {
    return data + (split * rows + row) * head_dim;
  }
  // `data` behind the sums.
  float2* ends = nullptr;
  __device__ float2* softmax(int split, std::int64_t row) const { return ends + (split * rows + row); }
};

constexpr std::size_t partial_bytes(int splits, std::int64_t rows, int head_dim) {
  return static_cast<std::size_t>(splits) * static_cast<std::size_t>(rows) *
         static_cast<std::size_t>(head_dim + 2) * sizeof(float);
}
inline Partials make_partials(int splits, std::int64_t rows, int head_dim, void* workspace) {
  Partials out{splits, rows, static_cast<float*>(workspace), nullptr};
  out.ends = reinterpret_cast<float2*>(out.data + splits * rows * head_dim);
  return out;
}

// The last step of a row: the sink's weight, what normalises the sums, and the LSE.
struct Ending {
  float normal, lse;
};
__device__ inline Ending end_row(const AttendArgs& a, int head, float largest, float sum) {
  float factor = 1.0f;
  if (a.sinks != nullptr) {
    const float sink = a.sinks[head] * 1.4426950408889634f;
    const float most = sink > largest ? sink : largest;
    factor = largest == -INFINITY ? 0.0f : exp2f(largest - most);
    sum = sum * factor + (sink == -INFINITY ? 0.0f : exp2f(sink - most));
    largest = most;
  }
  if (sum == 0.0f) return {0.0f, -INFINITY};
  return {factor / sum, (largest + log2f(sum)) * 0.6931471805599453f};
}

// Merges the partials of sequences with more than min_rows rows, in the order of the splits.
Status merge(const AttendArgs& args, int min_rows, const Partials& partials, const Context& context);

}  // namespace turboquant::kernels::cuda
