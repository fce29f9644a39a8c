// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// The centroids of the page format, as integers. Format v1 *defines* a centroid as a scale times one of
// these, so that dot products of codes are integers and every machine encodes the same codes.
// Rounding costs under 0.1 % of the error (docs/algorithm.md).
//
// Everything here has internal linkage: files built for several instruction sets include it, and the linker
// must not merge their copies (HACKING.md, "One file, one instruction set").
namespace turboquant::core {

inline constexpr int kMaxMagnitudes = 8;

// A coordinate is coded through its level, 255 |x| / max |x| rounded (kernels/encode_rules.h). Everything
// after the level is integer arithmetic. A candidate is a scale at which the vector may be coded: thresholds
// on levels, thus relative to the largest coordinate, which predicts the best scale better than the norm
// does.
inline constexpr int kMaxLevel = 255;
inline constexpr int kMaxCandidates = 6;

struct CodeTable {
  int bits;
  int magnitude_count;                      // 1 << (bits - 1); the code's sign bit negates
  int half_steps;                           // 1, or 2: the entries are 2 m + 1, in half steps (m + 1/2)
  std::uint8_t magnitudes[kMaxMagnitudes];  // ascending
  int candidates;
  // thresholds[j][k]: the least level that gets a magnitude above k as candidate j. Next to the midpoints of
  // neighbouring magnitudes, where the largest coordinate is meant to be `top` times the largest magnitude,
  // and where a parabola passes that GPUs compute instead (cuda/encode/curve.cuh).
  std::uint8_t thresholds[kMaxCandidates][kMaxMagnitudes - 1];
  // The stored scale makes the codes' part along the vector as long as the vector, not the codes (rule 6).
  bool unbiased = false;
};

static inline constexpr int index_of(const CodeTable& table, int candidate, int level) {
  int index = 0;
  while (index + 1 < table.magnitude_count && level >= table.thresholds[candidate][index]) ++index;
  return index;
}

static constexpr CodeTable kKey4{4,
                                 8,
                                 1,
                                 {6, 18, 30, 43, 57, 73, 93, 122},
                                 3,
                                 {{26, 51, 77, 106, 139, 177, 224},   // top 0.99
                                  {24, 47, 72, 99, 129, 164, 208},    // 1.07
                                  {23, 44, 68, 94, 122, 156, 197}}};  // 1.13
// GPUs negate a 4-bit value's m by complement, -m - 1, and add 1/2 to the sum: hence the half steps.
static constexpr CodeTable kValue4{4,
                                   8,
                                   2,
                                   {11, 35, 59, 85, 113, 145, 185, 243},
                                   3,
                                   {{25, 50, 76, 106, 138, 176, 223},   // top 0.99
                                    {24, 47, 72, 99, 130, 166, 210},    // 1.05
                                    {22, 44, 67, 93, 122, 156, 197}}};  // 1.13
static constexpr CodeTable kEither3{
    3, 4,
    1, {13, 40, 71, 113},
    6, {{59, 127, 207}, {55, 116, 188}, {50, 106, 172}, {46, 98, 160}, {43, 91, 148}, {39, 82, 133}}};
static constexpr CodeTable kEither2{2, 2, 1, {37, 123}, 6, {{123}, {108}, {95}, {86}, {78}, {67}}};

static inline constexpr CodeTable unbiased(CodeTable table) {
  table.unbiased = true;
  return table;
}
// Sums of many values keep what their errors have in common: that they are short.
static constexpr CodeTable kValue3 = unbiased(kEither3), kValue2 = unbiased(kEither2);

static inline constexpr const CodeTable& key_table(int bits) {
  return bits == 4 ? kKey4 : bits == 3 ? kEither3 : kEither2;
}
static inline constexpr const CodeTable& value_table(int bits) {
  return bits == 4 ? kValue4 : bits == 3 ? kValue3 : kValue2;
}

// A stored scale is 64 times the norm over the norm of the codes (in steps); with an unbiased table 64 times
// |x|^2 over <x, codes>.
inline constexpr float kScaleUnit = 64.0f;

// The same where the norm is that of levels, over 255: 64 half_steps / 255.
static inline constexpr float scale_unit(const CodeTable& table) {
  return kScaleUnit * static_cast<float>(table.half_steps) / static_cast<float>(kMaxLevel);
}

}  // namespace turboquant::core
