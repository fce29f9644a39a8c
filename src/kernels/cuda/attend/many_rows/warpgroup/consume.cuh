// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/finish.cuh"
#include "kernels/cuda/attend/many_rows/queries.cuh"
#include "kernels/cuda/attend/many_rows/raw_tile.cuh"
#include "kernels/cuda/attend/many_rows/warpgroup/shared.cuh"
#include "kernels/cuda/attend/many_rows/warpgroup/wgmma.cuh"

// A warpgroup's 64 rows against a tile. While one warpgroup weighs its scores, the other's products run.
namespace turboquant::kernels::cuda::many {

// s = q . k of all tokens of the tile, centre = q . its centre row (of which lanes with q = 0 hold the
// score).
__device__ inline void score_tile(std::uint32_t queries, std::uint32_t keys, float (&s)[8][4],
                                  float (&centre)[4]) {
  using L = WarpgroupLayout;
  products_fence();
#pragma unroll
  for (int k = 0; k < L::kDim / 16; ++k)
    multiply_64x72(s, centre, queries + k / 4 * (L::kQueryBlock / 16) + k % 4 * kNext16,
                   keys + k / 4 * (L::kKeyBlock / 16) + k % 4 * kNext16, k == 0);
  products_commit();
  products_wait<0>();
}

// Adds its centre to the scores of the tokens that are relative to it.
__device__ inline void add_centre(const TileFacts& facts, const float (&column)[4], float (&s)[8][4]) {
  const int lane = static_cast<int>(threadIdx.x & 31), q = lane & 3;
  const float step = facts.centre_step;
  const float centre0 = step * __shfl_sync(0xffffffffu, column[0], lane & ~3),
              centre1 = step * __shfl_sync(0xffffffffu, column[2], lane & ~3);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const float2 yes = *reinterpret_cast<const float2*>(facts.centred + 8 * j + 2 * q);
    s[j][0] = fmaf(yes.x, centre0, s[j][0]), s[j][1] = fmaf(yes.y, centre0, s[j][1]);
    s[j][2] = fmaf(yes.x, centre1, s[j][2]), s[j][3] = fmaf(yes.y, centre1, s[j][3]);
  }
}

// o += weights x values.
__device__ inline void add_values(std::uint32_t values, const float (&scale)[1][2],
                                  const Scores<WarpgroupLayout>& s, Sums<WarpgroupLayout>& sums) {
  using L = WarpgroupLayout;
  float from[1][2];
  weights_from<L>(sums, from);
  Weights<L> weights[kPageTokens / 16];
#pragma unroll
  for (int k = 0; k < kPageTokens / 16; ++k) weigh<L>(k, scale, from, s, weights[k]);
  products_fence();
#pragma unroll
  for (int k = 0; k < kPageTokens / 16; ++k)
    multiply_64x136(sums.o[0], sums.sum[0], weights[k][0], values + k * kNext16);
  products_commit();
  products_wait<0>();
}

__device__ inline void consume(const AttendArgs& a, const Work& w, const Partials& partials, int split,
                               WarpgroupShared& shared) {
  using L = WarpgroupLayout;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread >> 5, g = lane >> 2;
  // The same in all lanes, and known to be: descriptors are made in uniform registers.
  const int warpgroup = __shfl_sync(0xffffffffu, thread / L::kWarpgroupThreads, 0);
  const int begin = w.begin, end = w.end, first_row = warp * L::kWarpRows;
  const bool has_rows = warpgroup * L::kWarpgroupRows < w.rows;
  const int* row_token = shared.row_token + first_row;
  const std::uint32_t queries = matrix_of(shared_address(shared.queries()) + warpgroup * L::kQueryBytes);

  Sums<L> sums;
#pragma unroll
  for (int half = 0; half < 2; ++half) sums.largest[0][half] = -INFINITY;
#pragma unroll
  for (int c = 0; c < 4; ++c) sums.sum[0][c] = 0.0f;
#pragma unroll
  for (int j = 0; j < L::kDim / 8; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c) sums.o[0][j][c] = 0.0f;

  const auto meet = [&] { named_barrier(kConsumerBarrier + warpgroup, L::kWarpgroupThreads); };
  const auto make_queries = [&](bool rotated) {
    load_queries<L>(a, w, rotated, shared.queries(), shared.row_scale);
    shared_proxy_fence();
    meet();
  };
  float unit = 1.0f;
  bool rotated = begin < w.recent_end && begin < end;
  if (begin < end) make_queries(rotated);

  Ring<L::kStages> ring;
#pragma unroll 1
  for (int item = begin; item < end; ++item, ring.next()) {
    if (rotated && item >= w.recent_end) {
      unrotate<L::kDim>(a, w.head, sums.o[0]);
      rotated = false;
      meet();  // nobody's products read the queries any more
      make_queries(false);
    }
    const bool page = item < w.pages_end;
    const TileFacts& facts = shared.facts[ring.at];
    const TileNotes& notes = shared.notes[(item - begin) & 3];
    barrier_wait(shared_address(&shared.made[ring.at]), ring.parity);
    if (has_rows) {
      const bool odd = (notes.not_finite[0] | notes.not_finite[1]) != 0;
      float inverse = 2.0f;  // of the keys' unit: a page's tile holds half of a key
      if (!page) {
        inverse = 1.0f / facts.key_unit;
        if (!rotated && facts.value_unit != unit) {
          const float change = facts.value_unit / unit;
          unit = facts.value_unit;
#pragma unroll
          for (int j = 0; j < L::kDim / 8; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) sums.o[0][j][c] *= change;
        }
      }
      float scale[1][2], to_powers[1][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scale[0][half] = shared.row_scale[first_row + 8 * half + g] * inverse;
        to_powers[0][half] = a.softcap > 0 ? 1.0f : scale[0][half];
      }
      Scores<L> s;
      float column[4];
      score_tile(queries, matrix_of(shared_address(shared.keys(ring.at))), s[0], column);
      if (page) add_centre(facts, column, s[0]);
      if (a.softcap > 0) cap_scores<L>(a.softcap, scale, s);
      const bool whole =
          page ? item >= w.whole_begin && item < w.whole_end : all_seen(a, w, tile_span(w, item));
      if (!whole) mask<L>(a, w, tile_span(w, item), row_token, 0, s);
      raise_maximum<L>(to_powers, s, sums);
      add_values(matrix_of(shared_address(shared.values(ring.at))), to_powers, s, sums);
      if (odd) {
        const TileSpan tile = tile_span(w, item);
        if (page) {
          const std::uint32_t spoiled = rows_that_see<L>(a, w, tile, row_token, notes.not_finite);
#pragma unroll
          for (int j = 0; j < L::kDim / 8; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c)
              if ((spoiled >> (c / 2) & 1) != 0) sums.o[0][j][c] = NAN;
        } else {
          const RawTokens tokens = raw_tokens<L::kDim>(a, w, item, tile);
          add_not_finite<L>(a, w, tile, row_token, notes.not_finite, sums,
                            [&](int slot, int e) { return widen(tokens.bf16, tokens.value(slot)[e]); });
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&shared.used[ring.at]));
  }
  if (rotated) unrotate<L::kDim>(a, w.head, sums.o[0]);
  finish<L>(a, w, partials, split, 1.0f / unit, sums);
}

}  // namespace turboquant::kernels::cuda::many
