// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/finish.cuh"
#include "kernels/cuda/attend/few_rows/mail.cuh"

// Segments that several streams, or several CTAs, did parts of. Parts are added in the order of their units,
// so the result does not depend on who comes last.
namespace turboquant::kernels::cuda::few_rows {

// What is known, in shared memory, of a segment that several streams share: record s is of one that begins in
// stream s and goes on after it, record kStreams of one that an earlier CTA began. Written when a stream
// comes to the segment, so that nothing is left to be found out at the end.
struct Record {
  int rows;         // of the tile; 0: there is no such segment
  int first_row;    // of its sequence
  int streams;      // of this CTA that have parts
  int first_cta;    // of those that do
  int ctas;         // 1: this one does all of it
  bool tail_first;  // the last stream's part is its first_part: it went on with another segment
  Ending ending;
};

static_assert(sizeof(Record) == kRecordBytes);

// What a CTA knows when its streams are done.
template <class S>
struct Cta {
  const Params& p;
  int kv_head, index;    // KV head; CTA of that head
  Ranges ctas, streams;  // of the head's units; of this CTA's
  int begin, end;        // this CTA's units
  std::uint8_t* rings;   // a stream's last part lies where its ring was,
  float* parts;          // or here
  Record* records;       // [kStreams + 1]
  const float* signs;    // of the head's values
  float* staged;         // this warp's

