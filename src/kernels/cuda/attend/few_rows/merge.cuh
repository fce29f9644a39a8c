// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/finish.cuh"

// Segments that several streams, or several CTAs, did parts of. Parts are added in the order of their units,
// so the result does not depend on who comes last.
namespace turboquant::kernels::cuda::few_rows {

// A row's sums while parts are added; coordinates lane + 32 i.
template <class S>
struct Merged {
  RowsInLanes<S::kDim, 1> values = {};
  float maximum = kUnseen, sum = 0;
};

// Adds row `row` of parts 0 .. count - 1; part_at(k) says where part k is. kFromL2: other CTAs wrote them.
template <class S, bool kFromL2, class PartAt>
__device__ Merged<S> merge_row(int row, int count, PartAt part_at) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const auto load = [](const float* x) {
    if constexpr (kFromL2) return __ldcg(x);
    else return *x;
  };
  Merged<S> out;
  for (int k = lane; k < count; k += 32) out.maximum = fmaxf(out.maximum, load(&part_at(k).maximum(row)));
  for (int lanes = 1; lanes < 32; lanes *= 2)
    out.maximum = fmaxf(out.maximum, __shfl_xor_sync(~0u, out.maximum, lanes));
  for (int first = 0; first < count; first += 32) {
    float factor = 0, weighted = 0;
    if (first + lane < count) {
      const Part<S> part = part_at(first + lane);
      factor = exp2_approx(load(&part.maximum(row)) - out.maximum);
      weighted = factor * load(&part.sum(row));
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) weighted += __shfl_xor_sync(~0u, weighted, lanes);
    out.sum += weighted;
    const int here = min(32, count - first);
    constexpr int kAhead = 8;  // parts whose loads are in flight together
    for (int k = 0; k < here; k += kAhead) {
      float x[kAhead][kEach<S::kDim>];
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
#pragma unroll
        for (int i = 0; i < kEach<S::kDim>; ++i)
          x[n][i] = k + n < here && lane + 32 * i < S::kDim ? load(part_at(first + k + n).values(row) + lane + 32 * i)
                                                            : 0;
      }
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const float f = __shfl_sync(~0u, factor, (k + n) & 31);
#pragma unroll
        for (int i = 0; i < kEach<S::kDim>; ++i)
          if (k + n < here) out.values[0][i] = fmaf(f, x[n][i], out.values[0][i]);
      }
    }
  }
  return out;
}

template <class S>
__device__ void finish_merged(const Params& p, const int* sums, int begin, int row, int kv_head, float* staged,
                              Merged<S>& merged) {
  const Place place = place_of<S>(p, sums, begin);
  const Sequence sequence = sequence_of<S>(p, place.i);
  const int at = place.tile * S::kTileTotal + row;
  if (at >= sequence.tokens * p.group) return;
  finish_rows<S, 1>(p, sequence, at, kv_head, merged.values, staged, merged.maximum, merged.sum);
}

// What a CTA knows of its place when its streams are done.
template <class S>
struct Cta {
  const Params& p;
  const int* sums;
  int kv_head, index;      // KV head; CTA of that head
  Ranges ctas, streams;    // of the head's units; of this CTA's
  int begin, end;          // this CTA's units
  std::uint8_t* rings;     // a stream's last part lies where its ring was
  float* staged;           // this warp's

  __device__ int grid_index() const { return kv_head * p.ctas_per_head + index; }
  __device__ int stream_begin(int stream) const { return begin + streams.begin(stream); }
  __device__ Part<S> last_part(int stream) const {
    return {reinterpret_cast<float*>(rings + stream * p.stages * p.slot_bytes)};
  }
  __device__ Part<S> first_part(int stream) const {
    return {p.warp_parts + (static_cast<std::int64_t>(grid_index()) * S::kStreams + stream) * S::kPartFloats};
  }
  // Where a CTA keeps its part of a segment that it shares: one that an earlier CTA began, or one that goes on.
  __device__ Part<S> cta_part(int cta, bool goes_on) const {
    const std::int64_t at = (static_cast<std::int64_t>(kv_head) * p.ctas_per_head + cta) * 2 + (goes_on ? 1 : 0);
    return {p.cta_parts + at * S::kPartFloats};
  }
};

// A segment of which this CTA did more than one stream's part, or that it shares with other CTAs.
struct Group {
  int begin = 0, end = 0;  // units; empty: none
};

