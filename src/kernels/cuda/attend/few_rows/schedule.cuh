// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/shape.cuh"

// Who does what. A *segment* is one row tile of one sequence and KV head; its *units* are the pages its
// queries see, then the pieces of its fringe; without any of them, one unit of nothing. The call's own tokens
// are added at the end (own.cuh). The units of a KV head, sequence after sequence, are cut into equal ranges:
// first for CTAs, then for the streams of warps within a CTA. Nothing is planned on the host, so one captured
// launch serves any lengths.
//
// Code that runs once a launch is kept short here and in the files that follow: nothing runs beside it, so
// that each instruction that needs the one before takes 4 to 6 cycles.
namespace turboquant::kernels::cuda::few_rows {

// Sequence i as every one of its segments sees it. Positions are 32 bits, as lengths are.
struct Sequence {
  int start, first_end, recent_start, length;  // as FringeSpan: pages supply [first_end, recent_start)
  int first_token, tokens;                     // the call's rows
  int page_begin, pages, pieces;
  int tiles;                                                       // segments a KV head
  __device__ int units() const { return max(pages + pieces, 1); }  // no unit, no output
};

template <class S>
__device__ __forceinline__ Sequence sequence_of(const Params& p, int i) {
  const Sequences& s = p.a.sequences;
  const Fringe& fringe = p.a.fringe;
  Sequence out;
  out.length = __ldg(s.lengths + i);
  out.first_token = __ldg(s.token_starts + i);
  out.tokens = __ldg(s.token_starts + i + 1) - out.first_token;
  out.start = s.starts == nullptr ? 0 : __ldg(s.starts + i);
  out.first_end = out.start;
  out.recent_start = max(out.length, out.start);
  if (fringe.data != nullptr) {
    const int truncated = fringe.recent_starts == nullptr ? 0 : __ldg(fringe.recent_starts + i);
    out.recent_start = min(max(max(out.length - fringe.recent, truncated), out.start), out.length);
    out.first_end = max(min(out.start + fringe.first, out.recent_start), out.start);
  }
  const int rows = out.tokens * p.group;
  out.tiles = rows > p.most_rows ? 0 : (rows + S::kTileTotal - 1) / S::kTileTotal;
  const int lowest = p.a.window > 0 ? max(out.first_end, out.length - p.a.window + 1) : out.first_end;
  out.page_begin = lowest / kPageTokens;
  out.pages =
      lowest < out.recent_start ? (out.recent_start + kPageTokens - 1) / kPageTokens - out.page_begin : 0;
  out.pieces = out.first_end > out.start || out.recent_start < out.length ? p.fringe_pieces : 0;
  return out;
}

// Equal ranges of [0, total): the first total % parts of them are one longer.
struct Ranges {
  int each, longer;
  __device__ Ranges(int total, int parts, double inverse) {
    each = static_cast<int>((total + 0.5) * inverse);
    longer = total - each * parts;
  }
  // Parts of a multiple of kUnits units, as large as the largest is now, rounded up: the last ones are left
  // with less, or nothing.
  template <int kUnits>
  __device__ void fill() {
    each = (each + (longer > 0 ? 1 : 0) + kUnits - 1) / kUnits * kUnits;
    longer = 0;
  }
  __device__ int begin(int part) const { return part * each + min(part, longer); }
  // A unit's part. Integer divisions would take longer than what they are for.
  __device__ int part_of(int unit) const {
    const int in_longer = longer * (each + 1);
    const bool is_longer = unit < in_longer;
    const int size = is_longer ? each + 1 : each, x = is_longer ? unit : unit - in_longer;
    int part = static_cast<int>(__fdividef(static_cast<float>(x), static_cast<float>(size)));
    if ((part + 1) * size <= x) ++part;
    else if (part * size > x) --part;
    return is_longer ? part : longer + part;
  }
};

// A segment: its units are [begin, end) of its KV head.
struct Segment {
  int i, tile, begin, end;
};

// sums[i]: units of the sequences before i. Written by warp 0 from the per-sequence counts in sums[1 ..].
__device__ inline void sum_units(int* sums, int count) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  int before = 0;
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    int x = first + lane < count ? sums[first + lane + 1] : 0;
#pragma unroll 1
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(~0u, x, step);
      if (lane >= step) x += left;
    }
    if (first + lane < count) sums[first + lane + 1] = before + x;
    before += __shfl_sync(~0u, x, 31);
  }
  if (lane == 0) sums[0] = 0;
}

