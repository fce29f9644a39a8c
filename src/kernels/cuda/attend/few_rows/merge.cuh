// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/finish.cuh"

// Segments that several streams, or several CTAs, did parts of. Parts are added in the order of their units,
// so the result does not depend on who comes last.
namespace turboquant::kernels::cuda::few_rows {

// What a stream leaves behind of a segment that it did not finish, in shared memory.
struct Record {
  int begin, end;         // the segment's units; empty: there is no such part
  int first_token, rows;  // of its sequence: where its rows begin in the call, how many
  int first_row;          // of the segment
  int unused[3];
};

// What a CTA knows when its streams are done.
template <class S>
struct Cta {
  const Params& p;
  int kv_head, index;    // KV head; CTA of that head
  Ranges ctas, streams;  // of the head's units; of this CTA's
  int begin, end;        // this CTA's units
  std::uint8_t* rings;   // a stream's last part lies where its ring was
  Record* records;       // [kStreams][2]: of its first segment where it goes on after it, and of its last
  float* staged;         // this warp's

  __device__ int stream_begin(int stream) const { return begin + streams.begin(stream); }
  __device__ Part<S> last_part(int stream) const {
    return {reinterpret_cast<float*>(rings + stream * p.stages * p.slot_bytes)};
  }
  __device__ Part<S> first_part(int stream) const {
    const std::int64_t at =
        (static_cast<std::int64_t>(kv_head) * p.ctas_per_head + index) * S::kStreams + stream;
    return {p.warp_parts + at * S::kPartFloats};
  }
  // Where a CTA keeps its part of a segment that it shares: one that an earlier CTA began, or one that goes
  // on.
  __device__ Part<S> cta_part(int cta, bool goes_on) const {
    const std::int64_t at =
        (static_cast<std::int64_t>(kv_head) * p.ctas_per_head + cta) * 2 + (goes_on ? 1 : 0);
    return {p.cta_parts + at * S::kPartFloats};
  }
};

template <class S>
struct Merged {
  RowsInLanes<S::kDim, 1> values = {};
  float maximum = kUnseen, sum = 0;
};

// Adds row `row` of parts 0 .. count - 1; part_at(k) says where part k is.
template <class S, class PartAt>
__device__ __forceinline__ Merged<S> merge_row(int row, int count, PartAt part_at) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  Merged<S> out;
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const int here = min(32, count - first);
    constexpr int kAhead = 8;  // parts whose loads are in flight together
    float x[kAhead][kEach<S::kDim>];
    const auto load = [&](int k) {
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const float* from = part_at(first + min(k + n, here - 1)).values(row) + lane;
#pragma unroll
        for (int i = 0; i < kEach<S::kDim>; ++i) x[n][i] = has<S::kDim>(i) ? from[32 * i] : 0;
      }
    };
    float maximum = kUnseen, sum = 0;
    if (lane < here) {
      const Part<S> part = part_at(first + lane);
      maximum = part.maximum(row);
      sum = part.sum(row);
    }
    load(0);
    float most = fmaxf(maximum, out.maximum);
#pragma unroll 1
    for (int lanes = 1; lanes < 32; lanes *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
    const float keep = exp2_approx(out.maximum - most),
                factor = lane < here ? exp2_approx(maximum - most) : 0.0f;
    sum *= factor;
#pragma unroll 1
    for (int lanes = 1; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    out.sum = fmaf(out.sum, keep, sum);
    out.maximum = most;
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i) out.values[0][i] *= keep;
#pragma unroll 1
    for (int k = 0; k < here; k += kAhead) {
      float y[kAhead][kEach<S::kDim>];
#pragma unroll
      for (int n = 0; n < kAhead; ++n)
#pragma unroll
        for (int i = 0; i < kEach<S::kDim>; ++i) y[n][i] = x[n][i];
      if (k + kAhead < here) load(k + kAhead);
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const float f = k + n < here ? __shfl_sync(~0u, factor, (k + n) & 31) : 0.0f;
#pragma unroll
        for (int i = 0; i < kEach<S::kDim>; ++i) out.values[0][i] = fmaf(f, y[n][i], out.values[0][i]);
      }
    }
  }
  return out;
}

