// SPDX-License-Identifier: Apache-2.0
// Decode attention on pages of codes, in four steps from plain to fast. Read them in order:
//
//   1_naive.cu   a block a query head, code by code
//   2_split.cu   the history split over the device, every page decoded once for the heads that share it
//   3_packed.cu  16-byte loads, eight codes from one word by byte permutes, integer dot products
//   4_tensor.cu  the same integers by tensor cores
//
// Each is one decode step: one query a sequence against its whole history, pages of format v1
// (turboquant/format.h) at head_dim 128, 4/4 bits. What they leave out is what the library's kernel has
// on top: rotation, the fringe, the step's own token, windows, other widths, and copies that run ahead.
//
//   make gpu-ladder      builds, checks each against double precision, times each beside a plain read
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "turboquant/format.h"

namespace ladder {

inline constexpr turboquant::PageFormat kFormat{128, 4, 4};
inline constexpr int kHeadDim = 128, kKvHeads = 8, kQueryHeads = 32;
inline constexpr int kGroup = kQueryHeads / kKvHeads;  // query heads that read one KV head: 4
inline constexpr int kPageTokens = turboquant::kPageTokens;
inline constexpr int kPageBytes = static_cast<int>(kFormat.page_bytes());

// Queries arrive rotated and as 16-bit integers times this step, |integer| <= kLargest16, so that rungs
// which compute with floats and rungs which compute with integers start from the same numbers.
inline constexpr float kQueryStep = 1.0f / 4096;
// The largest integer whose two bytes, high and low, are both in [-128, 127].
inline constexpr int kLargest16 = 127 * 256 + 127;

// On the device. Outputs stay in the rotated domain, where pages are.
struct Problem {
  int sequences, max_pages;
  const std::int32_t* page_table;  // [sequences, max_pages]
  const std::int32_t* lengths;     // [sequences], at least 1
  const std::uint8_t* pages;       // [pages, kKvHeads, kPageBytes]
  const std::int16_t* queries;     // [sequences, kQueryHeads, kHeadDim]
  float* out;                      // [sequences, kQueryHeads, kHeadDim]
  float* partials;                 // [sequences, kQueryHeads, splits, kPartialFloats]: merge.cuh
  int max_length, sm_count;        // on the host too: they shape the grid
};

using Rung = void (*)(const Problem&, cudaStream_t);
void naive(const Problem& problem, cudaStream_t stream);
void split(const Problem& problem, cudaStream_t stream);
void packed(const Problem& problem, cudaStream_t stream);
void tensor(const Problem& problem, cudaStream_t stream);

// Reads `bytes` (a multiple of 16) once, 16 bytes a load: what no kernel here can beat.
void read(const void* data, std::size_t bytes, float* sink, cudaStream_t stream);

// The same attention of one query head in double precision, on the host: check.cc.
struct Expected {
  double out[kHeadDim];
  // The standard deviation that a coordinate's error has where fp32 sums and 16-bit weights round.
  double deviation[kHeadDim];
};
// pages: of one KV head, in the order of the sequence, [pages, kPageBytes].
Expected attend_in_double(const std::uint8_t* pages, const std::int16_t* query, int length);

}  // namespace ladder