  __device__ int stream_begin(int stream) const { return begin + streams.begin(stream); }
  // A stream has kSplit parts of what its warps did together.
  __device__ Part<S> last_part(int stream, int which) const {
    if constexpr (S::kSplit > 1) return {parts + (stream * S::kSplit + which) * S::kPartFloats};
    else return {reinterpret_cast<float*>(rings + stream * p.stages * p.slot_bytes)};
  }
  __device__ Part<S> first_part(int stream, int which) const {
    const int place = ((kv_head * p.ctas_per_head + index) * S::kStreams + stream) * S::kSplit + which;
    return {p.warp_parts + place * static_cast<std::int64_t>(S::kPartFloats)};
  }
  // What a CTA sends to the last one of a segment (mail.cuh).
  __device__ Part<S> mail(int cta) const {
    return {p.mail + (kv_head * p.ctas_per_head + cta) * S::kPartFloats};
  }
  // Wide: where a CTA keeps its part of a segment that it shares: one that an earlier CTA began, or one that
  // goes on.
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

// Whether streams `first` and the next one do a segment alone that begins in the first, and end with it. They
// finish it before the merge (pair.cuh).
template <class S>
inline constexpr bool kPairs = false;
template <Narrow S>
inline constexpr bool kPairs<S> = S::kSplit == 1;
template <class S>
__device__ __forceinline__ bool is_pair(const Cta<S>& cta, const Segment& segment, int first) {
  return kPairs<S> && first >= 0 && first + 1 < S::kStreams && segment.begin >= cta.stream_begin(first) &&
         segment.end == cta.stream_begin(first + 2);
}

// A stream has come to a segment of its sequence: notes what the merge will ask.
template <class S>
__device__ __forceinline__ void note_segment(const Cta<S>& cta, const Segment& segment,
                                             const Sequence& sequence, int stream, int lane) {
  const bool earlier_cta = segment.begin < cta.begin;
  const int stream_end = cta.stream_begin(stream + 1);
  if (earlier_cta ? stream > 0 : segment.begin < cta.stream_begin(stream) || segment.end <= stream_end)
    return;
  const int to = min(segment.end, cta.end);
  const int after = __popc(__ballot_sync(~0u, lane < S::kStreams && cta.stream_begin(lane) < to));
  const int rows = sequence.tokens * cta.p.group, first_row = segment.tile * S::kTileTotal;
  const int first_cta = earlier_cta ? cta.ctas.part_of(segment.begin) : cta.index;
  const int last_cta = segment.end <= cta.end ? cta.index : cta.ctas.part_of(segment.end - 1);
  // Not a second return: the compiler would doubt at every shuffle of the kernel that a warp is together.
  const bool pair = !earlier_cta && is_pair<S>(cta, segment, stream);
  if (lane == 0 && !pair)
    cta.records[earlier_cta ? S::kStreams : stream] = {
        min(rows - first_row, S::kTileTotal),
        first_row,
        after - (earlier_cta ? 0 : stream),
        first_cta,
        last_cta + 1 - first_cta,
        to < cta.stream_begin(after),
        {sequence.first_token, rows, sequence.length, sequence.start}};
}

// Where part k of a segment in this CTA is; `first`: the stream that has the segment's first units here.
template <class S>
__device__ __forceinline__ Part<S> part_here(const Cta<S>& cta, const Record& segment, int first, int k) {
  const int stream = k / S::kSplit, which = k % S::kSplit;
  return segment.tail_first && stream == segment.streams - 1 ? cta.first_part(first + stream, which)
                                                             : cta.last_part(first + stream, which);
}

// Row `row` of a segment: the sum of the parts of this CTA's streams. All of them but a last first_part lie
// in shared memory, side by side.
template <Narrow S>
__device__ __forceinline__ Merged<S> add_streams(const Cta<S>& cta, const Record& segment, int first,
                                                 int row) {
  constexpr int kN = kEach<S::kDim>, kMost = S::kStreams * S::kSplit;
  const int in_memory = segment.tail_first ? S::kSplit : 0, count = segment.streams * S::kSplit - in_memory;
  const int stride = S::kSplit > 1 ? S::kPartFloats : cta.p.stages * cta.p.slot_bytes / 4;
  const Part<S> parts = cta.last_part(first, 0);
  const float* values = parts.values(row) + (threadIdx.x & 31) * kN;
  const float* ends = &parts.maximum(row);
  Merged<S> out;
  float x[kMost][kN], factor[kMost], sum[kMost];
#pragma unroll
  for (int n = 0; n < kMost; ++n) {
    factor[n] = kUnseen, sum[n] = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) x[n][i] = 0;
    if (n < count) {
      const float2 end = *reinterpret_cast<const float2*>(ends + n * stride);
      factor[n] = end.x, sum[n] = end.y;
      load_lane_at<kN>(values + n * stride, x[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < kMost; ++n) out.maximum = fmaxf(out.maximum, factor[n]);
#pragma unroll
  for (int n = 0; n < kMost; ++n) {
    const float f = exp2_approx(factor[n] - out.maximum);
    out.sum = fmaf(f, sum[n], out.sum);
#pragma unroll
    for (int i = 0; i < kN; ++i) out.values[0][i] = fmaf(f, x[n][i], out.values[0][i]);
  }
#pragma unroll 1
  for (int which = 0; which < in_memory; ++which) {
    const Part<S> part = cta.first_part(first + segment.streams - 1, which);
    const float2 end = *reinterpret_cast<const float2*>(&part.maximum(row));
    float y[kN];
    load_lane<S::kDim>(part.values(row), y);
    const float most = fmaxf(out.maximum, end.x), keep = exp2_approx(out.maximum - most),
                f = exp2_approx(end.x - most);
    out.sum = fmaf(f, end.y, out.sum * keep);
#pragma unroll
    for (int i = 0; i < kN; ++i) out.values[0][i] = fmaf(f, y[i], out.values[0][i] * keep);
    out.maximum = most;
  }
  return out;
}

// A row of a segment: the sum of the parts of this CTA's streams. The segment's last CTA adds those of the
// others, which send them, and writes the output.
template <Narrow S>
__device__ __forceinline__ void merge_segment_rows(const Cta<S>& cta, const Record& segment, int first, bool,
                                                   int row) {
  const Params& p = cta.p;
  const int others = segment.ctas - 1;
  const bool ends_here = cta.index == segment.first_cta + others;
  Own<S, 1> own;
  if (ends_here) own.ask(p, segment.ending, segment.first_row + row, cta.kv_head);
  Merged<S> sums = add_streams<S>(cta, segment, first, row);
  if (!ends_here) {
    send_row<S>(cta.mail(cta.index), row, sums);
    return;
  }
  const auto own_score = own.score(p);  // while the others' sums are on their way
  if (others > 0) receive_row<S>(cta.mail(segment.first_cta), row, others, sums);
  finish_rows<S, 1>(p, segment.ending, own, own_score, segment.first_row + row, cta.kv_head, cta.signs,
                    sums.values, cta.staged, sums.maximum, sums.sum);
}

// Adds rows `row` ... of parts 0 .. count - 1, of which `rows` exist; part_at(k) says where part k is. Lane r
// (mod 4) has row r's maximum and sum.
template <class S, class PartAt>
__device__ __forceinline__ void merge_rows(int row, int rows, int count, PartAt part_at,
                                           RowsInLanes<S::kDim, kTileRows>& out, float& maximum, float& sum) {
  constexpr int kN = kEach<S::kDim>, kAhead = kN <= 4 ? 4 : 2;  // parts whose loads are in flight together
  const int mine = row + min(static_cast<int>(threadIdx.x & 31) % kTileRows, rows - 1);
  maximum = kUnseen;
  sum = 0;
#pragma unroll
  for (int r = 0; r < kTileRows; ++r)
#pragma unroll
    for (int i = 0; i < kN; ++i) out[r][i] = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += kAhead) {
    RowsInLanes<S::kDim, kTileRows> x[kAhead];
    float2 end[kAhead];
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      const bool here = n == 0 || first + n < count;
      const Part<S> part = part_at(here ? first + n : first);
      end[n] = *reinterpret_cast<const float2*>(&part.maximum(mine));
      if (!here) end[n] = {kUnseen, 0};
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) load_lane<S::kDim>(part.values(row + min(r, rows - 1)), x[n][r]);
    }
    float most = maximum;
#pragma unroll
    for (int n = 0; n < kAhead; ++n) most = fmaxf(most, end[n].x);
    const float keep = exp2_approx(maximum - most);
    float factor[kAhead];
    sum *= keep;
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      factor[n] = first + n < count ? exp2_approx(end[n].x - most) : 0.0f;
      sum = fmaf(factor[n], end[n].y, sum);
    }
    maximum = most;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const float row_keep = __shfl_sync(~0u, keep, r);
#pragma unroll
      for (int i = 0; i < kN; ++i) out[r][i] *= row_keep;
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        const float row_factor = __shfl_sync(~0u, factor[n], r);
        if (n > 0 && first + n >= count) break;
#pragma unroll
        for (int i = 0; i < kN; ++i) out[r][i] = fmaf(row_factor, x[n][r][i], out[r][i]);
      }
    }
  }
}

