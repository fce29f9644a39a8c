// SPDX-License-Identifier: Apache-2.0
// Rung 4: the integer products of rung 3 by tensor cores, and loads that run ahead. One mma.m16n8k32 is
// 16 x 32 codes times 32 x 8 bytes, and the 8 columns are just 4 heads x {high, low}. The page's order of
// bytes is the lanes' order: what a lane loads is, after a permute, what the instruction wants of it.
//
//   scores   A = 16 tokens x 32 coordinates of K    B = 32 coordinates x {high, low} of 4 queries
//   values   A = 16 coordinates x 32 tokens of V    B = 32 tokens x {high, low} of 4 heads' weights
//
// Positive and negative keys are two products, the second with -query: a magnitude is below 128, so a permute
// whose selector has bit 3 set gives 0, and nothing has to be negated. A code takes 0.9 (K) or 1.1 (V)
// instructions to decode, and 2.1 in all.
//
// What bounds it: memory, and what is not overlapped with it: a warp waits for its pages while it has nothing
// else to do, and the merge is a launch of its own. The library's kernel lets copies into shared memory run
// ahead and merges where the last part ends (docs/attend.md).
//
// On an H100 143 us at 32 x 11,264, 1.13 times a plain read; 21 us at 1 x 11,264, 3.7 times.
#include "softmax.cuh"

namespace ladder {
namespace {

// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-fragment-mma-16832
// Lane 4 g + q holds of A rows g (a0, a2) and g + 8 (a1, a3), columns 4 q .. + 3 and 16 + 4 q .. + 3; of B
// column g, rows 4 q .. + 3 (b0) and 16 + 4 q .. + 3 (b1); of the sums rows g and g + 8, columns 2 q and
// 2 q + 1, which here are the high and the low byte of head q.
struct A {
  std::uint32_t a0, a1, a2, a3;
};
__device__ void multiply(int (&sum)[4], const A& a, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a.a0), "r"(a.a1), "r"(a.a2), "r"(a.a3), "r"(b0), "r"(b1));
}

// Coordinates 32 i .. + 31 of the queries, and of their negatives.
struct Queries {
  std::uint32_t plus[4][2], minus[4][2];
};
__device__ Queries load_queries(const Problem& p, const Worker& at, int g, int q) {
  Queries out;
  const std::int16_t* query = query_of(p, at.sequence, at.kv_head * kGroup + g / 2);
  for (int k = 0; k < 8; ++k) {
    const short4 x = reinterpret_cast<const short4*>(query)[4 * k + q];  // coordinates 16 k + 4 q .. + 3
    const TwoBytes plus = pack(x.x, x.y, x.z, x.w), minus = pack(-x.x, -x.y, -x.z, -x.w);
    out.plus[k / 2][k % 2] = g % 2 == 0 ? plus.high : plus.low;
    out.minus[k / 2][k % 2] = g % 2 == 0 ? minus.high : minus.low;
  }
  return out;
}

