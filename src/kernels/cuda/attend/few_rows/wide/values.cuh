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

// 32 tokens' codes of V in registers, those of the first 32 coordinates expanded: at hand when the weights
// are.
template <class S>
struct ValuesAtHand {
  static constexpr int kBlocks = S::kDim / 32;
  ValueBlock<S::kBits, 4> words[kBlocks];
  WideCodes first[4];
  int half;

  __device__ __forceinline__ void load(const WideTables& tables, const std::uint8_t* area, int token) {
    half = token / 32;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) words[i].template load<S::kDim>(area, i, half);
#pragma unroll
    for (int j = 0; j < 4; ++j) first[j] = expand<S::kBits>(tables.values, words[0].selector(j, half));
  }
  __device__ __forceinline__ void add(const WideTables& tables, int block, const WideWeights<S>& weights,
                                      Running<S>& running) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const WideCodes codes =
          block == 0 ? first[j] : expand<S::kBits>(tables.values, words[block].selector(j, half));
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int b = 0; b < S::kBlocks; ++b)
          mma_f16<false>(running.values[b][4 * block + j], weights.x[b][h], codes.x[2 * h],
                         codes.x[2 * h + 1]);
    }
  }
};

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

// Whether every row sees all of a page's slots, and there is no softcap: the same in all lanes.
template <Wide S>
__device__ __forceinline__ bool is_plain(const Params& p, int position, int begin, int end,
                                         const Queries<S>& queries) {
  return !__any_sync(~0u, p.cap > 0 || begin > 0 || end < kPageTokens || queries.highest_of_all > position ||
                              queries.lowest_of_all != queries.highest_of_all);
}

// A page. Its slots [begin, end) are its own (the fringe holds the others); `position` is slot 0's.
template <Wide S>
__device__ __forceinline__ void attend_page(const Params& p, const WideTables& tables,
                                            const std::uint8_t* page, int position, int begin, int end, int,
                                            const Queries<S>& queries, Running<S>& running) {
  float about_centre[S::kBlocks][2];
  CentreScores<S> centre;
#pragma unroll
  for (int s = 0; s < S::kSteps; ++s) centre.add(p, page, queries, s);
  centre.get(p, page, queries, about_centre);
  const bool plain = is_plain<S>(p, position, begin, end, queries);
#pragma unroll 1
  for (int token = 0; token < kPageTokens; token += kWideStep) {
    WideScores<S> scores;
    WideWeights<S> weights;
    with_bits<S>(p.a.pages.format.k_bits, [&](auto bits) {
      add_wide_plane<S, bits.value, 0>(page, token, tables.keys, queries, scores, [](int) {});
    });
    weigh_wide<S>(p, page, token, queries, about_centre, position, begin, end, plain, scores, running,
                  weights, [] {});
    add_wide_values<S>(p, tables, page, token, weights, running);
  }
}

// The same where registers hold more than one thing at a time: the centre beside the first scores, the first
// values beside the second scores, and values looked up beside the softmax, which waits for itself. With two
// warps a scheduler, what a warp waits for is what a page costs.
template <Wide S>
requires(S::kPipelined) __device__ __forceinline__
    void attend_page(const Params& p, const WideTables& tables, const std::uint8_t* page, int position,
                     int begin, int end, int, const Queries<S>& queries, Running<S>& running) {
  static_assert(kPageTokens == 2 * kWideStep);
  float about_centre[S::kBlocks][2];
  const bool plain = is_plain<S>(p, position, begin, end, queries);
  CentreScores<S> centre;
  WideScores<S> scores;
  add_wide_plane<S, S::kBits, 0>(page, 0, tables.keys, queries, scores, [&](int i) {
    centre.add(p, page, queries, 2 * i);
    centre.add(p, page, queries, 2 * i + 1);
  });
  centre.get(p, page, queries, about_centre);
#pragma unroll 1
  for (int token = 0; token < kPageTokens; token += kWideStep) {
    WideWeights<S> weights;
    ValuesAtHand<S> values;
    weigh_wide<S>(p, page, token, queries, about_centre, position, begin, end, plain, scores, running,
                  weights, [&] { values.load(tables, page + p.v_codes, token); });
    if (token == 0) {
      add_wide_plane<S, S::kBits, 0>(page, kWideStep, tables.keys, queries, scores,
                                     [&](int i) { values.add(tables, i, weights, running); });
    } else {
#pragma unroll
      for (int i = 0; i < S::kDim / 32; ++i) values.add(tables, i, weights, running);
    }
  }
}

// What a running sum of 1 stands for, in values.
__device__ __forceinline__ float wide_values_unit(const Params& p) {
  return kStepsOfOne / core::kScaleUnit / (p.a.pages.format.v_bits == 4 ? 2.0f : 1.0f);
}

}  // namespace turboquant::kernels::cuda::few_rows
