// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/centres.cuh"
#include "kernels/cuda/attend/many_rows/expand.cuh"
#include "kernels/cuda/attend/many_rows/finish.cuh"
#include "kernels/cuda/attend/many_rows/raw_tile.cuh"

// Flash attention over pages: a CTA takes a tile of rows and loops over tiles of 64 tokens. Per page:
//
//   barrier; expand the packed page into fp16 tiles; barrier; start copying the next page;
//   scores (MMA), softmax, values (MMA)
//
// Two CTAs share an SM, so that one expands while the other multiplies.
namespace turboquant::kernels::cuda::many {

enum class Domain { kNone, kRotated, kModel };

template <int D>
__device__ inline void copy_page(const AttendArgs& a, const Work& w, int item, std::uint32_t to) {
  const std::int64_t page_bytes = static_cast<std::int64_t>(a.pages.format.page_bytes());
  const std::uint8_t* page =
      page_of(a.pages, a.sequences, w.sequence, static_cast<int>(w.page_begin) + item, w.head, page_bytes);
  const int bytes = static_cast<int>(a.pages.format.centre_offset());
  for (int at = 16 * static_cast<int>(threadIdx.x); at < bytes; at += 16 * Layout<D>::kThreads)
    cp_async_16(to + at, page + at);
}

template <int D>
__global__ void __launch_bounds__(Layout<D>::kThreads, 2)
    many_rows_kernel(const __grid_constant__ AttendArgs a, int min_rows, Partials partials) {
  using L = Layout<D>;
  extern __shared__ __align__(128) std::uint8_t shared[];
  __shared__ Work w;
  auto& flags = *reinterpret_cast<Flags*>(shared + L::kFlags);
  auto* row_scale = reinterpret_cast<float*>(shared + L::kRowScale);
  auto* row_token = reinterpret_cast<int*>(shared + L::kRowToken);
  auto* centred = reinterpret_cast<float*>(shared + L::kCentred);
  auto* centre_scores = reinterpret_cast<float*>(shared + L::kCentreScores);
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5, g = lane >> 2;
  const int split = static_cast<int>(blockIdx.z);

  if (warp == 0) {  // later tiles see more of their own tokens: they go first
    const int index = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    const int2 tile = find_tile(a.sequences, a.q_heads / a.pages.kv_heads, min_rows, L::kRows, index);
    if (lane == 0) w = make_work(a, tile, L::kRows, static_cast<int>(blockIdx.y), split, partials.splits);
  }
  if (thread < 8) (&flags.not_finite[0][0])[thread] = 0;
  __syncthreads();
  if (w.rows == 0) return;
  {
    const int group = a.q_heads / a.pages.kv_heads, row = thread < w.rows ? thread : w.rows - 1;
    if (thread < L::kRows) row_token[thread] = static_cast<int>((w.first_row + row) / group);
  }
  const int pages_end = w.end < w.pages_end ? w.end : w.pages_end, first = w.begin, end = w.end;
  const std::uint32_t packed = shared_address(shared + L::kPacked),
                      centres = shared_address(shared + L::kCentres);
  if (first < pages_end) {
    copy_page<D>(a, w, first, packed);
    copy_centres<D>(a, w, first, pages_end, centres);
  }

  Sums<D> sums;
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) sums.largest[b][half] = -INFINITY, sums.sum[b][half] = 0.0f;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums.o[b][j][c] = 0.0f;
  }
  float unit = 1.0f;  // accumulators hold values times this
  Domain domain = Domain::kNone;
  const std::uint32_t warp_queries = shared_address(shared + L::kQueries) + warp * L::kWarpRows * L::kPitch;

  for (int item = first;; ++item) {
    const Domain wanted = item < w.recent_end && item < end ? Domain::kRotated : Domain::kModel;
    if (domain == Domain::kRotated && wanted == Domain::kModel)
#pragma unroll
      for (int b = 0; b < L::kMmaRows; ++b) unrotate<D>(a, w.head, sums.o[b]);
    if (item >= end) break;
    if (domain != wanted) load_queries<D>(a, w, wanted == Domain::kRotated, shared + L::kQueries, row_scale);
    domain = wanted;

    const bool is_page = item < pages_end;
    const TileSpan tile = tile_span(w, item);
    const int parity = item & 1;
    float scale_unit = 1.0f;
    cp_async_wait_all();
    __syncthreads();  // the page has landed; nobody reads the tiles any more
    if (is_page) {
      const int in_batch = (item - first) % kCentreBatch, batch = (item - first) / kCentreBatch & 1;
      if (in_batch == 0) {
        score_centres<D>(warp_queries, shared + L::kCentres + batch * kCentreBatch * L::kCentrePitch,
                         centre_scores + warp * L::kWarpRows * kCentreBatch);
        copy_centres<D>(a, w, item + kCentreBatch, pages_end,
                        centres + (batch ^ 1) * kCentreBatch * L::kCentrePitch);
      }
      expand_keys<D>(shared + L::kPacked, a.pages.format, shared + L::kKeys, centred);
      expand_values<D>(shared + L::kPacked, a.pages.format, tile.begin, tile.end, shared + L::kValues,
                       flags.not_finite[parity]);
      scale_unit = 2.0f;  // tiles hold half of a key
    } else {
      const RawTokens tokens = raw_tokens<D>(a, w, item, tile);
      measure_raw<D>(tokens, tile.end, flags.largest[parity], flags.not_finite[parity]);
      __syncthreads();
      float key_unit = 1.0f, value_unit = 0.5f;
      if (domain == Domain::kModel) {
        const float key = widen(tokens.bf16, flags.largest[parity][0]);
        if (key > 32768.0f) key_unit = fp16_unit(key);
        value_unit = fp16_unit(widen(tokens.bf16, flags.largest[parity][1]));
        const float change = value_unit / unit;
        unit = value_unit;
#pragma unroll
        for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
          for (int j = 0; j < D / 8; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) sums.o[b][j][c] *= change;
      }
      load_raw<D>(tokens, tile.end, key_unit, value_unit, shared + L::kKeys, shared + L::kValues, centred);
      scale_unit = 1.0f / key_unit;
    }
    __syncthreads();  // the tiles are there; nobody reads the packed page any more
    if (item + 1 < pages_end) copy_page<D>(a, w, item + 1, packed);
    if (thread < 2) flags.not_finite[parity ^ 1][thread] = flags.largest[parity ^ 1][thread] = 0;

    float scale[L::kMmaRows][2], centre[L::kMmaRows][2];
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp * L::kWarpRows + 16 * b + 8 * half + g;
        scale[b][half] = row_scale[row] * scale_unit;
        centre[b][half] = is_page ? centre_scores[row * kCentreBatch + (item - first) % kCentreBatch] : 0.0f;
      }
    Scores<D> s;
    multiply_keys<D>(warp_queries, shared_address(shared + L::kKeys), centred, centre, s);
    if (a.softcap > 0) cap_scores<D>(a.softcap, scale, s);
    if (!all_seen(a, w, tile)) mask<D>(a, w, tile, row_token + warp * L::kWarpRows, s);
    weigh<D>(scale, s, sums);
    multiply_values<D>(shared_address(shared + L::kValues), s, sums);
    if ((flags.not_finite[parity][0] | flags.not_finite[parity][1]) != 0) {
      const RawTokens tokens = is_page ? RawTokens{} : raw_tokens<D>(a, w, item, tile);
      add_not_finite<D>(
          a, w, tile, row_token + warp * L::kWarpRows, flags.not_finite[parity], sums,
          [&](int slot, int e) { return is_page ? NAN : widen(tokens.bf16, tokens.value(slot)[e]); });
    }
  }
  finish<D>(a, w, partials, split, 1.0f / unit, sums);
}

}  // namespace turboquant::kernels::cuda::many
