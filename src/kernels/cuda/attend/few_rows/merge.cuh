// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/finish.cuh"

// Segments that several streams, or several CTAs, did parts of. Parts are added in the order of their units,
// so the result does not depend on who comes last.
namespace turboquant::kernels::cuda::few_rows {

// What is known, in shared memory, of a segment that several streams share: record s is of one that begins in
// stream s and goes on after it, record kStreams of one that an earlier CTA began.
struct Record {
  int begin, end;  // the segment's units; end 0: there is no such segment
  int first_row;   // of its sequence
  Ending ending;
  int unused;
};

// What a CTA knows when its streams are done.
template <class S>
struct Cta {
  const Params& p;
  int kv_head, index;    // KV head; CTA of that head
  Ranges ctas, streams;  // of the head's units; of this CTA's
  int begin, end;        // this CTA's units
  std::uint8_t* rings;   // a stream's last part lies where its ring was
  Record* records;       // [kStreams + 1]
  const float* signs;    // of the head's values
  float* staged;         // this warp's

  __device__ int stream_begin(int stream) const { return begin + streams.begin(stream); }
  __device__ Part<S> last_part(int stream) const {
    return {reinterpret_cast<float*>(rings + stream * p.stages * p.slot_bytes)};
  }
  __device__ Part<S> first_part(int stream) const {
    return {p.warp_parts + ((kv_head * p.ctas_per_head + index) * S::kStreams + stream) *
                               static_cast<std::int64_t>(S::kPartFloats)};
  }
  // Where a CTA keeps its part of a segment that it shares: one that an earlier CTA began, or one that goes
  // on.
  __device__ Part<S> cta_part(int cta, bool goes_on) const {
    return {p.cta_parts + ((kv_head * p.ctas_per_head + cta) * 2 + (goes_on ? 1 : 0)) *
                              static_cast<std::int64_t>(S::kPartFloats)};
  }
  // Says that this CTA's part of a row is there; whether it was the last of `count` parts, of which CTA
  // `first` has the first. The calling warp wrote the part.
  __device__ bool is_last(int first, int row, int count) const {
    int before = 0;
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
      int* counter = p.arrivals + (kv_head * p.ctas_per_head + first) * S::kTileTotal + row;
      before = add_and_order(counter);
      if (before == count - 1) *counter = 0;
    }
    return __shfl_sync(~0u, before, 0) == count - 1;
  }
};

// The largest of a warp's numbers; none is NaN.
__device__ __forceinline__ float warp_max(float x) {
  const int bits = __float_as_int(x), ordered = bits ^ (bits >> 31 & 0x7fffffff);
  const int most = __reduce_max_sync(~0u, ordered);
  return __int_as_float(most ^ (most >> 31 & 0x7fffffff));
}

template <class S>
struct Merged {
  RowsInLanes<S::kDim, 1> values = {};
  float maximum = kUnseen, sum = 0;
};

// Adds row `row` of parts 0 .. count - 1; part_at(k) says where part k is.
template <class S, class PartAt>
__device__ __forceinline__ Merged<S> merge_row(int row, int count, PartAt part_at) {
  constexpr int kAhead = kEach<S::kDim> <= 4 ? 16 : 8,
                kGroup = 4;  // parts whose loads are in flight together
  const int lane = static_cast<int>(threadIdx.x & 31);
  Merged<S> out;
#pragma unroll 1
  for (int first = 0; first < count; first += kAhead) {
    const int here = min(kAhead, count - first);
    const Part<S> mine = part_at(first + min(lane, here - 1));  // lane k: part first + k
    const auto at = reinterpret_cast<std::uint64_t>(mine.values(row));
    float x[kAhead][kEach<S::kDim>];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n % kGroup == 0 && n >= here) break;
      load_lane<S::kDim>(reinterpret_cast<const float*>(__shfl_sync(~0u, at, n)), x[n]);
    }
    const float maximum = mine.maximum(row);
    float sum = mine.sum(row);
    const float most = warp_max(fmaxf(maximum, out.maximum)), keep = exp2_approx(out.maximum - most);
    const float factor = lane < here ? exp2_approx(maximum - most) : 0.0f;
