// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <climits>

#include "kernels/cuda/attend/few_rows/schedule.cuh"
#include "kernels/cuda/attend/ptx.cuh"
#include "kernels/cuda/hadamard.cuh"

// A segment's queries as the B operand of the score products: rotated, scaled, and rounded to 16 bits of their
// row's maximum, of which column 2 r is the high byte and column 2 r + 1 the low one (q = 256 high + low).
namespace turboquant::kernels::cuda::few_rows {

template <class S>
struct Queries {
  std::uint32_t words[S::kTiles][S::kQueryWords];   // lane 4 g + q, column g: coordinates 16 w + 4 q .. + 3
  std::uint32_t negated[S::kTiles][S::kQueryWords];  // -q: 4-bit keys come as two products
  // Of row q of each tile, as lane 4 g + q holds its scores:
  float unit[S::kTiles];   // what an integer score stands for
  int lowest[S::kTiles];   // first position it sees; INT_MAX: there is no such row
  int token[S::kTiles];    // of the call
  int lowest_of_all, highest_of_all;  // over the warp's rows
};

// The byte of x that this lane's column holds: high of even columns, low of odd ones.
__device__ inline std::uint32_t query_bytes(const int (&x)[4], bool low) {
  std::uint32_t bytes[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) bytes[n] = static_cast<std::uint32_t>(low ? x[n] : (x[n] + 128) >> 8);
  return prmt(prmt(bytes[0], bytes[1], 0x0040), prmt(bytes[2], bytes[3], 0x0040), 0x5410);
}

// first_row: the warp's first row of sequence i. staged: [4][kStride] floats of this warp.
template <class S>
__device__ void load_queries(const Params& p, const Sequence& sequence, int first_row, int kv_head, float* staged,
                             float* scratch, Queries<S>& out) {
  const AttendArgs& a = p.a;
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  const int rows = sequence.tokens * p.group;
  const float* signs = a.basis.query_signs + kv_head * S::kDim;
  out.lowest_of_all = INT_MAX;
  out.highest_of_all = 0;
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
    for (int r = 0; r < kTileRows; ++r) {
      const int row = first_row + tile * kTileRows + r, token = row / p.group;
      const std::int64_t at =
          row_at(a.query, sequence.first_token + token, kv_head * p.group + row - token * p.group);
      for (int e = lane; e < S::kDim; e += 32)
        staged[r * S::kStride + e] = row < rows ? load_element(a.query.dtype, a.query.data, at + e) * signs[e] : 0;
    }
    __syncwarp();
    warp_hadamard(staged, kTileRows, S::kStride, a.basis.base, S::kDim / a.basis.base, a.basis.base_matrix, false,
                  scratch);
    float mine = 0, scores = 0;  // largest of row g / 2, which this lane packs, and of row q, whose scores it has
    for (int r = 0; r < kTileRows; ++r) {
      std::uint32_t largest = 0;  // as bits, so that a NaN is the largest
      for (int e = lane; e < S::kDim; e += 32)
        largest = max(largest, __float_as_uint(staged[r * S::kStride + e]) & 0x7fffffffu);
#if __CUDA_ARCH__ >= 800
      largest = __reduce_max_sync(~0u, largest);
#endif
      if (r == g >> 1) mine = __uint_as_float(largest);
      if (r == q) scores = __uint_as_float(largest);
    }
    const float to_integer = 32639.0f / (mine > 1e-30f ? mine : 1e-30f);
#pragma unroll
    for (int w = 0; w < S::kQueryWords; ++w) {
      const float4 v = *reinterpret_cast<const float4*>(staged + (g >> 1) * S::kStride + 16 * w + 4 * q);
      const float f[4] = {v.x, v.y, v.z, v.w};
      int x[4], minus[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        x[n] = __float2int_rn(f[n] * to_integer);
        minus[n] = -x[n];
      }
      out.words[tile][w] = query_bytes(x, (g & 1) != 0);
      out.negated[tile][w] = query_bytes(minus, (g & 1) != 0);
    }
    __syncwarp();
    const int row = first_row + tile * kTileRows + q, token = row / p.group;
    int lowest = static_cast<int>(sequence.span.start);
    if (a.window > 0) lowest = max(lowest, static_cast<int>(sequence.span.length) + token - a.window + 1);
    out.unit[tile] = scores * (p.query_unit / 32639.0f);
    out.lowest[tile] = row < rows ? lowest : INT_MAX;
    out.token[tile] = token;
    out.lowest_of_all = min(out.lowest_of_all, out.lowest[tile]);
    out.highest_of_all = max(out.highest_of_all, lowest);
  }
  out.lowest_of_all = __reduce_min_sync(~0u, out.lowest_of_all);
  out.highest_of_all = __reduce_max_sync(~0u, out.highest_of_all);
}

}  // namespace turboquant::kernels::cuda::few_rows
