// SPDX-License-Identifier: Apache-2.0
// Rung 3: the page as it was meant to be read. A lane loads 16 bytes, 32 codes; a byte permute turns 4 codes
// at a time into 4 signed bytes; dp4a multiplies them with 4 bytes of the query. Queries and weights have 16
// bits, so each takes two of these products: high bytes and low bytes. No address, table or scale a code.
//
// What bounds it: instructions, and waiting for them. With 4 heads and two bytes a code takes part in 8
// products of 4; with its decoding that is 5.3 instructions, and 5.2 are all that the device issues in the
// time that reading takes. It issues half of that: sums for 4 heads fill the registers, so that only 12 warps
// share an SM.
//
// On an H100 265 us at 32 x 11,264, 2.1 times a plain read; 28 us at 1 x 11,264, 5.1 times.
#include "softmax.cuh"

namespace ladder {
namespace {

// Of one warp. The words of 4 bytes lie in the order in which lanes use them.
struct Shared {
  std::uint32_t query[kGroup][2][4][8];    // head, byte, q, k: coordinates 16 k + 4 q .. + 3
  std::uint32_t weights[kGroup][2][2][8];  // head, byte, i, g: tokens 32 i + g + 8 n
};

// Four signed bytes of a K word, T negated where the code is negative: complement, then add 1. The sum never
// carries into the next byte, because no magnitude is 0.
__device__ std::uint32_t key_bytes(std::uint32_t word, int h) {
  const std::uint32_t negative = signs(word, h);
  const std::uint32_t magnitudes = permute(kKeyLow, kKeyHigh, (word & 0x77777777u) >> 16 * h);
  return (magnitudes ^ negative) + (negative & 0x01010101u);
}

__device__ int dot(std::uint32_t a, std::uint32_t b, int sum) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

__device__ void load_queries(const Problem& p, const Worker& at, int lane, Shared& shared) {
  for (int head = 0; head < kGroup; ++head) {
    const short4 x = reinterpret_cast<const short4*>(
        query_of(p, at.sequence, at.kv_head * kGroup + head))[lane];  // coordinates 4 lane .. + 3
    const TwoBytes words = pack(x.x, x.y, x.z, x.w);
    shared.query[head][0][lane % 4][lane / 4] = words.high;
    shared.query[head][1][lane % 4][lane / 4] = words.low;
  }
  __syncwarp();
}

// Scores of all 64 tokens and 4 heads: products[j] of token g + 8 j, head q.
__device__ void scores(const std::uint8_t* page, const Shared& shared, int g, int q, int (&products)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const uint4 chunk = reinterpret_cast<const uint4*>(page)[32 * j + 4 * g + q];  // row g + 8 j, chunk q
    const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    std::uint32_t keys[8];  // word i, half h: coordinates 32 i + 16 h + 4 q .. + 3
    for (int k = 0; k < 8; ++k) keys[k] = key_bytes(words[k / 2], k % 2);
    for (int head = 0; head < kGroup; ++head) {
      int high = 0, low = 0;
      for (int k = 0; k < 8; ++k) {
        high = dot(keys[k], shared.query[head][0][q][k], high);
        low = dot(keys[k], shared.query[head][1][q][k], low);
      }
      int product = 256 * high + low;  // of a quarter of the coordinates: the 4 lanes of g add up
      product += __shfl_xor_sync(kAllLanes, product, 1);
      product += __shfl_xor_sync(kAllLanes, product, 2);
      if (head == q) products[j] = product;
    }
  }
}

__device__ int centre_product(const std::uint8_t* page, const Shared& shared, int lane, int q) {
  const std::uint32_t centre = reinterpret_cast<const std::uint32_t*>(page + kFormat.centre_offset())[lane];
  int mine = 0;
  for (int head = 0; head < kGroup; ++head) {
    const int high = dot(centre, shared.query[head][0][lane % 4][lane / 4], 0);
    const int low = dot(centre, shared.query[head][1][lane % 4][lane / 4], 0);
    const int product = __reduce_add_sync(kAllLanes, 256 * high + low);
    if (head == q) mine = product;
  }
  return mine;
}

// out[head][4 block + j] += of this lane's quarter of the tokens, coordinate 32 block + 8 j + g.
__device__ void values(const std::uint8_t* page, const Shared& shared, const Weights& weights, int lane,
                       int q, float (&out)[kGroup][16]) {
  const uint4* codes = reinterpret_cast<const uint4*>(page + kFormat.v_codes_offset());
  for (int head = 0; head < kGroup; ++head) {
    const float shrink = __shfl_sync(kAllLanes, weights.shrink, head);
    for (float& x : out[head]) x *= shrink;
  }
#pragma unroll
  for (int block = 0; block < 4; ++block) {
    std::uint32_t words[2][4];  // token half i, coordinate j
    for (int i = 0; i < 2; ++i) reinterpret_cast<uint4&>(words[i]) = codes[(4 * i + block) * 32 + lane];
    for (int head = 0; head < kGroup; ++head) {
      const float step = __shfl_sync(kAllLanes, weights.step, head);
      for (int j = 0; j < 4; ++j) {
        int high = 0, low = 0;
        for (int i = 0; i < 2; ++i)
          for (int h = 0; h < 2; ++h) {  // tokens 32 i + 8 n + 2 q + h
            const std::uint32_t bytes = value_bytes(words[i][j], h);
            high = dot(bytes, shared.weights[head][0][i][2 * q + h], high);
            low = dot(bytes, shared.weights[head][1][i][2 * q + h], low);
          }
        out[head][4 * block + j] += static_cast<float>(256 * high + low) * step;
      }
    }
  }
}

// 3 blocks an SM cost a few spilled registers, and are worth them: loads wait for nothing else.
__global__ void __launch_bounds__(32 * kWorkers, 3) packed_kernel(Problem p, int splits) {
  __shared__ Shared all[kWorkers];
  const Worker at = worker_of(p, splits);
  if (!at.exists) return;
  Shared& shared = all[threadIdx.x / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int length = p.lengths[at.sequence];
  const Part part = part_of(length, at.index, splits);
  load_queries(p, at, lane, shared);

  Softmax softmax;
  float out[kGroup][16] = {};
  for (int index = part.first; index < part.last; ++index) {
    const std::uint8_t* page = page_of(p, at.sequence, index, at.kv_head);
    int products[8];
    scores(page, shared, g, q, products);
    const Weights weights =
        softmax.next(products, centre_product(page, shared, lane, q), page, length - index * kPageTokens);
    __syncwarp();
    for (int i = 0; i < 2; ++i)
      shared.weights[q][0][i][g] = weights.high[i], shared.weights[q][1][i][g] = weights.low[i];
    __syncwarp();
    values(page, shared, weights, lane, q, out);
  }

  const float halves = softmax.halves(), sum = softmax.sum();
  for (int head = 0; head < kGroup; ++head) {
    float* partial = partial_of(p, at.sequence, at.kv_head * kGroup + head, at.index, splits);
    const float more = __shfl_sync(kAllLanes, halves, head);
    for (int k = 0; k < 16; ++k) {  // the 4 lanes of g have the tokens' quarters
      float x = out[head][k];
      x += __shfl_xor_sync(kAllLanes, x, 1);
      x += __shfl_xor_sync(kAllLanes, x, 2);
      if (q == 0) partial[32 * (k / 4) + 8 * (k % 4) + g] = (x + more) * kValueUnit;
    }
    if (lane == head) partial[kHeadDim] = softmax.largest(), partial[kHeadDim + 1] = sum;
  }
}

}  // namespace

void packed(const Problem& problem, cudaStream_t stream) {
  const int splits = splits_for(problem, problem.sm_count * 12);
  packed_kernel<<<grid_of_workers(problem, splits), 32 * kWorkers, 0, stream>>>(problem, splits);
  merge(problem, splits, stream);
}

}  // namespace ladder
