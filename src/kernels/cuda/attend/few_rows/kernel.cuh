// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/append.cuh"
#include "kernels/cuda/attend/few_rows/pair.cuh"
#include "kernels/cuda/attend/few_rows/ring.cuh"
#include "kernels/cuda/attend/few_rows/wide/finish.cuh"

// attend for few queries a sequence: decoding, speculative decoding, tails of prompts. Bound by reading
// pages.
//
// clang-format off
//   schedule.cuh  who does what            softmax.cuh  scores to weights
//   ring.cuh      pages on their way       values.cuh   weights x codes
//   queries.cuh   rotate and round         exact.cuh    the fringe
//   scores.cuh    codes x queries          finish.cuh   sums to outputs
//   rotate.cuh    the rotation itself      own.cuh      the call's own tokens
//   merge.cuh     parts of several warps   append.cuh   the same tokens into pages
//   mail.cuh      parts from CTA to CTA    pair.cuh     or of two
//   wide/         the same for 16 and 32 rows
// clang-format on
//
// A CTA of 8 warps an SM, and two or four more where it appends. Each stream (a warp, or several that share
// pages) walks its range of units on its own: no barrier until all are done. docs/attend.md derives the
// design and says what was measured.
namespace turboquant::kernels::cuda::few_rows {

// The team of the streams whose first unit is of the same segment. All but its last member end in it, so that
// their slots are not written again.
template <class S>
__device__ __forceinline__ Team first_team(const Cta<S>& cta, const Segment& segment, int stream,
                                           int in_stream) {
  const int lane = static_cast<int>(threadIdx.x & 31), begin = cta.stream_begin(lane);
  const std::uint32_t streams =
      __ballot_sync(~0u, lane < S::kStreams && begin >= segment.begin && begin < min(segment.end, cta.end));
  const auto same = [](int x) { return Team::meets_as_cta<S>() ? x : uniform(x); };  // for all lanes
  const int first = same(__ffs(static_cast<int>(streams)) - 1) * S::kSharing,
            before = same(__popc(streams & ((1u << stream) - 1))), all = same(__popc(streams));
  if constexpr (S::kSplit > 1) return {first, before * S::kSplit + in_stream, all * S::kSplit, true};
  return {first + in_stream, before, all, true};
}

template <class S>
__global__ void __launch_bounds__(S::kRegisterWarps * 32) few_rows_kernel(const __grid_constant__ Params p) {
  const int threads = S::kAppends ? static_cast<int>(blockDim.x) : kWarps * 32;
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int warp = uniform(static_cast<int>(threadIdx.x >> 5)), lane = static_cast<int>(threadIdx.x & 31);
  const int stream = warp / S::kSharing, in_stream = warp % S::kSharing;
  const int in_part = S::kSplit == 1 ? 0 : in_stream;
  const int in_tile = S::kSplit == 1 ? in_stream * S::kRows : 0;  // this warp's first row
  std::uint8_t* rings = shared;
  std::uint8_t* queries_shared = rings + SharedLayout<S>::ring_bytes(p.stages, p.slot_bytes);
  float* all_staged = reinterpret_cast<float*>(queries_shared + kWarps * S::kQueryBytes);
  float* parts = all_staged + kWarps * kTileRows * S::kStride;
  auto* barriers = reinterpret_cast<std::uint64_t*>(parts + SharedLayout<S>::kPartsFloats);
  float* signs = reinterpret_cast<float*>(barriers + kWarps * kMaxStages * 2);  // of queries, then of values
  auto* records = reinterpret_cast<Record*>(signs + 2 * S::kDim);
  int* sums = reinterpret_cast<int*>(records + S::kStreams + 1);
  float* staged = all_staged + warp * kTileRows * S::kStride;

  const int kv_head = static_cast<int>(blockIdx.y), index = static_cast<int>(blockIdx.x);
  Ring<S> ring{p,
               sums,
               kv_head,
               0,
               0,
               rings + stream * p.stages * p.slot_bytes,
               shared_address(barriers + stream * kMaxStages),
               shared_address(barriers + (kWarps + stream) * kMaxStages),
               in_stream == 0 && (!S::kAppends || warp < kWarps)};
  ring.init();
  if (threadIdx.x <= S::kStreams) records[threadIdx.x].rows = 0;
  if (!p.a.settled) wait_for_previous_kernel();
  // Asked for all at once: where other CTAs read pages, each round of loads takes a microsecond.
  static_assert(S::kDim <= kWarps * 32);
  const int thread = static_cast<int>(threadIdx.x), sign_at = kv_head * S::kDim + thread;
  float sign_of_query = 0, sign_of_value = 0;
  if (thread < S::kDim) {
    sign_of_query = __ldg(p.a.basis.query_signs + sign_at);
    sign_of_value = __ldg(p.a.basis.value_signs + sign_at);
  }
  prefetch_page_table(p);
#pragma unroll 1
  for (int i = thread; i < p.a.sequences.count; i += threads) {
    const Sequence sequence = sequence_of<S>(p, i);
    sums[i + 1] = sequence.tiles * sequence.units();
  }
  if (thread < S::kDim) {
    signs[thread] = sign_of_query;
    signs[S::kDim + thread] = sign_of_value;
  }
  __syncthreads();
  if (warp == 0) sum_units(sums, p.a.sequences.count);
  __syncthreads();

  const int units = sums[p.a.sequences.count];
  const bool is_short = units <= p.short_units;
  Ranges ctas(units, is_short ? p.short_ctas : p.ctas_per_head, is_short ? p.short_inverse : p.cta_inverse);
  // All streams take as long as those that have the most. The last CTA, which merges, may have fewer.
  if (S::kSplit > 1 && p.a.sequences.count == 1 && units <= p.whole_units) ctas.fill<S::kStreams>();
  // Others have units, and wait for the previous kernel, so that the next one still comes after it.
  if (is_short && index >= p.short_ctas && units > 0) return;
  const int cta_begin = min(ctas.begin(index), units), cta_end = min(ctas.begin(index + 1), units);
  if constexpr (S::kAppends)
    if (warp >= kWarps) {
      append_tokens<S>(p, sums, kv_head, cta_begin, cta_end, shared + p.append_at);
      return;
    }
  const Ranges streams(cta_end - cta_begin, S::kStreams, 1.0 / S::kStreams);
  const Cta<S> cta{p,       kv_head, index, ctas,    streams,         cta_begin,
                   cta_end, rings,   parts, records, signs + S::kDim, staged};
  ring.begin = uniform(cta.stream_begin(stream));
  ring.end = uniform(cta.stream_begin(stream + 1));
  ring.look_up();
  int ahead = p.stages;  // copies to start before the first page is used
  if (p.a.settled) {
    ring.issue();  // while the previous kernel still runs; the others would delay the queries
    ring.prefetch();
    --ahead;
  }
  const auto tables = tables_of<S>(p.a.pages.format);
  Running<S> running;
  bool keeps_part = false;
  int unit = ring.begin;
  Sequence sequence{};
  Segment segment{};
#pragma unroll 1
  for (bool first = true; first || unit < ring.end; first = false) {  // idle warps come along once
    const bool idle = unit >= ring.end;
    // Whatever does not depend on the previous kernel comes before the wait for it.
    if (!idle) {
      segment = segment_of<S>(p, sums, unit, sequence);
      if (in_stream == 0) note_segment<S>(cta, segment, sequence, stream, lane);
    }
    const Team team = first && S::kTeams ? idle ? Team{warp, kIdle, kIdle, true}
                                                : first_team<S>(cta, segment, stream, in_stream)
                      : S::kSplit > 1 ? Team{warp - in_stream, in_stream, S::kSplit, false}
                                         : Team{warp, 0, 1, false};
    const int first_row = segment.tile * S::kTileTotal + in_tile;
    Queries<S> queries;
    queries.shared = reinterpret_cast<uint4*>(queries_shared + team.slot * S::kQueryBytes);
    queries.see(p, sequence, first_row);
    const int makers = team.makers<S>(), rows_each = min(kTileRows, S::kRows / makers);
    const bool loads = S::kWide || team.member < makers;
    std::int64_t at[S::kQueryRows];
    find_rows<S>(p, sequence, first_row + (loads ? team.member * rows_each : 0), kv_head, at, rows_each);
    running.clear();
    if (first && p.a.settled) {
      const int tile = stream % (S::kRows / kTileRows);  // most likely
      prefetch_rows<S>(p, sequence, first_row + tile * kTileRows, kv_head);
      wait_for_previous_kernel();
      let_next_kernel_start();
    }
    if (idle && !(S::kTeams && Team::meets_as_cta<S>())) break;
    if (!first && S::kSplit > 1) stream_sync<S>();  // both have taken the last queries
    GivenRows<S> rows;
    if (loads) rows.load(p.a.query, at);
#pragma unroll 1
    for (; ahead > 0; --ahead) ring.issue();
    make_queries<S>(p, sequence, first_row, kv_head, team, rows, signs, staged, queries);
    // An encode that began earlier would take issue slots from the first segment's queries.
    if (!p.a.settled) let_next_kernel_start();
    if (idle) break;
    const int end = uniform(min(segment.end, ring.end)), pages = uniform(sequence.pages);
    const auto take_page = [&](const std::uint8_t* page, int k) {
      const int position = (sequence.page_begin + k) * kPageTokens;
      const int begin = max(sequence.first_end - position, 0),
                stop = min(sequence.recent_start - position, kPageTokens);
      attend_page<S>(p, tables, page, position, begin, stop, in_stream, queries, running);
    };
    if constexpr (S::kWide) {  // pages by a loop of their own: what pieces need is in no register of theirs
      const int pages_end = min(end, segment.begin + pages);
#pragma unroll 1
      for (; unit < pages_end; ++unit) {
        take_page(ring.wait(), unit - segment.begin);
        ring.release(false);
      }
    }
#pragma unroll 1
    for (; unit < end; ++unit) {
      const int k = unit - segment.begin;
      std::uint8_t* tile = ring.wait();
      if (!S::kWide && k < pages) [[likely]] {
        take_page(tile, k);
      } else if (k < pages + sequence.pieces && (S::kSplit == 1 || k % S::kSplit == in_stream)) {
        attend_piece<S>(p, sequence, k - pages, tile, queries, running);
      }
      ring.release(k >= pages);
    }
    const Ending ending{sequence.first_token, sequence.tokens * p.group, sequence.length, sequence.start};
    const bool begins = segment.begin >= ring.begin, ends = segment.end <= ring.end;
    if constexpr (kPairs<S>) {
      const int first_stream = begins ? stream : stream - 1;
      if (begins != ends && is_pair<S>(cta, segment, first_stream)) {
        finish_pair<S>(cta, ending, first_row, first_stream, stream - first_stream, running);
        continue;
      }
    }
    if (begins && ends)
      finish_alone<S>(p, ending, first_row, kv_head, in_stream, signs + S::kDim, staged, running);
    else if (segment.end < ring.end) store_part<S>(p, running, in_tile, cta.first_part(stream, in_part));
    else keeps_part = true;
  }
  if constexpr (S::kSharing > 1 && S::kSplit == 1) cta_sync<S>();  // all its warps have read the ring
  if (keeps_part) {
    __syncwarp();  // all of its lanes have, too
    store_part<S>(p, running, in_tile, cta.last_part(stream, in_part));
  }
  if constexpr (S::kAppends) say_read();
  cta_sync<S>();
  merge<S>(cta);
}

}  // namespace turboquant::kernels::cuda::few_rows
