// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/exact.cuh"
#include "kernels/cuda/attend/few_rows/merge.cuh"
#include "kernels/cuda/attend/few_rows/ring.cuh"

// attend for few queries a sequence: decoding, speculative decoding, tails of prompts. Bound by reading pages.
//
//   schedule.cuh  who does what          scores.cuh    codes x queries          exact.cuh   fringe, own tokens
//   ring.cuh      pages on their way     softmax.cuh   scores to weights        finish.cuh  sums to outputs
//   queries.cuh   rotate, round          values.cuh    weights x codes          merge.cuh   parts of several warps
//
// A CTA of 8 warps an SM. Each stream (a warp, or several that share pages) walks its range of units on its own: no
// barrier until all are done. docs/attend.md derives the design and says what was measured.
namespace turboquant::kernels::cuda::few_rows {

template <class S>
__global__ void __launch_bounds__(kWarps * 32, 1) few_rows_kernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int warp = static_cast<int>(threadIdx.x >> 5);
  const int stream = warp / S::kSharing, in_stream = warp % S::kSharing;
  std::uint8_t* rings = shared;
  float* all_staged = reinterpret_cast<float*>(rings + SharedLayout<S>::ring_bytes(p.stages, p.slot_bytes));
  auto* barriers = reinterpret_cast<std::uint64_t*>(all_staged + kWarps * kTileRows * S::kStride);
  int* sums = reinterpret_cast<int*>(barriers + kWarps * kMaxStages * 2);
  int* arrived = sums + p.a.sequences.count + 1;
  float* staged = all_staged + warp * kTileRows * S::kStride;

  const int kv_head = static_cast<int>(blockIdx.x) / p.ctas_per_head;
  const int index = static_cast<int>(blockIdx.x) - kv_head * p.ctas_per_head;
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
  if (!p.a.settled) wait_for_previous_kernel();
  for (int i = static_cast<int>(threadIdx.x); i < p.a.sequences.count; i += kWarps * 32) {
    const Sequence sequence = sequence_of<S>(p, i);
    sums[i + 1] = sequence.tiles * sequence.units();
  }
  __syncthreads();
  if (warp == 0) sum_units(sums, p.a.sequences.count);
  __syncthreads();

  const Ranges ctas(sums[p.a.sequences.count], p.ctas_per_head);
  const int cta_begin = ctas.begin(index), cta_end = ctas.begin(index + 1);
  const Ranges streams(cta_end - cta_begin, S::kStreams);
  const Cta<S> cta{p, sums, kv_head, index, ctas, streams, cta_begin, cta_end, rings, staged};
  ring.begin = cta.stream_begin(stream);
  ring.end = cta.stream_begin(stream + 1);
  for (int s = 0; s < p.stages; ++s) ring.issue();
  if (p.a.settled) wait_for_previous_kernel();
  let_next_kernel_start();

  Running<S> running;
  int unit = ring.begin;
  bool keeps_part = false;
  while (unit < ring.end) {
    const Place place = place_of<S>(p, sums, unit);
    const Sequence sequence = sequence_of<S>(p, place.i);
    const int first_row = place.tile * S::kTileTotal + in_stream * S::kRows;
    const int end = min(place.end, ring.end);
    Queries<S> queries;
    load_queries<S>(p, sequence, first_row, kv_head, staged, queries);
    running.clear();
    const int first_end = static_cast<int>(sequence.span.first_end);
    const int recent_start = static_cast<int>(sequence.span.recent_start);
#pragma unroll 1
    for (int k = place.unit; unit < end; ++unit, ++k) {
      std::uint8_t* tile = ring.wait();
      bool written = false;
      if (k < sequence.pages) {
        const int position = (sequence.page_begin + k) * kPageTokens;
        float scores[S::kTiles][8];
        Weights<S> weights;
        page_scores<S>(p, tile, queries, scores);
        weigh_page<S>(p, tile, queries, position, max(first_end - position, 0),
                      min(recent_start - position, kPageTokens), scores, running, weights);
        add_page_values<S>(p, tile, weights, running);
      } else {
        if (k < sequence.pages + sequence.pieces)
          attend_fringe<S>(p, sequence, k - sequence.pages, tile, queries, running);
        else
          attend_own<S>(p, sequence, kv_head, in_stream == 0, staged, tile, queries,
                                              running);
        written = true;
      }
      ring.release(written);
    }
    complete<S>(p, running);
    if (place.begin >= ring.begin && place.end <= ring.end)
      finish_running<S>(p, sequence, first_row, kv_head, staged, running);
    else if (place.end < ring.end)
      store_part<S>(running, in_stream * S::kRows, cta.first_part(stream));
    else keeps_part = true;
  }
  if constexpr (S::kSharing > 1) __syncthreads();  // the ring is free only when all its warps have read it
  if (keeps_part) store_part<S>(running, in_stream * S::kRows, cta.last_part(stream));
  __syncthreads();
  merge_streams<S>(cta);
  merge_ctas<S>(cta, arrived);
}

}  // namespace turboquant::kernels::cuda::few_rows
