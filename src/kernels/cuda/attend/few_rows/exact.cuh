// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/values.cuh"

// Pieces of the fringe: tiles of 16 tokens in shared memory, [token][K, V][d] of fp16 in the rotated domain,
// as it stores them.
namespace turboquant::kernels::cuda::few_rows {

// Four bytes, as fp16: 1024 + x is 0x6400 + x.
__device__ __forceinline__ void bytes_to_halves(std::uint32_t bytes, std::uint32_t& low,
                                                std::uint32_t& high) {
  const std::uint32_t biased = bytes ^ 0x80808080u;
  const __half2 bias = __floats2half2_rn(1152.0f, 1152.0f);
  const std::uint32_t pairs[2] = {prmt(biased, 0x64646464u, 0x4140), prmt(biased, 0x64646464u, 0x4342)};
  const __half2 a = __hsub2(reinterpret_cast<const __half2&>(pairs[0]), bias);
  const __half2 b = __hsub2(reinterpret_cast<const __half2&>(pairs[1]), bias);
  low = reinterpret_cast<const std::uint32_t&>(a);
  high = reinterpret_cast<const std::uint32_t&>(b);
}

// All warps that take the same tile.
template <class S>
__device__ __forceinline__ void tile_sync() {
  if constexpr (S::kSharing == 1 || S::kSplit > 1) __syncwarp();
  else stream_sync<S>();
}

// Zeroes the values of unused slots and of tokens with NaN or infinity (a weight of 0 must not make NaN of
// them); returns the latter as bits. Bit t of `used` says whether slot t holds a token.
template <class S>
__device__ __forceinline__ std::uint32_t clean_values(std::uint8_t* tile, std::uint32_t used) {
  constexpr int kChunks = S::kDim / 8;  // 16 bytes each, of a token's values
  const int lane = static_cast<int>(threadIdx.x & 31);
  std::uint32_t spoiled = 0;
  const auto chunk = [&](int x) {
    return reinterpret_cast<uint4*>(tile + (x / kChunks) * 4 * S::kDim + 2 * S::kDim + (x % kChunks) * 16);
  };
#pragma unroll 2
  for (int x = lane; x < kExactTokens * kChunks; x += 32) {
    const uint4 v = *chunk(x);
    std::uint32_t bad = 0;
    for (const std::uint32_t pair : {v.x, v.y, v.z, v.w})
      bad |= ((pair & 0x7c007c00u) + 0x04000400u) & 0x80008000u;
    if (bad != 0) spoiled |= 1u << x / kChunks;
  }
  spoiled = __reduce_or_sync(~0u, spoiled);
  const std::uint32_t zero = (spoiled | ~used) & ((1u << kExactTokens) - 1);
  tile_sync<S>();
#pragma unroll 1
  for (int x = lane; zero != 0 && x < kExactTokens * kChunks; x += 32)
    if ((zero >> (x / kChunks) & 1) != 0) *chunk(x) = {0, 0, 0, 0};
  tile_sync<S>();
  return spoiled & used;
}

// One tile. This lane's two tokens, slots g and g + 8, are at positions[0] and [1]; below 0: the slot is not
// used. Bits of slots: used; with NaN or infinity in their values (clean_values).
template <Narrow S>
__device__ __forceinline__ void attend_exact(const Params& p, std::uint8_t* tile, const Queries<S>& queries,
                                             const int (&positions)[2], std::uint32_t used,
                                             std::uint32_t spoiled, Running<S>& running) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  float c[S::kTiles][4] = {};
  const std::uint8_t* keys = tile + g * 4 * S::kDim + 8 * q;
#pragma unroll
  for (int w = 0; w < S::kQueryWords; ++w) {  // 16 coordinates; lane q has 4 q .. 4 q + 3 as its columns
    const uint2 upper = *reinterpret_cast<const uint2*>(keys + 32 * w);
    const uint2 lower = *reinterpret_cast<const uint2*>(keys + 32 * w + 8 * 4 * S::kDim);
    const OperandA a{{upper.x, lower.x, upper.y, lower.y}};
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      std::uint32_t b0, b1;
      const QueryOperand b = queries.get(t, w / 2);
      bytes_to_halves(w % 2 == 0 ? b.q0 : b.q1, b0, b1);
      mma_f16<false>(c[t], a, b0, b1);
    }
  }

  std::uint32_t weights[S::kTiles][2];
  float gains[S::kTiles];
  Step steps[S::kTiles];
  const int odd = g & 1, source = 8 * q + (g >> 1);
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    float score[2], sum = 0;
    std::uint32_t high = 0, low = 0;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      score[j] = (c[t][2 * j] * 256.0f + c[t][2 * j + 1]) * queries.unit[t];
      if (p.cap > 0) score[j] = soft_cap(score[j], p.cap);
      if (positions[j] < max(queries.lowest[t], 0)) score[j] = kUnseen;
      else if ((spoiled >> (g + 8 * j) & 1) != 0) score[j] = __int_as_float(0x7fffffff);
    }
    steps[t] = next_maximum(fmaxf(score[0], score[1]), running.maximum[t]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float weight = exp2_approx(score[j] - steps[t].tile_maximum);
      sum += weight;
      const __half part = __float2half_rn(weight);
      const __half rest = __float2half_rn(weight - __half2float(part));
      high |= static_cast<std::uint32_t>(__half_as_ushort(part)) << (16 * j);
      low |= static_cast<std::uint32_t>(__half_as_ushort(rest)) << (16 * j);
    }
    running.sum[t] = fmaf(running.sum[t], steps[t].keep, sum * steps[t].gain);
    running.half_steps[t] *= steps[t].keep;
    // As in weigh(): even columns want the high part, odd ones the rest, of tokens 2 q (+ 8) and 2 q + 1
    // (+ 8).
    const std::uint32_t near = __shfl_sync(~0u, odd ? low : high, source + 4 * odd);
    const std::uint32_t far = __shfl_sync(~0u, odd ? high : low, source + 4 - 4 * odd);
    const std::uint32_t even_tokens = odd ? far : near, odd_tokens = odd ? near : far;
    weights[t][0] = prmt(even_tokens, odd_tokens, 0x5410);
    weights[t][1] = prmt(even_tokens, odd_tokens, 0x7632);
    gains[t] = steps[t].gain;
  }
  keep_sums<S>(steps, running);

  const int matrix = lane >> 3, token = (matrix >> 1) * 8 + (lane & 7);
  const std::uint32_t values = shared_address(tile + token * 4 * S::kDim + 2 * S::kDim + (matrix & 1) * 16);