// Four rows of a segment: the sums of their streams' parts are their outputs where this CTA did all of it.
// Else they are this CTA's part, and whoever leaves the last part of the rows adds all of them.
template <Wide S>
__device__ __forceinline__ void merge_segment_rows(const Cta<S>& cta, const Record& segment, int first,
                                                   bool begins_here, int row) {
  constexpr int kRows = S::kFinishRows;
  static_assert(kRows == kTileRows);
  const Params& p = cta.p;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int rows = min(kRows, segment.rows - row);  // that exist
  int count = segment.streams;
  bool all = segment.ctas == 1, of_ctas = false;  // nothing else is to be added; parts are those of CTAs
  Own<S, kRows, 4> own;
  own.ask(p, segment.ending, segment.first_row + row, cta.kv_head);
#pragma unroll 1
  for (;;) {
    RowsInLanes<S::kDim, kRows> x;
    float maximum, sum;  // of row lane % kRows
    merge_rows<S>(
        row, rows, count,
        [&](int k) {
          return of_ctas ? cta.cta_part(segment.first_cta + k, k == 0) : part_here<S>(cta, segment, first, k);
        },
        x, maximum, sum);
    if (all) {
      finish_rows<S, kRows>(p, segment.ending, own, own.score(p), segment.first_row + row, cta.kv_head,
                            cta.signs, x, cta.staged, maximum, sum);
      return;
    }
    const Part<S> out = cta.cta_part(cta.index, begins_here);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r < rows) store_lane<S::kDim>(out.values(row + r), lane, x[r]);
    if (lane < rows) {
      out.maximum(row + lane) = maximum;
      out.sum(row + lane) = sum;
    }
    count = segment.ctas;
    if (!cta.is_last(segment.first_cta, row, count)) return;
    all = of_ctas = true;
  }
}

