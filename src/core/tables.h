// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// The centroids of the page format, as integers. Format v1 *defines* a centroid as a scale times one of
// these, so that dot products of codes are integers and every machine encodes the same codes.
// Rounding costs 0.2 to 0.3 % of the error at 4 bits and about 0.01 % at 3 and 2 bits (docs/algorithm.md).
//
// Everything here has internal linkage: files built for several instruction sets include it, and the linker
// must not merge their copies (HACKING.md, "One file, one instruction set").
namespace turboquant::core {

inline constexpr int kMaxMagnitudes = 8;

// The scale search tries 0.78, 0.84, ..., 1.20 times the vector and keeps the one of least error.
inline constexpr int kSearchScales = 8;
static inline constexpr int percent_of_scale(int s) {
  return 78 + 6 * s;
}

// A coordinate is coded through its level, floor(64 |x| sqrt(d) / ||x||), clamped to 255: in units of
// 1/64 of the coordinate's standard deviation. Everything after the level is integer arithmetic.
inline constexpr int kLevelsPerSigma = 64;
inline constexpr int kMaxLevel = 255;

struct CodeTable {
  int bits;
  int magnitude_count;                      // 1 << (bits - 1); the code's sign bit negates
  int half_steps;                           // 1, or 2: the entries are 2 m + 1, in half steps (m + 1/2)
  std::uint8_t magnitudes[kMaxMagnitudes];  // ascending
  // thresholds[s][k]: the smallest level that gets a magnitude above k at search scale s
  std::uint8_t thresholds[kSearchScales][kMaxMagnitudes - 1];
  // centroids[s][k]: magnitude k at search scale s, in half levels: next to 2 level + 1, a cell's middle
  std::int16_t centroids[kSearchScales][kMaxMagnitudes];
  int error_shift;  // of a squared distance in half levels
};

// What a coordinate's level costs at search scale s if it gets magnitude `index`.
static inline constexpr int search_error(const CodeTable& table, int s, int level, int index) {
  const int distance = 2 * level + 1 - table.centroids[s][index];
  return distance * distance >> table.error_shift;
}
static inline constexpr int index_of(const CodeTable& table, int s, int level) {
  int index = 0;
  while (index + 1 < table.magnitude_count && level >= table.thresholds[s][index]) ++index;
  return index;
}

// sigma: standard deviations of a coordinate a table step stands for, where the table's error on the
// exact law at d = 128 is least. Boundaries are midpoints.
static inline constexpr CodeTable make_code_table(int bits, int half_steps, double sigma,
                                                  const int (&magnitudes)[kMaxMagnitudes]) {
  CodeTable table{bits, 1 << (bits - 1), half_steps, {}, {}, {}, bits == 2 ? 5 : 4};
  for (int k = 0; k < table.magnitude_count; ++k)
    table.magnitudes[k] = static_cast<std::uint8_t>(magnitudes[k]);
  for (int s = 0; s < kSearchScales; ++s) {
    const double levels = kLevelsPerSigma * sigma * 100 / percent_of_scale(s);  // a table step's
    for (int k = 0; k < table.magnitude_count; ++k)
      table.centroids[s][k] = static_cast<std::int16_t>(2 * levels * magnitudes[k] + 0.5);
    for (int k = 0; k + 1 < table.magnitude_count; ++k)
      table.thresholds[s][k] =
          static_cast<std::uint8_t>(levels * 0.5 * (magnitudes[k] + magnitudes[k + 1]) + 0.5);
  }
  return table;
}

static constexpr CodeTable kKey4 = make_code_table(4, 1, 0.02199, {6, 18, 30, 43, 57, 73, 93, 122});
// GPUs negate a 4-bit value's m by complement, -m - 1, and add 1/2 to the sum: hence the half steps.
static constexpr CodeTable kValue4 = make_code_table(4, 2, 0.01106, {11, 35, 59, 85, 113, 145, 185, 243});
static constexpr CodeTable kEither3 = make_code_table(3, 1, 0.01885, {13, 40, 71, 113});
static constexpr CodeTable kEither2 = make_code_table(2, 1, 0.01224, {37, 123});

static_assert(kKey4.thresholds[0][6] < kMaxLevel);  // the clamp never decides a code

// No sum of errors over a vector of 128 coordinates is above this. sum level^2 is at most 128 x 64^2 and a
// little more for rounding, and an error is at most a + level^2 / 13 with the least a that serves.
static inline constexpr int largest_error_sum(const CodeTable& table) {
  int a = 0;
  for (int s = 0; s < kSearchScales; ++s)
    for (int level = 0; level <= kMaxLevel; ++level) {
      const int over = search_error(table, s, level, index_of(table, s, level)) - level * level / 13;
      if (over > a) a = over;
    }
  return 128 * (a + 1) + (128 * kLevelsPerSigma * kLevelsPerSigma + 128) / 13;
}
static_assert(largest_error_sum(kKey4) < 65536 && largest_error_sum(kValue4) < 65536 &&
              largest_error_sum(kEither3) < 65536 && largest_error_sum(kEither2) < 65536);

static inline constexpr const CodeTable& key_table(int bits) {
  return bits == 4 ? kKey4 : bits == 3 ? kEither3 : kEither2;
}
static inline constexpr const CodeTable& value_table(int bits) {
  return bits == 4 ? kValue4 : bits == 3 ? kEither3 : kEither2;
}

// A stored scale is 64 times the norm over the norm of the codes (in steps).
inline constexpr float kScaleUnit = 64.0f;

}  // namespace turboquant::core
