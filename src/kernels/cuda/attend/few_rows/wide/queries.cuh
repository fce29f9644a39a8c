// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/wide/shape.cuh"

// A segment's queries as A operands of the score products: rotated and rounded to fp16, in units of a power
// of two that all of the warp's rows share.
namespace turboquant::kernels::cuda::few_rows {

template <Wide S>
struct Queries<S> {
  uint4*
      shared;  // [kSteps][kBlocks][32 lanes]: coordinates 16 s + 4 q + (0, 2) of rows g, g + 8, then + (1, 3)
  OperandA operands[S::kQueriesInRegisters ? S::kSteps : 1];
  float unit;  // what a product of these and of 1 stands for
  // Of row 8 half + g of each block:
  int lowest[S::kBlocks][2];          // first position it sees; INT_MAX: there is no such row
  int lowest_of_all, highest_of_all;  // over the warp's rows

  // What the rows from first_row of the sequence on see.
  __device__ __forceinline__ void see(const Params& p, const Sequence& sequence, int first_row) {
    lowest_of_all = INT_MAX;
    highest_of_all = 0;
#pragma unroll
    for (int b = 0; b < S::kBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + 16 * b + 8 * half + (static_cast<int>(threadIdx.x & 31) >> 2),
                  token = divide(row, p.group_inverse);
        const int first =
            p.a.window > 0 ? max(sequence.start, sequence.length + token - p.a.window + 1) : sequence.start;
        lowest[b][half] = row < sequence.tokens * p.group ? first : INT_MAX;
        lowest_of_all = min(lowest_of_all, lowest[b][half]);
        highest_of_all = max(highest_of_all, first);
      }
    lowest_of_all = __reduce_min_sync(~0u, lowest_of_all);
    highest_of_all = __reduce_max_sync(~0u, highest_of_all);
  }

  __device__ __forceinline__ uint4* at(int step, int block) const {
    return shared + (step * S::kBlocks + block) * 32 + (threadIdx.x & 31);
  }
  __device__ __forceinline__ OperandA read(int step, int block) const {
    const uint4 x = *at(step, block);
    return {{x.x, x.y, x.z, x.w}};
  }
  __device__ __forceinline__ OperandA get(int step, int block) const {
    if constexpr (S::kQueriesInRegisters) return operands[step];
    return read(step, block);
  }
};

__device__ __forceinline__ std::uint32_t times(std::uint32_t x, __half2 factor) {
  const __half2 product = __hmul2(reinterpret_cast<const __half2&>(x), factor);
  return reinterpret_cast<const std::uint32_t&>(product);
}

// As for few rows. The team's warps rotate every members-th tile each, and have the same operands; a team of
// more than this warp is one of all of the CTA's warps, in as many teams, at the same time.
template <Wide S>
__device__ __forceinline__ void make_queries(const Params& p, const Sequence& sequence, int first_row,
                                             int kv_head, const Team& team,
                                             RawRows<S::kDim, kTileRows>& rows_of_tile, const float* signs,
                                             float* staged, Queries<S>& out) {
  constexpr int kGroups = S::kDim / 4;  // of 4 coordinates
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2;
  float signs_here[kEach<S::kDim>];
  load_signs<S::kDim>(signs, signs_here);
  int* exponents = reinterpret_cast<int*>(out.shared + S::kQueryOperands);  // [tiles], of their units
#pragma unroll 1
  for (int tile = team.member; tile < S::kQueryTiles; tile += team.members) {
    RowsInLanes<S::kDim, kTileRows> x;
    std::uint32_t bits = 0;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r)
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i)
        x[r][i] = rows_of_tile.get(p.a.query.dtype == DType::kF16, r, i) * signs_here[i];
    if (const int next = tile + team.members;
        next < S::kQueryTiles) {  // on its way while this one is rotated
      std::int64_t at[kTileRows];
      find_rows<S>(p, sequence, first_row + next * kTileRows, kv_head, at);
      rows_of_tile.load(p.a.query, at);
    }
    hadamard<S::kDim, kTileRows, false>(x, p.a.basis.base_matrix, staged, S::kStride);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r)
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i) {
        const std::uint32_t magnitude = __float_as_uint(x[r][i]) & 0x7fffffffu;
        if (has<S::kDim>(i) && magnitude < 0x7f800000u) bits = max(bits, magnitude);
      }
    const int exponent = max(static_cast<int>(__reduce_max_sync(~0u, bits) >> 23) - 14, 16);  // below 2^15
    if (lane == 0) exponents[tile] = exponent;
    const float to_unit = __uint_as_float(static_cast<std::uint32_t>(254 - exponent) << 23);
    auto* halves = reinterpret_cast<__half*>(staged);
#pragma unroll
    for (int r = 0; r < kTileRows; ++r)
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i)
        if (has<S::kDim>(i)) halves[r * S::kStride + lane + 32 * i] = __float2half_rn(x[r][i] * to_unit);
    __syncwarp();
    const int block = tile / 4, half = tile / 2 % 2, first_g = tile % 2 * kTileRows;
#pragma unroll 1
    for (int k = lane; k < kTileRows * kGroups; k += 32) {
      const int r = k / kGroups, group = k - r * kGroups;
      const uint2 four = *reinterpret_cast<const uint2*>(halves + r * S::kStride + 4 * group);
      auto* to = reinterpret_cast<std::uint32_t*>(out.shared + (group / 4 * S::kBlocks + block) * 32 +
                                                  4 * (first_g + r) + group % 4);
      to[half] = prmt(four.x, four.y, 0x5410);
      to[2 + half] = prmt(four.x, four.y, 0x7632);
    }
    __syncwarp();
  }
  team.sync<S>();
  const int mine = exponents[lane % S::kQueryTiles], common = __reduce_max_sync(~0u, mine);
  out.unit = __uint_as_float(static_cast<std::uint32_t>(common) << 23) * p.query_unit;
#pragma unroll
  for (int b = 0; b < S::kBlocks; ++b) {
    __half2 factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_row = __shfl_sync(~0u, mine, 4 * b + 2 * half + (g >> 2));
      factors[half] = __float2half2_rn(
          __uint_as_float(static_cast<std::uint32_t>(127 + max(of_row - common, -60)) << 23));
    }
#pragma unroll 1
    for (int s = team.member; s < S::kSteps; s += team.members) {
      uint4& x = *out.at(s, b);
      x = {times(x.x, factors[0]), times(x.y, factors[1]), times(x.z, factors[0]), times(x.w, factors[1])};
    }
  }
  team.sync<S>();
  if constexpr (S::kQueriesInRegisters) {
#pragma unroll
    for (int s = 0; s < S::kSteps; ++s) out.operands[s] = out.read(s, 0);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