// Eight loads of 16 bytes, in flight until the codes are used.
struct Codes {
  uint4 words[8];
};
__device__ Codes load(const std::uint8_t* area, int lane) {
  Codes out;
#pragma unroll
  for (int k = 0; k < 8; ++k) out.words[k] = __ldcs(reinterpret_cast<const uint4*>(area) + 32 * k + lane);
  return out;
}
__device__ std::uint32_t word(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

__device__ A positive_keys(std::uint32_t w, std::uint32_t v) {
  return {permute(kKeyLow, kKeyHigh, w), permute(kKeyLow, kKeyHigh, v), permute(kKeyLow, kKeyHigh, w >> 16),
          permute(kKeyLow, kKeyHigh, v >> 16)};
}
__device__ A value_operand(std::uint32_t w, std::uint32_t v) {
  return {value_bytes(w, 0), value_bytes(v, 0), value_bytes(w, 1), value_bytes(v, 1)};
}

// products[j] of token g + 8 j, head q.
__device__ void scores(const Codes& keys, const Queries& queries, int (&products)[8]) {
#pragma unroll
  for (int tile = 0; tile < 4; ++tile) {  // 16 tokens
    int sum[4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t w = word(keys.words[2 * tile], i), v = word(keys.words[2 * tile + 1], i);
      multiply(sum, positive_keys(w, v), queries.plus[i][0], queries.plus[i][1]);
      multiply(sum, positive_keys(w ^ 0x88888888u, v ^ 0x88888888u), queries.minus[i][0],
               queries.minus[i][1]);
    }
    products[2 * tile] = 256 * sum[0] + sum[1];
    products[2 * tile + 1] = 256 * sum[2] + sum[3];
  }
}

// The centre is one more row of keys: row 0 of a tile whose other rows are 0.
__device__ int centre_product(const std::uint8_t* page, const Queries& queries, int g, int q) {
  const auto* centre = reinterpret_cast<const std::uint32_t*>(page + kFormat.centre_offset());
  int sum[4] = {};
  for (int i = 0; i < 4; ++i) {
    const A row = {g == 0 ? centre[8 * i + q] : 0, 0, g == 0 ? centre[8 * i + 4 + q] : 0, 0};
    multiply(sum, row, queries.plus[i][0], queries.plus[i][1]);
  }
  return __shfl_sync(kAllLanes, 256 * sum[0] + sum[1], q);  // from lane q, whose g is 0
}

// Column g of B is head g / 2, its high (g even) or low bytes; rows 4 q + n are tokens 2 q + 8 n of 32, rows
// 16 + 4 q + n tokens 2 q + 1 + 8 n. Those are words of lanes 4 (2 q) + head and 4 (2 q + 1) + head.
__device__ void values(const Codes& codes, const Weights& weights, int g, int q, float (&out)[16]) {
  std::uint32_t b[2][2];
  for (int i = 0; i < 2; ++i)
    for (int h = 0; h < 2; ++h) {
      const int from = 4 * (2 * q + h) + g / 2;
      const std::uint32_t high = __shfl_sync(kAllLanes, weights.high[i], from);
      const std::uint32_t low = __shfl_sync(kAllLanes, weights.low[i], from);
      b[i][h] = g % 2 == 0 ? high : low;
    }
#pragma unroll
  for (int tile = 0; tile < 8; ++tile) {  // 16 coordinates: words 2 (tile % 2) and + 1 of block tile / 2
    int sum[4] = {};
    for (int i = 0; i < 2; ++i) {
      const uint4& words = codes.words[4 * i + tile / 2];
      const A a = value_operand(word(words, tile % 2 * 2), word(words, tile % 2 * 2 + 1));
      multiply(sum, a, b[i][0], b[i][1]);
    }
    out[2 * tile] = out[2 * tile] * weights.shrink + static_cast<float>(256 * sum[0] + sum[1]) * weights.step;
    out[2 * tile + 1] =
        out[2 * tile + 1] * weights.shrink + static_cast<float>(256 * sum[2] + sum[3]) * weights.step;
  }
}

// 3 blocks an SM: 168 registers a thread, which two pages' codes need.
__global__ void __launch_bounds__(32 * kWorkers, 3) tensor_kernel(Problem p, int splits) {
  const Worker at = worker_of(p, splits);
  if (!at.exists) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int length = p.lengths[at.sequence];
  const Part part = part_of(length, at.index, splits);
  const Queries queries = load_queries(p, at, g, q);

  Softmax softmax;
  float out[16] = {};  // coordinates 16 tile + g and + 8, head q
  if (part.first < part.last) {
    const std::uint8_t* page = page_of(p, at.sequence, part.first, at.kv_head);
    Codes keys = load(page, lane);
    for (int index = part.first; index < part.last; ++index) {
      const Codes value_codes = load(page + kFormat.v_codes_offset(), lane);
      const std::uint8_t* next =
          index + 1 < part.last ? page_of(p, at.sequence, index + 1, at.kv_head) : page;
      int products[8];
      scores(keys, queries, products);
      const int centre = centre_product(page, queries, g, q);
      keys = load(next, lane);  // while this page's values are at work
      const Weights weights = softmax.next(products, centre, page, length - index * kPageTokens);
      values(value_codes, weights, g, q, out);
      page = next;
    }
  }

  const float halves = softmax.halves(), sum = softmax.sum();
  float* partial = partial_of(p, at.sequence, at.kv_head * kGroup + q, at.index, splits);
  for (int k = 0; k < 16; ++k) partial[8 * k + g] = (out[k] + halves) * kValueUnit;
  if (g == 0) partial[kHeadDim] = softmax.largest(), partial[kHeadDim + 1] = sum;
}

}  // namespace

void tensor(const Problem& problem, cudaStream_t stream) {
  const int splits = splits_for(problem, problem.sm_count * 3 * kWorkers);
  tensor_kernel<<<grid_of_workers(problem, splits), 32 * kWorkers, 0, stream>>>(problem, splits);
  merge(problem, splits, stream);
}

}  // namespace ladder
