// SPDX-License-Identifier: Apache-2.0
// What all rungs share of the device: where a page lies, the codes' integers, bytes of words.
#pragma once

#include <cuda_fp16.h>

#include "core/layout.h"
#include "core/tables.h"
#include "ladder.h"

namespace ladder {

inline constexpr unsigned kAllLanes = 0xffffffffu;
// Scores are kept as powers of two: exp(x) = exp2(x log2 e). 1 / sqrt(128) is the softmax scale.
inline constexpr float kScoreUnit = kQueryStep * 1.4426950408889634f * 0.08838834764831845f;
inline constexpr float kScaleUnit = 1.0f / turboquant::core::kScaleUnit;

__device__ inline const std::uint8_t* page_of(const Problem& p, int sequence, int page, int kv_head) {
  const std::int64_t entry = p.page_table[sequence * p.max_pages + page];
  return p.pages + (entry * kKvHeads + kv_head) * kPageBytes;
}
__device__ inline const std::int16_t* query_of(const Problem& p, int sequence, int head) {
  return p.queries + (static_cast<std::int64_t>(sequence) * kQueryHeads + head) * kHeadDim;
}
__device__ inline float half_at(const std::uint8_t* area, int index) {
  return __half2float(reinterpret_cast<const __half*>(area)[index]);
}
__device__ inline float centre_step(const std::uint8_t* page) {
  return half_at(page + kFormat.centre_step_offset(), 0);
}

// The tables of the format, where a thread can index them.
static __constant__ const turboquant::core::CodeTable kKeyTable = turboquant::core::kKey4;
static __constant__ const turboquant::core::CodeTable kValueTable = turboquant::core::kValue4;

// The integer that a code of 4 bits stands for; its sign is bit 3.
__device__ inline int signed_steps(const turboquant::core::CodeTable& table, int code) {
  const int magnitude = table.magnitudes[code & 7];
  return code < 8 ? magnitude : -magnitude;
}

// Key and value of slot t, coordinate e, exactly as turboquant/format.h defines them.
__device__ inline float key_at(const std::uint8_t* page, int t, int e) {
  const auto at = turboquant::core::key_position(kHeadDim, 4, t, e);
  const float scale = half_at(page + kFormat.k_scales_offset(), turboquant::core::scale_index(t));
  const auto* centre = reinterpret_cast<const std::int8_t*>(page + kFormat.centre_offset());
  const float reference = __signbitf(scale) ? 0.0f : centre_step(page) * centre[e];
  return reference + fabsf(scale) * kScaleUnit * signed_steps(kKeyTable, page[at.byte] >> at.shift & 15);
}
__device__ inline float value_at(const std::uint8_t* page, int t, int e) {
  const auto at = turboquant::core::value_position(kHeadDim, 4, t, e);
  const float scale = half_at(page + kFormat.v_scales_offset(), turboquant::core::scale_index(t));
  const int code = page[kFormat.v_codes_offset() + at.byte] >> at.shift & 15;
  return scale * kScaleUnit * signed_steps(kValueTable, code);
}

// ---- bytes of words

// PRMT,
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-prmt Byte
// j of the result is the byte of b:a that nibble j of `selector` names with its low 3 bits; with bit 3 set,
// that byte's sign bit eight times. A code of 4 bits is such a nibble, and a:b a table of 8 bytes.
__device__ inline std::uint32_t permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
  return out;
}

// Four magnitudes of a table, in one word; of values (T - 1) / 2, since T is odd.
constexpr std::uint32_t table_word(const turboquant::core::CodeTable& table, int first) {
  std::uint32_t word = 0;
  for (int k = 0; k < 4; ++k)
    word |= static_cast<std::uint32_t>(table.magnitudes[first + k] / table.half_steps) << 8 * k;
  return word;
}
inline constexpr std::uint32_t kKeyLow = table_word(turboquant::core::kKey4, 0),
                               kKeyHigh = table_word(turboquant::core::kKey4, 4),
                               kValueLow = table_word(turboquant::core::kValue4, 0),
                               kValueHigh = table_word(turboquant::core::kValue4, 4);

// 255 in each byte whose code, nibbles 4 h .. 4 h + 3 of the word, is negative. Bit 3 of an odd nibble is its
// byte's sign; a shift by 4 makes it so for the even ones.
__device__ inline std::uint32_t signs(std::uint32_t word, int h) {
  return permute(word << 4, word, h == 0 ? 0xd9c8 : 0xfbea);
}
// Four values: m, or its complement -m - 1, where the table says T = 2 m + 1. T / 2 is 1/2 more than this.
__device__ inline std::uint32_t value_bytes(std::uint32_t word, int h) {
  return permute(kValueLow, kValueHigh, (word & 0x77777777u) >> 16 * h) ^ signs(word, h);
}

// x in [-kLargest16, kLargest16] is 256 high + low, both signed bytes.
struct TwoBytes {
  std::uint32_t high, low;
};
__device__ inline TwoBytes two_bytes(int x) {
  return {static_cast<std::uint32_t>(x + 128) >> 8 & 255u, static_cast<std::uint32_t>(x) & 255u};
}
// Four of them, packed into two words.
__device__ inline TwoBytes pack(int a, int b, int c, int d) {
  const TwoBytes x = two_bytes(a), y = two_bytes(b), z = two_bytes(c), w = two_bytes(d);
  return {x.high | y.high << 8 | z.high << 16 | w.high << 24, x.low | y.low << 8 | z.low << 16 | w.low << 24};
}

}  // namespace ladder