#pragma unroll
  for (int w = 0; w < S::kQueryWords; ++w) {
    const OperandA a = ldmatrix_x4_transposed(values + 32 * static_cast<std::uint32_t>(w));
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      float sums[4];
      mma_f16<true>(sums, a, weights[t][0], weights[t][1]);
      running.values[t][2 * w] = fmaf(sums[0] + sums[1], gains[t], running.values[t][2 * w]);
      running.values[t][2 * w + 1] = fmaf(sums[2] + sums[3], gains[t], running.values[t][2 * w + 1]);
    }
  }
}

// The position of a fringe slot, or -1: it holds nothing that counts.
__device__ __forceinline__ int fringe_position(const Fringe& fringe, const Sequence& sequence, int slot) {
  if (slot < fringe.first) return sequence.start + slot < sequence.first_end ? sequence.start + slot : -1;
  const int place = slot - fringe.first, last = sequence.length - 1;
  if (place >= fringe.recent || last < 0) return -1;
  int behind = last % fringe.recent - place;
  if (behind < 0) behind += fringe.recent;
  return last - behind >= sequence.recent_start ? last - behind : -1;
}

// A piece of the fringe, which lies in the tile.
template <class S>
__device__ __forceinline__ void attend_piece(const Params& p, const Sequence& sequence, int piece,
                                             std::uint8_t* tile, const Queries<S>& queries,
                                             Running<S>& running) {
  const int g = static_cast<int>(threadIdx.x & 31) >> 2;
  int positions[2];
#pragma unroll
  for (int j = 0; j < 2; ++j)
    positions[j] = fringe_position(p.a.fringe, sequence, piece * kExactTokens + g + 8 * j);
  std::uint32_t used = 0;
#pragma unroll
  for (int j = 0; j < 2; ++j) used |= positions[j] >= 0 ? 1u << (g + 8 * j) : 0u;
  used = __reduce_or_sync(~0u, used);
  if (used != 0) attend_exact<S>(p, tile, queries, positions, used, clean_values<S>(tile, used), running);
  tile_sync<S>();
}

}  // namespace turboquant::kernels::cuda::few_rows
