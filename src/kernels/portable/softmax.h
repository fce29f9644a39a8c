// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/portable/portable.h"

// The running softmax of a block of queries over tiles of 64 tokens.
namespace turboquant::kernels::TQ_ISA {

static constexpr int kMaxRows = 32;  // (query, head of the group) pairs a block

// What a block has summed so far. exp weights are relative to `largest`.
struct Running {
  alignas(64) float largest[kMaxRows];
  alignas(64) float sum[kMaxRows];
  alignas(64) float history[kMaxRows * kMaxDim];  // [row][d], rotated domain
  alignas(64) float own[kMaxRows * kMaxDim];      // [row][d], the model's basis
};

static inline void scale_row(float* row, int d, float factor) {
  for (int e = 0; e < d; e += kLanes) store(row + e, load(row + e) * broadcast(factor));
}

// Replaces scores[64] by their weights, of which those outside slots [begin, end) are 0, and brings the
// sums of row r to the new maximum. False, and nothing changed, if the row sees none of the tile.
static inline bool weigh(float* scores, int begin, int end, Running& running, int r, int d) {
  if (begin >= end) return false;
  constexpr float kNone = -HUGE_VALF;
  for (int t = 0; t < kPageTokens; ++t) scores[t] = t >= begin && t < end ? scores[t] : kNone;
  Lanes most = broadcast(running.largest[r]);
  for (int t = 0; t < kPageTokens; t += kLanes) most = max(load(scores + t), most);
  float lanes[kLanes], largest = running.largest[r];
  store(lanes, most);
  for (int i = 0; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  if (largest == kNone) largest = 0.0f;  // only NaN or -infinity: weights of NaN or 0
  if (largest > running.largest[r]) {
    const float factor = std::exp(running.largest[r] - largest);
    running.sum[r] *= factor;
    scale_row(running.history + r * d, d, factor);
    scale_row(running.own + r * d, d, factor);
    running.largest[r] = largest;
  }
  Lanes total = {};
  for (int t = 0; t < kPageTokens; t += kLanes) {
    const Lanes weights = exp_negative(load(scores + t) - broadcast(running.largest[r]));
    store(scores + t, weights);
    total += weights;
  }
  running.sum[r] += sum(total);
  return true;
}

}  // namespace turboquant::kernels::TQ_ISA
