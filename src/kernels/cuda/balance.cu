// SPDX-License-Identifier: Apache-2.0
// balance: the sums of attention/balance.cc in its order, so its bits. A block a KV head, a thread a
// coordinate; rows add up one after the other. It runs once in a cache's life.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/warp_vector.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxDim = 1024;
constexpr int kBalanceTokens = 128;  // of each sequence; these two as in attention/balance.cc
constexpr int kTrustedTokens = 64;   // fewer shrink the balance towards 1

struct Shared {
  float keys[kMaxDim], queries[kMaxDim];
  std::uint8_t counted[kBalanceTokens];
};

__device__ inline bool finite_bits(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// |x|^2 over a tree of neighbours, padded with zeros to 32 C; a warp calls it.
template <int C>
__device__ float row_norm(const Rows& rows, std::int64_t row, int head, int d) {
  float x[C];
  const std::int64_t at = row_at(rows, row, head);
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const int e = lane_id() * C + j;
    x[j] = e < d ? load_element(rows.dtype, rows.data, at + e) : 0.0f;
  }
  return tree_squared_norm(x);
}

// Adds to sums[e] the squares of rows [begin, end), at most 128, about their mean (about 0 where not
// centred). Rows with a NaN or infinity are left out; returns how many were counted.
template <int C>
__device__ int add_squares(const Rows& rows, std::int64_t begin, std::int64_t end, int head, int d,
                           bool centred, float* sums, std::uint8_t* counted) {
  const int count = static_cast<int>(end - begin), warp = static_cast<int>(threadIdx.x / 32);
  __syncthreads();
  for (int r = warp; r < count; r += kThreads / 32) {
    const bool is_counted = finite_bits(row_norm<C>(rows, begin + r, head, d));
    if (lane_id() == 0) counted[r] = is_counted ? 1 : 0;
  }
  __syncthreads();
  int total = 0;
  for (int r = 0; r < count; ++r) total += counted[r];
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads) {
    const auto element = [&](int r) {
      return load_element(rows.dtype, rows.data, row_at(rows, begin + r, head) + e);
    };
    float mean = 0.0f, sum = sums[e];
    if (centred && total > 0) {
#pragma unroll 8
      for (int r = 0; r < count; ++r) {
        const float x = element(r);
        if (counted[r] != 0) mean = __fadd_rn(mean, x);
      }
      mean = __fdiv_rn(mean, static_cast<float>(total));
    }
#pragma unroll 8
    for (int r = 0; r < count; ++r) {
      const float difference = __fadd_rn(element(r), -mean);
      if (counted[r] != 0) sum = __fadd_rn(sum, __fmul_rn(difference, difference));
    }
    sums[e] = sum;
  }
  return total;
}

// Every thread adds all d terms, in order.
__device__ float ordered_sum(const float* terms, int d) {
  __syncthreads();
  float total = 0.0f;
#pragma unroll 8
  for (int e = 0; e < d; ++e) total = __fadd_rn(total, terms[e]);
  __syncthreads();
  return total;
}

// rms from sums of squares, floored at a thousandth of their mean; false where all are zero or not finite.
__device__ bool floored_rms(float* sums, int count, int d) {
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads)
    sums[e] = __fsqrt_rn(__fdiv_rn(sums[e], static_cast<float>(count)));
  const float floor = __fmul_rn(__fdiv_rn(ordered_sum(sums, d), static_cast<float>(d)), 0.001f);
  if (!(floor > 0.0f) || !finite_bits(floor)) return false;
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads)
    if (sums[e] < floor) sums[e] = floor;
  return true;
}

template <int C>
__global__ void __launch_bounds__(kThreads) balance_heads(const __grid_constant__ BalanceArgs a) {
  __shared__ Shared shared;
  wait_for_previous_kernel();
  const int d = a.head_dim, group = a.q_heads / a.kv_heads, h = static_cast<int>(blockIdx.x);
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads) shared.keys[e] = shared.queries[e] = 0.0f;
  std::int64_t key_count = 0, query_count = 0;
  for (int i = 0; i < a.sequence_count; ++i) {
    const std::int64_t first = a.token_starts[i], end = a.token_starts[i + 1];
    const std::int64_t begin = first + (a.starts == nullptr ? 0 : a.starts[i]);
    const std::int64_t to = end < begin + kBalanceTokens ? end : begin + kBalanceTokens;
    for (std::int64_t row = begin; row < to;) {  // to the end of each page, counted from the first position
      const std::int64_t page_end = first + ((row - first) / kPageTokens + 1) * kPageTokens;
      const std::int64_t stop = to < page_end ? to : page_end;
      key_count += add_squares<C>(a.keys, row, stop, h, d, true, shared.keys, shared.counted);
      row = stop;
    }
    for (int g = 0; g < group && begin < to; ++g)
      query_count +=
          add_squares<C>(a.query, begin, to, h * group + g, d, false, shared.queries, shared.counted);
  }
  float* balance = a.balance + static_cast<std::int64_t>(h) * d;
  __syncthreads();
  if (key_count < 2 || query_count < 1 || !floored_rms(shared.keys, static_cast<int>(key_count), d) ||
      !floored_rms(shared.queries, static_cast<int>(query_count), d)) {
    for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads) balance[e] = 1.0f;
    return;
  }
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads)
    shared.keys[e] = __fsqrt_rn(__fdiv_rn(shared.keys[e], shared.queries[e]));
  const float mean = __fdiv_rn(ordered_sum(shared.keys, d), static_cast<float>(d));
  const float trust = key_count < kTrustedTokens
                          ? __fdiv_rn(static_cast<float>(key_count), static_cast<float>(kTrustedTokens))
                          : 1.0f;
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads)
    balance[e] = __fadd_rn(__fmul_rn(trust, __fdiv_rn(shared.keys[e], mean)), __fadd_rn(1.0f, -trust));
}

template <int C>
Status launch_balance(const BalanceArgs& args, const Context& context) {
  const Launch how{"balance", dim3(static_cast<unsigned>(args.kv_heads)), dim3(kThreads), 0, true};
  return launch(how, context, &balance_heads<C>, args);
}

}  // namespace

Status balance(const BalanceArgs& args, const Context& context) {
  switch (coordinates_per_lane(args.head_dim)) {
    case 1:
      return launch_balance<1>(args, context);
    case 2:
      return launch_balance<2>(args, context);
    case 4:
      return launch_balance<4>(args, context);
    case 8:
      return launch_balance<8>(args, context);
    case 16:
      return launch_balance<16>(args, context);
    default:
      return launch_balance<32>(args, context);
  }
}

}  // namespace turboquant::kernels::cuda
