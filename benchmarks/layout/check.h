// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "layout/operands.h"

// A loop is timed only after it has given the integers of a plain loop over core::read_code.
namespace turboquant::bench {

// The largest operand that `pieces` pieces hold; values' whole int16 operands stay positive.
inline int query_limit(const LoopSet& set, int pieces) {
  const int digit = set.query_radix / 2 - 1;
  return pieces == 1 ? digit : digit * set.query_radix + digit;
}
inline int probability_limit(const LoopSet& set, int pieces) {
  const int radix = set.probability_radix;
  return std::min(pieces == 1 ? radix - 1 : radix * radix - 1, set.operand_bytes == 2 ? 32767 : 65535);
}

inline std::vector<std::int32_t> random_integers(std::size_t count, int low, int high,
                                                 std::mt19937_64& random) {
  std::vector<std::int32_t> out(count);
  for (std::int32_t& x : out) {
    const std::uint64_t r = random();
    // One in eight is an extreme, so that a piece that does not fit somewhere shows.
    x = r % 8 == 0 ? ((r & 8) != 0 ? low : high)
                   : low + static_cast<int>((r >> 8) % static_cast<std::uint64_t>(high - low + 1));
  }
  return out;
}

// A K area of head_dim 128 and 4 bits, in the other order (loops.h).
inline std::vector<std::uint8_t> side_by_side(const std::uint8_t* codes) {
  std::vector<std::uint8_t> out(4096);
  for (std::size_t t = 0; t < 64; ++t)
    for (std::size_t q = 0; q < 4; ++q)
      for (std::size_t b = 0; b < 16; ++b)
        out[256 * (t / 4) + 64 * (b / 4) + 16 * q + 4 * (t % 4) + b % 4] = codes[64 * t + 16 * q + b];
  return out;
}

inline bool scores_are_exact(const LoopSet& set, const Shape& s, const std::uint8_t* codes,
                             std::mt19937_64& random) {
  const int limit = query_limit(set, s.pieces);
  const auto queries = random_integers(static_cast<std::size_t>(s.heads * s.head_dim), -limit, limit, random);
  Operands operands;
  pack_queries(set, s, queries.data(), &operands);
  std::int32_t scores[kMaxHeads * 64];
  set.score(s)(codes, codes, operands, scores);
  if (const ScoreLoop other = set.score_side_by_side(s)) {
    std::int32_t same[kMaxHeads * 64];
    const std::vector<std::uint8_t> reordered = side_by_side(codes);
    other(reordered.data(), reordered.data(), operands, same);
    if (!std::equal(same, same + 64 * s.heads, scores)) return false;
  }
  for (int h = 0; h < s.heads; ++h)
    for (int t = 0; t < 64; ++t) {
      std::int64_t sum = 0;
      for (int e = 0; e < s.head_dim; ++e)
        sum += std::int64_t{queries[static_cast<std::size_t>(h * s.head_dim + e)]} *
               code_value(core::key_table(s.bits),
                          core::read_code(codes, core::key_position, s.head_dim, s.bits, t, e));
      if (scores[64 * h + t] != sum) return false;
    }
  return true;
}

// The coordinate of a partial sum of a value loop.
inline int coordinate_of_sum(const LoopSet& set, int index) {
  const int group = index / set.value_sums;  // of 4 coordinates
  return group / 8 * 32 + index % 4 * 8 + group % 8;
}

// Two pages in a row, with operands so small that the floats hold the integers exactly: below 2^24.
inline bool values_are_exact(const LoopSet& set, const Shape& s, const std::uint8_t* codes,
                             std::mt19937_64& random) {
  constexpr int kExact = (1 << 24) / (2 * 64 * 123);
  const int limit = std::min(probability_limit(set, s.pieces), kExact);
  const auto probabilities = random_integers(static_cast<std::size_t>(s.heads * 64), 0, limit, random);
  Operands operands;
  pack_probabilities(set, s, probabilities.data(), &operands);
  std::vector<float> sums(static_cast<std::size_t>(kMaxHeads * s.head_dim * 4));
  for (int page = 0; page < 2; ++page) set.value(s)(codes, codes, operands, 1.0f, sums.data());
  const core::CodeTable& table = core::value_table(s.bits);
  const int sums_per_head = s.head_dim / 4 * set.value_sums;
  for (int h = 0; h < s.heads; ++h) {
    std::vector<float> found(static_cast<std::size_t>(s.head_dim));
    for (int i = 0; i < sums_per_head; ++i)
      found[static_cast<std::size_t>(coordinate_of_sum(set, i))] +=
          sums[static_cast<std::size_t>(h * sums_per_head + i)];
    for (int e = 0; e < s.head_dim; ++e) {
      std::int64_t sum = 0;  // of the table's entries; the loop leaves the half steps' +1 to the caller
      std::int64_t ones = 0;
      for (int t = 0; t < 64; ++t) {
        const std::int64_t p = probabilities[static_cast<std::size_t>(64 * h + t)];
        sum += p * code_value(table, core::read_code(codes, core::value_position, s.head_dim, s.bits, t, e));
        ones += p;
      }
      const std::int64_t expected = table.half_steps == 2 ? sum - ones : 2 * sum;
      if (static_cast<double>(found[static_cast<std::size_t>(e)]) != static_cast<double>(expected))
        return false;
    }
  }
  return true;
}

}  // namespace turboquant::bench
