// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/merge.cuh"

// A segment that two streams do alone, and end with: as many sequences of equal lengths as there are half
// CTAs, say. They finish it together, half of its rows each, while the CTA's other streams still read. At the
// CTA's barrier, each warp would come to its rows later, and to one after the other.
namespace turboquant::kernels::cuda::few_rows {

// By the two streams from `first` on. mine: 0 or 1, this warp's.
template <class S>
requires(kPairs<S>) __device__ __forceinline__
    void finish_pair(const Cta<S>& cta, const Ending& ending, int first_row, int first, int mine,
                     const Running<S>& running) {
  constexpr int kRows = S::kRows / 2;
  const int row = kRows * mine, end_of_mine = row + static_cast<int>(threadIdx.x & 31) % kRows;
  Own<S, kRows> own;
  own.ask(cta.p, ending, first_row + row, cta.kv_head);
  __syncwarp();  // all lanes have read the ring
  store_part<S>(cta.p, running, 0, cta.last_part(first + mine, 0));
  meet(first / 2);
  const Part<S> parts[] = {cta.last_part(first, 0), cta.last_part(first + 1, 0)};
  RowsInLanes<S::kDim, kRows> x, y;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    load_lane<S::kDim>(parts[0].values(row + r), x[r]);
    load_lane<S::kDim>(parts[1].values(row + r), y[r]);
  }
  const float2 end = *reinterpret_cast<const float2*>(&parts[0].maximum(end_of_mine)),
               other_end = *reinterpret_cast<const float2*>(&parts[1].maximum(end_of_mine));
  const float maximum = fmaxf(end.x, other_end.x), keep = exp2_approx(end.x - maximum),
              other_keep = exp2_approx(other_end.x - maximum);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float f = __shfl_sync(~0u, keep, r), other_f = __shfl_sync(~0u, other_keep, r);
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i) x[r][i] = fmaf(x[r][i], f, y[r][i] * other_f);
  }
  finish_rows<S, kRows>(cta.p, ending, own, own.score(cta.p), first_row + row, cta.kv_head, cta.signs, x,
                        cta.staged, maximum, fmaf(end.y, keep, other_end.y * other_keep));
}

}  // namespace turboquant::kernels::cuda::few_rows
