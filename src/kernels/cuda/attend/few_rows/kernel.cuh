// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/merge.cuh"
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
//   merge.cuh     parts of several warps   wide/        the same for 16 and 32 rows
// clang-format on
//
// A CTA of 8 warps an SM. Each stream (a warp, or several that share pages) walks its range of units on its
// own: no barrier until all are done. docs/attend.md derives the design and says what was measured.
namespace turboquant::kernels::cuda::few_rows {

// The team of the streams whose first unit is of the same segment. All but its last member end in it, so that
// their slots are not written again.
template <class S>
__device__ __forceinline__ Team first_team(const Cta<S>& cta, const Segment& segment, int stream,
                                           int in_stream) {
  const int lane = static_cast<int>(threadIdx.x & 31), begin = cta.stream_begin(lane);
  const std::uint32_t streams =
      __ballot_sync(~0u, lane < S::kStreams && begin >= segment.begin && begin < min(segment.end, cta.end));
  return {(__ffs(static_cast<int>(streams)) - 1) * S::kSharing + in_stream,
          __popc(streams & ((1u << stream) - 1)), __popc(streams), true};
}

template <class S>
__global__ void __launch_bounds__(kWarps * 32, 1) few_rows_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int warp = uniform(static_cast<int>(threadIdx.x >> 5)), lane = static_cast<int>(threadIdx.x & 31);
  const int stream = warp / S::kSharing, in_stream = warp % S::kSharing;
  std::uint8_t* rings = shared;
  std::uint8_t* queries_shared = rings + SharedLayout<S>::ring_bytes(p.stages, p.slot_bytes);
  float* all_staged = reinterpret_cast<float*>(queries_shared + kWarps * S::kQueryBytes);
  auto* barriers = reinterpret_cast<std::uint64_t*>(all_staged + kWarps * kTileRows * S::kStride);
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
               in_stream == 0};
  ring.init();
  if (threadIdx.x <= S::kStreams) records[threadIdx.x].rows = 0;
  if (!p.a.settled) wait_for_previous_kernel();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < p.a.sequences.count; i += kWarps * 32) {
    const Sequence sequence = sequence_of<S>(p, i);
    sums[i + 1] = sequence.tiles * sequence.units();
  }
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < S::kDim; i += kWarps * 32) {
    signs[i] = __ldg(p.a.basis.query_signs + kv_head * S::kDim + i);
    signs[S::kDim + i] = __ldg(p.a.basis.value_signs + kv_head * S::kDim + i);
  }
  __syncthreads();
  if (warp == 0) sum_units(sums, p.a.sequences.count);
  __syncthreads();

  const Ranges ctas(sums[p.a.sequences.count], p.ctas_per_head, p.cta_inverse);
  const int cta_begin = ctas.begin(index), cta_end = ctas.begin(index + 1);
  const Ranges streams(cta_end - cta_begin, S::kStreams, 1.0 / S::kStreams);
  const Cta<S> cta{p,     kv_head, index,           ctas,  streams, cta_begin, cta_end,
                   rings, records, signs + S::kDim, staged};
  ring.begin = uniform(cta.stream_begin(stream));
  ring.end = uniform(cta.stream_begin(stream + 1));
  ring.look_up();
  int ahead = p.stages;  // copies to start before the first page is used
  Sequence sequence{};
  Segment segment{};
  if (ring.begin < ring.end) segment = segment_of<S>(p, sums, ring.begin, sequence);
  if (p.a.settled) {
    ring.issue();  // while the previous kernel still runs; the others would delay the queries
    --ahead;
    const int first_row = segment.tile * S::kTileTotal + in_stream * S::kRows;
    const int tile = S::kWide ? stream % (S::kRows / kTileRows) : 0;  // most likely
    prefetch_rows<S>(p, sequence, first_row + tile * kTileRows, kv_head);
  }
  Team team{warp, 0, 1, false};
  if (S::kTeams) {
    if (ring.begin < ring.end) team = first_team<S>(cta, segment, stream, in_stream);
    else team = {warp, kIdle, kIdle, true};
  }
  if (ring.begin < ring.end && in_stream == 0) note_segment<S>(cta, segment, sequence, stream, lane);
  if (p.a.settled) {
    wait_for_previous_kernel();
    let_next_kernel_start();
  }

  const auto tables = tables_of<S>(p.a.pages.format);
  Running<S> running;
  bool keeps_part = false;
  int unit = ring.begin;
#pragma unroll 1
  for (bool first = S::kTeams; first || unit < ring.end; first = false) {  // idle warps come along once
    if (unit > ring.begin) {
      team = {warp, 0, 1, false};
      segment = segment_of<S>(p, sums, unit, sequence);
      if (in_stream == 0) note_segment<S>(cta, segment, sequence, stream, lane);
    }
    const int first_row = segment.tile * S::kTileTotal + in_stream * S::kRows;
    Queries<S> queries;
    queries.shared = reinterpret_cast<uint4*>(queries_shared + team.slot * S::kQueryBytes);
    RawRows<S::kDim, kTileRows> rows;
    if (S::kWide || team.member == 0)
      load_tile<S>(p, sequence, first_row + team.member * kTileRows, kv_head, rows);
#pragma unroll 1
    for (; ahead > 0; --ahead) ring.issue();
    make_queries<S>(p, sequence, first_row, kv_head, team, rows, signs, staged, queries);
    // An encode that began earlier would take issue slots from the first segment's queries.
    if (!p.a.settled) let_next_kernel_start();
    if (unit >= ring.end) break;
    running.clear();
    const int end = uniform(min(segment.end, ring.end)), pages = uniform(sequence.pages);
#pragma unroll 1
    for (; unit < end; ++unit) {
      const int k = unit - segment.begin;
      std::uint8_t* tile = ring.wait();
      if (k < pages) [[likely]] {
        const int position = (sequence.page_begin + k) * kPageTokens;
        const int begin = max(sequence.first_end - position, 0),
                  stop = min(sequence.recent_start - position, kPageTokens);
        attend_page<S>(p, tables, tile, position, begin, stop, queries, running);
      } else if (k < pages + sequence.pieces) {
        attend_piece<S>(p, sequence, k - pages, tile, queries, running);
      }
      ring.release(k >= pages);
    }
    if (segment.begin >= ring.begin && segment.end <= ring.end)
      finish_alone<S>(p, {sequence.first_token, sequence.tokens * p.group, sequence.length, sequence.start},
                      first_row, kv_head, signs + S::kDim, staged, running);
    else if (segment.end < ring.end) store_part<S>(p, running, in_stream * S::kRows, cta.first_part(stream));
    else keeps_part = true;
  }
  if constexpr (S::kSharing > 1) __syncthreads();  // the ring is free only when all its warps have read it
  if (keeps_part) store_part<S>(p, running, in_stream * S::kRows, cta.last_part(stream));
  __syncthreads();
  merge<S>(cta);
}

}  // namespace turboquant::kernels::cuda::few_rows