#pragma unroll
    for (int i = 0; i < kEach<S::kDim>; ++i) out.values[0][i] *= keep;
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n % kGroup == 0 && n >= here) break;
      const float f = __shfl_sync(~0u, factor, n);
#pragma unroll
      for (int i = 0; i < kEach<S::kDim>; ++i) out.values[0][i] = fmaf(f, x[n][i], out.values[0][i]);
    }
    sum *= factor;
#pragma unroll
    for (int lanes = 1; lanes < kAhead; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    out.sum = fmaf(out.sum, keep, __shfl_sync(~0u, sum, 0));
    out.maximum = most;
  }
  return out;
}

// Row `row` of a segment: the sum of its streams' parts is its output where this CTA did all of it. Else it
// is this CTA's part, and whoever leaves the last part of the row adds all of them. `first`: the stream that
// has the segment's first units here.
template <class S>
__device__ __forceinline__ void merge_segment_row(const Cta<S>& cta, const Record& segment, int first,
                                                  bool begins_here, int row) {
  const Params& p = cta.p;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int begin = segment.begin, end = segment.end;
  const bool whole = begins_here && end <= cta.end;
  const int streams_after =
      __popc(__ballot_sync(~0u, lane < S::kStreams && cta.stream_begin(lane) < min(end, cta.end)));
  const int first_cta = begins_here ? cta.index : cta.ctas.part_of(begin);
  const int ctas = whole ? 1 : cta.ctas.part_of(end - 1) + 1 - first_cta;
  bool of_ctas = false;  // whose parts are added
  Own<S, 1> own;
#pragma unroll 1
  for (;;) {
    if (whole || of_ctas) own.ask(p, segment.ending, segment.first_row + row, cta.kv_head);
    const int count = of_ctas ? ctas : streams_after - first;
    Merged<S> merged = merge_row<S>(row, count, [&](int k) {
      if (of_ctas) return cta.cta_part(first_cta + k, k == 0);
      return end >= cta.stream_begin(first + k + 1) ? cta.last_part(first + k) : cta.first_part(first + k);
    });
    if (whole || of_ctas) {
      finish_rows<S, 1>(p, segment.ending, own, segment.first_row + row, cta.kv_head, cta.signs,
                        merged.values, cta.staged, merged.maximum, merged.sum);
      return;
    }
    const Part<S> out = cta.cta_part(cta.index, begins_here);
    store_lane<S::kDim>(out.values(row), lane, merged.values[0]);
    if (lane == 0) {
      out.maximum(row) = merged.maximum;
      out.sum(row) = merged.sum;
    }
    of_ctas = cta.is_last(first_cta, row, ctas);
    if (!of_ctas) return;
  }
}

// Adds the parts of all segments that streams share. Row r of one that begins in stream s is for warp
// s kSharing + r (mod 8), of one that an earlier CTA began for warp 4 + r.
template <class S>
__device__ __forceinline__ void merge(const Cta<S>& cta) {
  const int warp = uniform(static_cast<int>(threadIdx.x >> 5)), lane = static_cast<int>(threadIdx.x & 31);
  const auto has_row = [&](const Record& record) {
    return lane < S::kTileTotal && record.first_row + lane < record.ending.rows;
  };
  // Lane r: whether this warp has a row r to do.
  const int place = (warp - lane) & (kWarps - 1), stream = place / S::kSharing;
  const Record& begun = cta.records[stream];
  std::uint32_t rows = __ballot_sync(~0u, place % S::kSharing == 0 && begun.end > 0 && has_row(begun));
  const Record& earlier = cta.records[S::kStreams];
  std::uint32_t earlier_rows =
      __ballot_sync(~0u, (warp - lane - kWarps / 2) % kWarps == 0 && earlier.end > 0 && has_row(earlier));
#pragma unroll 1
  while ((rows | earlier_rows) != 0) {
    const bool begins_here = rows != 0;
    const int row = __ffs(static_cast<int>(begins_here ? rows : earlier_rows)) - 1;
    if (begins_here) rows &= rows - 1;
    else earlier_rows &= earlier_rows - 1;
    const int first = begins_here ? ((warp - row) & (kWarps - 1)) / S::kSharing : 0;
    merge_segment_row<S>(cta, cta.records[begins_here ? first : S::kStreams], first, begins_here, row);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
