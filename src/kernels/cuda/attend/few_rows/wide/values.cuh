// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/values.cuh"
#include "kernels/cuda/attend/few_rows/wide/softmax.cuh"

// Weights x codes of 32 tokens: B = 16 tokens x 8 coordinates of V, added to the running sums at once.
namespace turboquant::kernels::cuda::few_rows {

template <class S, int kBits, int kUnits>
__device__ __forceinline__ void add_wide_block(const std::uint8_t* area, const ByteTable& table, int block,
                                               int token, const WideWeights<S>& weights,
                                               Running<S>& running) {
  ValueBlock<kBits, kUnits> block_codes;
  block_codes.template load<S::kDim>(area, block, token / 32);
#pragma unroll
  for (int j = 0; j < kUnits; ++j) {
    const WideCodes codes = expand<kBits>(table, block_codes.selector(j, token / 32));
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int b = 0; b < S::kBlocks; ++b)
        mma_f16<false>(running.values[b][4 * block + j], weights.x[b][h], codes.x[2 * h], codes.x[2 * h + 1]);
  }
}

template <class S>
__device__ __forceinline__ void add_wide_values(const Params& p, const WideTables& tables,
                                                const std::uint8_t* page, int token,
                                                const WideWeights<S>& weights, Running<S>& running) {
  with_bits<S>(p.a.pages.format.v_bits, [&](auto bits) {
    const std::uint8_t* area = page + p.v_codes;
#pragma unroll
    for (int block = 0; block < S::kDim / 32; ++block)
      add_wide_block<S, bits.value, 4>(area, tables.values, block, token, weights, running);
    if constexpr (S::kDim % 32 != 0)
      add_wide_block<S, bits.value, 2>(area, tables.values, S::kDim / 32, token, weights, running);
  });
}

// A page. Its slots [begin, end) are its own (the fringe holds the others); `position` is slot 0's.
template <Wide S>
__device__ __forceinline__ void attend_page(const Params& p, const WideTables& tables,
                                            const std::uint8_t* page, int position, int begin, int end, int,
                                            const Queries<S>& queries, Running<S>& running) {
  float about_centre[S::kBlocks][2];
  wide_centre_scores<S>(p, page, queries, about_centre);
  const bool plain =
      !__any_sync(~0u, p.cap > 0 || begin > 0 || end < kPageTokens || queries.highest_of_all > position ||
                           queries.lowest_of_all != queries.highest_of_all);
#pragma unroll 1
  for (int token = 0; token < kPageTokens; token += kWideStep) {
    WideScores<S> scores;
    WideWeights<S> weights;
    with_bits<S>(p.a.pages.format.k_bits, [&](auto bits) {
      add_wide_plane<S, bits.value, 0>(page, token, tables.keys, queries, scores);
    });
    weigh_wide<S>(p, page, token, queries, about_centre, position, begin, end, plain, scores, running,
                  weights);
    add_wide_values<S>(p, tables, page, token, weights, running);
  }
}

// What a running sum of 1 stands for, in values.
__device__ __forceinline__ float wide_values_unit(const Params& p) {
  return kStepsOfOne / core::kScaleUnit / (p.a.pages.format.v_bits == 4 ? 2.0f : 1.0f);
}

}  // namespace turboquant::kernels::cuda::few_rows
