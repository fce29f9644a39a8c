// SPDX-License-Identifier: Apache-2.0
// The softmax of one warp over pages of integer scores, for rungs 3 and 4. Lane 4 g + q holds head q's
// scores of the 8 tokens g + 8 j of a page; weights leave as integers, ready for integer products.
#pragma once

#include "merge.cuh"

namespace ladder {

// What the values' products need of a page: weight times value scale of token g + 8 j as an integer of 16
// bits, in two bytes. Word i holds tokens g + 8 (4 i + n), n = 0..3: one register of the values' operand.
struct Weights {
  std::uint32_t high[2], low[2];
  float step;    // an integer's worth
  float shrink;  // of everything summed before this page
};

// The largest of the 8 lanes that hold one head.
__device__ inline float largest_of_head(float x) {
  for (int apart = 4; apart < 32; apart *= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, apart));
  return x;
}
__device__ inline float sum_of_head(float x) {
  for (int apart = 4; apart < 32; apart *= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}

class Softmax {
 public:
  // products: the integer q.codes, and q.centre of the page for this lane's head. Slots from `tokens` on
  // hold anything. Each area of scales is in the order [g][j], so a lane's 8 are 16 bytes.
  __device__ Weights next(const int (&products)[8], int centre_product, const std::uint8_t* page,
                          int tokens) {
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    float scores[8], value_scales[8], tile = -INFINITY;
    const float centre = static_cast<float>(centre_product) * (centre_step(page) * kScoreUnit);
    load_halves(page + kFormat.k_scales_offset() + 16 * g, scores);
    load_halves(page + kFormat.v_scales_offset() + 16 * g, value_scales);
    for (int j = 0; j < 8; ++j) {
      const float scaled = static_cast<float>(products[j]) * (fabsf(scores[j]) * (kScaleUnit * kScoreUnit));
      scores[j] = scaled + (__signbitf(scores[j]) ? 0.0f : centre);
      if (g + 8 * j >= tokens) scores[j] = -INFINITY, value_scales[j] = 0;
      tile = fmaxf(tile, scores[j]);
    }
    const float before = largest_;
    largest_ = fmaxf(largest_, largest_of_head(tile));

    // The integers are relative to the page's largest, so a long tail keeps its 16 bits.
    float most = 0, sum = 0, weights[8];
    for (int j = 0; j < 8; ++j) {
      const float weight = exp2f(scores[j] - largest_);
      sum += weight;
      weights[j] = weight * value_scales[j];
      most = fmaxf(most, weights[j]);
    }
    most = largest_of_head(most);
    const float per_unit = most > 0 ? kLargest16 / most : 0.0f;
    int x[8], total = 0;
    for (int j = 0; j < 8; ++j) total += x[j] = __float2int_rn(weights[j] * per_unit);

    Weights out;
    out.step = most * (1.0f / kLargest16);
    out.shrink = exp2f(before - largest_);
    for (int i = 0; i < 2; ++i) {
      const TwoBytes word = pack(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
      out.high[i] = word.high, out.low[i] = word.low;
    }
    sum_ = sum_ * out.shrink + sum;
    scaled_sum_ = scaled_sum_ * out.shrink + static_cast<float>(total) * out.step;
    return out;
  }

  // At the end. A value is scale / 32 (b + 1/2), b the byte: the halves add up to this, for each coordinate.
  __device__ float halves() const { return 0.5f * sum_of_head(scaled_sum_); }
  __device__ float sum() const { return sum_of_head(sum_); }
  __device__ float largest() const { return largest_; }

 private:
  static __device__ void load_halves(const std::uint8_t* area, float (&out)[8]) {
    const uint4 words = *reinterpret_cast<const uint4*>(area);
    const std::uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    for (int k = 0; k < 4; ++k) {
      const float2 two = __half22float2(reinterpret_cast<const __half2&>(pairs[k]));
      out[2 * k] = two.x, out[2 * k + 1] = two.y;
    }
  }

  float largest_ = -INFINITY;
  float sum_ = 0, scaled_sum_ = 0;  // of this lane's tokens
};

// Values are scale / 64 (2 b + 1) = scale / 32 (b + 1/2).
inline constexpr float kValueUnit = 2.0f * kScaleUnit;

// In rungs 3 and 4 a warp is a worker: which part of which KV head of which sequence it takes.
inline constexpr int kWorkers = 4;  // a block
struct Worker {
  int sequence, kv_head, index;
  bool exists;
};
__device__ inline Worker worker_of(const Problem& p, int splits) {
  const int worker = static_cast<int>(blockIdx.x) * kWorkers + static_cast<int>(threadIdx.x) / 32;
  const int segment = worker / splits;
  return {segment / kKvHeads, segment % kKvHeads, worker % splits, segment < p.sequences * kKvHeads};
}
inline dim3 grid_of_workers(const Problem& p, int splits) {
  return dim3(static_cast<unsigned>((p.sequences * kKvHeads * splits + kWorkers - 1) / kWorkers));
}

}  // namespace ladder
