// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/shape.cuh"
#include "kernels/cuda/vectors.cuh"

// Who does what. A *segment* is one row tile of one sequence and KV head; its *units* are the pages its queries
// see, then the pieces of its fringe, then (one unit) the call's own tokens. The units of a KV head, sequence
// after sequence, are cut into equal ranges: first for CTAs, then for the streams of warps within a CTA. Nothing
// is planned on the host, so one captured launch serves any lengths.
namespace turboquant::kernels::cuda::few_rows {

// Sequence i as every one of its segments sees it.
struct Sequence {
  FringeSpan span;
  int first_token, tokens;   // the call's rows
  int page_begin, pages, pieces, own;
  int tiles;                 // segments a KV head
  __device__ int units() const { return pages + pieces + own; }
};

template <class S>
__device__ Sequence sequence_of(const Params& p, int i) {
  const AttendArgs& a = p.a;
  Sequence out;
  out.span = fringe_span(a.fringe, a.sequences, i);
  out.first_token = a.sequences.token_starts[i];
  out.tokens = a.sequences.token_starts[i + 1] - out.first_token;
  const int rows = out.tokens * p.group;
  out.tiles = rows > p.most_rows ? 0 : (rows + S::kTileTotal - 1) / S::kTileTotal;
  int lowest = static_cast<int>(out.span.first_end);
  if (a.window > 0) lowest = max(lowest, static_cast<int>(out.span.length) - a.window + 1);
  const int end = static_cast<int>(out.span.recent_start);
  out.page_begin = lowest / kPageTokens;
  out.pages = lowest < end ? (end + kPageTokens - 1) / kPageTokens - out.page_begin : 0;
  const bool any = out.span.first_end > out.span.start || out.span.recent_start < out.span.length;
  out.pieces = any ? p.fringe_pieces : 0;
  out.own = a.keys.data != nullptr || out.pages + out.pieces == 0 ? 1 : 0;  // no unit, no output
  return out;
}

// Equal ranges of [0, total): the first total % parts of them are one longer.
struct Ranges {
  int each, longer;
  __device__ Ranges(int total, int parts) : each(total / parts), longer(total - total / parts * parts) {}
  __device__ int begin(int part) const { return part * each + min(part, longer); }
  __device__ int part_of(int unit) const {
    const int in_longer = longer * (each + 1);
    return unit < in_longer ? unit / (each + 1) : longer + (unit - in_longer) / each;
  }
};

// Unit `unit` of a segment that begins at `begin` and ends before `end`, counted in its KV head.
struct Place {
  int i, tile, unit, begin, end;
};

// sums[i]: units of the sequences before i. Written by warp 0 from the per-sequence counts in sums[1 ..].
__device__ inline void sum_units(int* sums, int count) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  int before = 0;
  for (int first = 0; first < count; first += 32) {
    int x = first + lane < count ? sums[first + lane + 1] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(~0u, x, step);
      if (lane >= step) x += left;
    }
    if (first + lane < count) sums[first + lane + 1] = before + x;
    before += __shfl_sync(~0u, x, 31);
  }
  if (lane == 0) sums[0] = 0;
}

template <class S>
__device__ Place place_of(const Params& p, const int* sums, int unit) {
  int low = 0, high = p.a.sequences.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (sums[middle] <= unit) low = middle;
    else high = middle - 1;
  }
  const int units = sequence_of<S>(p, low).units(), within = unit - sums[low];
  Place out;
  out.i = low;
  out.tile = within / units;
  out.unit = within - out.tile * units;
  out.begin = unit - out.unit;
  out.end = out.begin + units;
  return out;
}

}  // namespace turboquant::kernels::cuda::few_rows