// The segment of a unit, and its sequence.
template <class S>
__device__ __forceinline__ Segment segment_of(const Params& p, const int* sums, int unit,
                                              Sequence& sequence) {
  int low = 0, high = p.a.sequences.count - 1;
#pragma unroll 1
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (sums[middle] <= unit) low = middle;
    else high = middle - 1;
  }
  sequence = sequence_of<S>(p, low);
  const int units = sequence.units(), first = sums[low];
  const int tile = sequence.tiles == 1 ? 0 : (unit - first) / units;
  const int begin = first + tile * units;
  return {low, tile, begin, begin + units};
}

// The same value in every lane, said so that the compiler knows it: branches on it then cost no divergence
// code.
__device__ __forceinline__ int uniform(int x) {
  return __shfl_sync(~0u, x, 0);
}

// Two warps meet; four such meetings are apart. The barriers' numbers are constants so that tools can follow
// them.
__device__ __forceinline__ void meet(int which) {
  if (which == 0) asm volatile("bar.sync 1, 64;" ::: "memory");
  else if (which == 1) asm volatile("bar.sync 2, 64;" ::: "memory");
  else if (which == 2) asm volatile("bar.sync 3, 64;" ::: "memory");
  else asm volatile("bar.sync 4, 64;" ::: "memory");
}

// The warps of a team of several (barriers 5 and 6 are for CTAs that append). At most four such teams are
// apart: the first warps of two are at least two apart.
__device__ __forceinline__ void meet_team(int first_warp, int warps) {
  if (first_warp < 2) asm volatile("bar.sync 7, %0;" ::"r"(32 * warps) : "memory");
  else if (first_warp < 4) asm volatile("bar.sync 8, %0;" ::"r"(32 * warps) : "memory");
  else if (first_warp < 6) asm volatile("bar.sync 9, %0;" ::"r"(32 * warps) : "memory");
  else asm volatile("bar.sync 10, %0;" ::"r"(32 * warps) : "memory");
}

// All warps of a stream.
template <class S>
__device__ __forceinline__ void stream_sync() {
  static_assert(S::kSharing <= 2);
  if constexpr (S::kSharing == 1) __syncwarp();
  else meet(uniform(static_cast<int>(threadIdx.x >> 5)) / S::kSharing);
}

// All warps that have streams: not those that append.
template <class S>
__device__ __forceinline__ void cta_sync() {
  if constexpr (!S::kAppends) __syncthreads();
  else asm volatile("bar.sync 5, %0;" ::"n"(32 * kWarps) : "memory");
}

// Warps that make the same queries. Where all of a CTA's warps are in teams, or idle, they may meet at one
// barrier; a warp by itself would wait there for others' queries.
struct Team {
  int slot;             // the warp in whose shared memory they are
  int member, members;  // this warp's number
  bool all;             // every warp of the CTA is in a team
  template <class S>
  static constexpr bool meets_as_cta() {
    return S::kWide || S::kSplit > 1;
  }
  template <class S>
  __device__ void sync() const {
    if (all && meets_as_cta<S>()) cta_sync<S>();
    else if (all && members > 1) meet_team(slot, members);
    else if constexpr (S::kSplit > 1) stream_sync<S>();
    else __syncwarp();
  }
  // Members that rotate its rows, the same number each: of a wide shape, of a tile.
  template <class S>
  __device__ int makers() const {
    if constexpr (!S::kWide)
      if constexpr (S::kSpreads)
        return S::kTiles == 2 && members >= 8 ? 8 : members >= 4 ? 4 : members >= 2 ? 2 : 1;
    return S::kSplit;
  }
};
inline constexpr int kIdle = 64;  // the number of a warp that has nothing to do: more than there are tiles

// x / group, exact for the row numbers of a sequence (below 2^22).
__device__ __forceinline__ int divide(int x, float inverse) {
  return static_cast<int>((static_cast<float>(x) + 0.5f) * inverse);
}

}  // namespace turboquant::kernels::cuda::few_rows
