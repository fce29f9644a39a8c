// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/warp_vector.cuh"

// Sums of squares for balance.cu, whatever rows hold: those with a NaN or infinity, or of a norm that
// overflows, are left out. A block's rows lie in shared memory while a thread a coordinate adds them up.
namespace turboquant::kernels::cuda {

constexpr int kBalanceTokens = 128;  // of each sequence, as in attention/balance.cc
constexpr int kTileElements = 16384;

__host__ __device__ constexpr int tile_rows(int d) {
  return kTileElements / d < kBalanceTokens ? kTileElements / d : kBalanceTokens;
}

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
       first += static_cast<int>(blockDim.x / 32) * kBatch) {
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
  int total = 0;
  for (int first = 0; first < count; first += static_cast<int>(blockDim.x)) {
    const int row = first + static_cast<int>(threadIdx.x);
    total += __syncthreads_count(row < count && counted[row] != 0);
  }
  return total;
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

// The rows [begin, to) of a sequence whose first row is `first`, keys by the page.
template <int C>
__device__ void add_carefully(const BalanceArgs& a, int h, std::int64_t first, std::int64_t begin,
                              std::int64_t to, float* keys, float* queries, std::uint8_t* counted,
                              float* tile, std::int64_t& key_count, std::int64_t& query_count) {
  const int d = a.head_dim, group = a.q_heads / a.kv_heads;
  for (std::int64_t row = begin; row < to;) {  // to the end of each page, counted from the first position
    const std::int64_t page_end = first + ((row - first) / kPageTokens + 1) * kPageTokens;
    const std::int64_t stop = to < page_end ? to : page_end;
    key_count += add_squares<C>(a.keys, row, stop, h, d, true, keys, counted, tile);
    row = stop;
  }
  for (int g = 0; g < group && begin < to; ++g)
    query_count += add_squares<C>(a.query, begin, to, h * group + g, d, false, queries, counted, tile);
}

}  // namespace turboquant::kernels::cuda