// Adds the streams' parts of each segment that they share: to outputs where the CTA did all of it, else to
// the CTA's part.
template <class S>
__device__ __forceinline__ void merge_streams(const Cta<S>& cta) {
  const int warp = uniform(static_cast<int>(threadIdx.x >> 5)), lane = static_cast<int>(threadIdx.x & 31);
  // Lane s < kStreams: the segment that begins in stream s and goes on after it; lane kStreams: one that an
  // earlier CTA began.
  int which = -1;  // its record
  if (lane < S::kStreams) {
    const Record& last = cta.records[2 * lane + 1];
    if (last.begin >= cta.stream_begin(lane) && last.end > cta.stream_begin(lane + 1)) which = 2 * lane + 1;
  } else if (lane == S::kStreams) {
    const int first = cta.records[0].end > 0 ? 0 : 1;
    if (cta.records[first].end > 0 && cta.records[first].begin < cta.begin) which = first;
  }
  float signs[kEach<S::kDim>];
  load_signs<S::kDim>(cta.p.a.basis.value_signs + cta.kv_head * S::kDim, signs);
  int task = 0;
#pragma unroll 1
  for (std::uint32_t groups = __ballot_sync(~0u, which >= 0); groups != 0; groups &= groups - 1) {
    const Record& segment = cta.records[__shfl_sync(~0u, which, __ffs(static_cast<int>(groups)) - 1)];
    const int begin = uniform(segment.begin), end = uniform(segment.end);
    const int from = max(begin, cta.begin), to = min(end, cta.end);
    const int rows = uniform(segment.rows - segment.first_row);
    const int first = cta.streams.part_of(from - cta.begin), last = cta.streams.part_of(to - 1 - cta.begin);
    const auto part_at = [&](int k) {
      return end >= cta.stream_begin(first + k + 1) ? cta.last_part(first + k) : cta.first_part(first + k);
    };
#pragma unroll 1
    for (int row = 0; row < S::kTileTotal; ++row, ++task) {
      if (task % kWarps != warp || row >= rows) continue;
      Merged<S> merged = merge_row<S>(row, last - first + 1, part_at);
      if (begin >= cta.begin && end <= cta.end) {
        finish_rows<S, 1>(cta.p, segment.first_token, segment.rows, segment.first_row + row, cta.kv_head,
                          signs, merged.values, cta.staged, merged.maximum, merged.sum);
        continue;
      }
      const Part<S> out = cta.cta_part(cta.index, begin >= cta.begin);
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i)
        if (has<S::kDim>(i)) out.values(row)[lane + 32 * i] = merged.values[0][i];
      if (lane == 0) {
        out.maximum(row) = merged.maximum;
        out.sum(row) = merged.sum;
      }
    }
  }
}

// The last CTA to arrive at a shared segment adds the CTAs' parts. `arrived` is shared memory, [2].
template <class S>
__device__ __forceinline__ void merge_ctas(const Cta<S>& cta, int* arrived) {
  if (cta.begin == cta.end) return;
  const int warp = uniform(static_cast<int>(threadIdx.x >> 5));
  // Records of the segments that it shares with earlier and with later CTAs; -1: none.
  const int first = cta.records[0].end > 0 ? 0 : 1,
            last = 2 * cta.streams.part_of(cta.end - cta.begin - 1) + 1;
  const int before = cta.records[first].end > 0 && cta.records[first].begin < cta.begin ? first : -1;
  const int after = cta.records[last].begin >= cta.begin && cta.records[last].end > cta.end ? last : -1;
  if (before < 0 && after < 0) return;
  __syncthreads();
  if (threadIdx.x < 2) {
    const int which = threadIdx.x == 0 ? before : after;
    int is_last = 0;
    if (which >= 0) {
      const int begin = cta.ctas.part_of(cta.records[which].begin);
      const int count = cta.ctas.part_of(cta.records[which].end - 1) - begin + 1;
      int* counter = cta.p.arrivals + cta.kv_head * cta.p.ctas_per_head + begin;
      is_last = add_and_order(counter) == count - 1 ? 1 : 0;
      if (is_last != 0) *counter = 0;
    }
    arrived[threadIdx.x] = is_last;
  }
  __syncthreads();
  float signs[kEach<S::kDim>];
  load_signs<S::kDim>(cta.p.a.basis.value_signs + cta.kv_head * S::kDim, signs);
#pragma unroll 1
  for (int k = 0; k < 2; ++k) {
    if (uniform(arrived[k]) == 0) continue;
    const Record& segment = cta.records[k == 0 ? before : after];
    const int rows = uniform(segment.rows - segment.first_row);
    const int begin = cta.ctas.part_of(segment.begin),
              count = uniform(cta.ctas.part_of(segment.end - 1) - begin + 1);
#pragma unroll 1
    for (int row = warp; row < min(rows, S::kTileTotal); row += kWarps) {
      Merged<S> merged = merge_row<S>(row, count, [&](int j) { return cta.cta_part(begin + j, j == 0); });
      finish_rows<S, 1>(cta.p, segment.first_token, segment.rows, segment.first_row + row, cta.kv_head, signs,
                        merged.values, cta.staged, merged.maximum, merged.sum);
    }
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