// Adds the parts of all segments that streams share, kFinishRows rows at a time. The r-th such rows of one
// that begins in stream s are for warp s kSharing + r (mod 8), of one that an earlier CTA began for warp 4 +
// r.
template <class S>
__device__ __forceinline__ void merge(const Cta<S>& cta) {
  const int warp = uniform(static_cast<int>(threadIdx.x >> 5)), lane = static_cast<int>(threadIdx.x & 31);
  // Lane r: whether this warp has r-th rows to do.
  const int place = (warp - lane) & (kWarps - 1);
  const int begun_rows = cta.records[place / S::kSharing].rows, earlier_rows = cta.records[S::kStreams].rows;
  std::uint32_t begun = __ballot_sync(~0u, place % S::kSharing == 0 && lane * S::kFinishRows < begun_rows);
  std::uint32_t earlier = __ballot_sync(~0u, place == kWarps / 2 && lane * S::kFinishRows < earlier_rows);
#pragma unroll 1
  while ((begun | earlier) != 0) {
    const bool begins_here = begun != 0;
    const int row = __ffs(static_cast<int>(begins_here ? begun : earlier)) - 1;
    if (begins_here) begun &= begun - 1;
    else earlier &= earlier - 1;
    const int first = begins_here ? ((warp - row) & (kWarps - 1)) / S::kSharing : 0;
    merge_segment_rows<S>(cta, cta.records[begins_here ? first : S::kStreams], first, begins_here,
                          row * S::kFinishRows);
  }
}

// The same for 16 rows, which are for four warps: all such rows in turn, so that no warp has two where
// another has none. First those of the segment that an earlier CTA began. The last of 32 rows see more own
// tokens: they are for other warps in each segment, as above.
template <Wide S>
requires(S::kTileTotal == 16) __device__ __forceinline__ void merge(const Cta<S>& cta) {
  const int warp = uniform(static_cast<int>(threadIdx.x >> 5)), lane = static_cast<int>(threadIdx.x & 31);
  const int record = lane == 0 ? S::kStreams : min(lane - 1, S::kStreams - 1);  // of this lane
  const int here = lane <= S::kStreams ? (cta.records[record].rows + S::kFinishRows - 1) / S::kFinishRows : 0;
  int through = here;  // of this lane's segment and of those before it
#pragma unroll 1
  for (int step = 1; step <= S::kStreams; step *= 2) {
    const int before = __shfl_up_sync(~0u, through, step);
    if (lane >= step) through += before;
  }
#pragma unroll 1
  for (int k = warp;; k += kWarps) {
    const std::uint32_t after = __ballot_sync(~0u, through > k);
    if (after == 0) break;
    const int at = __ffs(static_cast<int>(after)) - 1;
    const int row = k - __shfl_sync(~0u, through - here, at);
    merge_segment_rows<S>(cta, cta.records[at == 0 ? S::kStreams : at - 1], at == 0 ? 0 : at - 1, at > 0,
                          row * S::kFinishRows);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
