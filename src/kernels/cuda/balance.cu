// SPDX-License-Identifier: Apache-2.0
// balance: the sums of attention/balance.cc in its order, so its bits. A block a KV head, a thread a
// coordinate; rows add up one after the other, from shared memory, where all warps put them first: a load of
// memory for each addition would take 170 us for a prompt of 128 tokens.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/warp_vector.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kMaxDim = 1024;        // a thread has one coordinate
constexpr int kBalanceTokens = 128;  // of each sequence; these two as in attention/balance.cc
constexpr int kTrustedTokens = 64;   // fewer shrink the balance towards 1
constexpr int kTileElements = 16384;

__host__ __device__ constexpr int tile_rows(int d) {
  return kTileElements / d < kBalanceTokens ? kTileElements / d : kBalanceTokens;
}

struct Shared {
  float keys[kMaxDim], queries[kMaxDim];
  std::uint8_t counted[kBalanceTokens];
};

__device__ inline bool finite_bits(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// Rows [begin, begin + count) of a head into tile [count, d]. Returns how many of them are counted, and in
// `counted` which: those whose |x|^2, over a tree of neighbours padded with zeros to 32 C, is finite.
template <int C>
__device__ int load_tile(const Rows& rows, std::int64_t begin, int count, int head, int d, float* tile,
                         std::uint8_t* counted) {
  constexpr int kBatch = C <= 4 ? 4 : 1;  // rows that a warp has on their way
  __syncthreads();
  for (int first = static_cast<int>(threadIdx.x / 32) * kBatch; first < count;
       first += kThreads / 32 * kBatch) {
    float x[kBatch][C];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const std::int64_t at = row_at(rows, begin + first + b, head);
#pragma unroll
      for (int j = 0; j < C; ++j) {
        const int e = lane_id() * C + j;
        x[b][j] = first + b < count && e < d ? load_element(rows.dtype, rows.data, at + e) : 0.0f;
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const bool is_counted = finite_bits(tree_squared_norm(x[b]));
      if (first + b >= count) break;
      if (lane_id() == 0) counted[first + b] = is_counted ? 1 : 0;
#pragma unroll
      for (int j = 0; j < C; ++j)
        if (const int e = lane_id() * C + j; e < d) tile[(first + b) * d + e] = x[b][j];
    }
  }
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  return __syncthreads_count(row < count && counted[row] != 0);
}

// Adds to sums[e] the squares of rows [begin, end), at most 128, about their mean (about 0 where not
// centred). Rows with a NaN or infinity are left out; returns how many were counted.
template <int C>
__device__ int add_squares(const Rows& rows, std::int64_t begin, std::int64_t end, int head, int d,
                           bool centred, float* sums, std::uint8_t* counted, float* tile) {
  const int count = static_cast<int>(end - begin), e = static_cast<int>(threadIdx.x), most = tile_rows(d);
  int total = 0;
  float mean = 0.0f;
  for (int first = 0; centred && first < count; first += most) {
    const int loaded = min(most, count - first);
    total += load_tile<C>(rows, begin + first, loaded, head, d, tile, counted);
    if (e >= d) continue;
#pragma unroll 8
    for (int r = 0; r < loaded; ++r) {
      const float sum = __fadd_rn(mean, tile[r * d + e]);
      mean = counted[r] != 0 ? sum : mean;
    }
  }
  if (total > 0) mean = __fdiv_rn(mean, static_cast<float>(total));
  for (int first = 0; first < count; first += most) {
    const int loaded = min(most, count - first);
    if (!centred || count > most) {
      const int more = load_tile<C>(rows, begin + first, loaded, head, d, tile, counted);
      total += centred ? 0 : more;
    }
    if (e >= d) continue;
    float sum = sums[e];
#pragma unroll 8
    for (int r = 0; r < loaded; ++r) {
      const float difference = __fadd_rn(tile[r * d + e], -mean);
      const float next = __fadd_rn(sum, __fmul_rn(difference, difference));
      sum = counted[r] != 0 ? next : sum;
    }
    sums[e] = sum;
  }
  return total;
}

// All d terms added in order, for every thread.
__device__ float ordered_sum(const float* terms, int d) {
  __shared__ float total;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f;
#pragma unroll 16
    for (int e = 0; e < d; ++e) sum = __fadd_rn(sum, terms[e]);
    total = sum;
  }
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
  extern __shared__ float tile[];
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
      key_count += add_squares<C>(a.keys, row, stop, h, d, true, shared.keys, shared.counted, tile);
      row = stop;
    }
    for (int g = 0; g < group && begin < to; ++g)
      query_count +=
          add_squares<C>(a.query, begin, to, h * group + g, d, false, shared.queries, shared.counted, tile);
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
  const Launch how{"balance", dim3(static_cast<unsigned>(args.kv_heads)), dim3(kThreads),
                   sizeof(float) * static_cast<std::size_t>(tile_rows(args.head_dim) * args.head_dim), true};
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