// Lane s < kStreams: the segment that begins in stream s and goes on after it; lane kStreams: the one that an
// earlier CTA began.
template <class S>
__device__ Group find_group(const Cta<S>& cta) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  if (lane > S::kStreams || cta.begin == cta.end) return {};
  if (lane == S::kStreams) {
    const Place place = place_of<S>(cta.p, cta.sums, cta.begin);
    return place.begin < cta.begin ? Group{place.begin, place.end} : Group{};
  }
  const int begin = cta.stream_begin(lane), end = cta.stream_begin(lane + 1);
  if (begin == end) return {};
  const Place place = place_of<S>(cta.p, cta.sums, end - 1);
  return place.begin >= begin && place.end > end ? Group{place.begin, place.end} : Group{};
}

// Adds the streams' parts of each group: to outputs where the CTA did all of the segment, else to the CTA's part.
template <class S>
__device__ void merge_streams(const Cta<S>& cta) {
  const int warp = static_cast<int>(threadIdx.x >> 5), lane = static_cast<int>(threadIdx.x & 31);
  const Group mine = find_group<S>(cta);
  int task = 0;
  for (std::uint32_t groups = __ballot_sync(~0u, mine.end > mine.begin); groups != 0; groups &= groups - 1) {
    const int who = __ffs(static_cast<int>(groups)) - 1;
    const Group group{__shfl_sync(~0u, mine.begin, who), __shfl_sync(~0u, mine.end, who)};
    const int from = max(group.begin, cta.begin), to = min(group.end, cta.end);
    const int first = cta.streams.part_of(from - cta.begin), last = cta.streams.part_of(to - 1 - cta.begin);
    const auto part_at = [&](int k) {
      const bool is_last = group.end >= cta.stream_begin(first + k + 1);
      return is_last ? cta.last_part(first + k) : cta.first_part(first + k);
    };
    for (int row = 0; row < S::kTileTotal; ++row, ++task) {
      if (task % kWarps != warp) continue;
      Merged<S> merged = merge_row<S, false>(row, last - first + 1, part_at);
      if (group.begin >= cta.begin && group.end <= cta.end) {
        finish_merged<S>(cta.p, cta.sums, group.begin, row, cta.kv_head, cta.staged, merged);
        continue;
      }
      const Part<S> out = cta.cta_part(cta.index, group.begin >= cta.begin);
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i)
        if (lane + 32 * i < S::kDim) out.values(row)[lane + 32 * i] = merged.values[0][i];
      if (lane == 0) {
        out.maximum(row) = merged.maximum;
        out.sum(row) = merged.sum;
      }
    }
  }
}

// The last CTA to arrive at a shared segment adds the CTAs' parts. `arrived` is shared memory, [2].
template <class S>
__device__ void merge_ctas(const Cta<S>& cta, int* arrived) {
  if (cta.begin == cta.end) return;
  const int warp = static_cast<int>(threadIdx.x >> 5);
  const Place at_begin = place_of<S>(cta.p, cta.sums, cta.begin), at_end = place_of<S>(cta.p, cta.sums, cta.end - 1);
  const Group shared[2] = {at_begin.begin < cta.begin ? Group{at_begin.begin, at_begin.end} : Group{},
                           at_end.begin >= cta.begin && at_end.end > cta.end ? Group{at_end.begin, at_end.end}
                                                                             : Group{}};
  if (shared[0].end == 0 && shared[1].end == 0) return;
  __syncthreads();
  if (threadIdx.x < 2) {
    const Group group = shared[threadIdx.x];
    int last = 0;
    if (group.end > 0) {
      const int first_cta = cta.ctas.part_of(group.begin), count = cta.ctas.part_of(group.end - 1) - first_cta + 1;
      int* counter = cta.p.arrivals + cta.kv_head * cta.p.ctas_per_head + first_cta;
      __threadfence();
      last = atomicAdd(counter, 1) == count - 1 ? 1 : 0;
      if (last != 0) *counter = 0;
      __threadfence();
    }
    arrived[threadIdx.x] = last;
  }
  __syncthreads();
  for (int k = 0; k < 2; ++k) {
    if (arrived[k] == 0) continue;
    const Group group = shared[k];
    const int first = cta.ctas.part_of(group.begin), last = cta.ctas.part_of(group.end - 1);
    for (int row = warp; row < S::kTileTotal; row += kWarps) {
      Merged<S> merged =
          merge_row<S, true>(row, last - first + 1, [&](int j) { return cta.cta_part(first + j, j == 0); });
      finish_merged<S>(cta.p, cta.sums, group.begin, row, cta.kv_head, cta.staged, merged);
    }
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
