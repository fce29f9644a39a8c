// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/layout.h"
#include "core/tables.h"
#include "layout/loops.h"

// Queries and probabilities in the order in which a vector register holds the codes of a page. Any order
// within a row is free for keys, because the query is permuted once instead; so are tokens within a dword for
// values.
//
// A register of code bytes becomes vectors of one centroid a byte. Of 4 bits: k = 0, the low nibbles, and k =
// 1, the high ones. Of 2 bits (and the 2-bit magnitudes of 3): k = 0, bits 0-1; k = 1, bits 4-5; k = 2, bits
// 2-3; k = 3, bits 6-7. So nibble-strided packing puts code 2 m + (k & 1) + (k >> 1) N of its chunk in byte
// m, N being the chunk's nibbles.
namespace turboquant::bench {

inline int code_value(const core::CodeTable& table, int code) {
  const int magnitude = table.magnitudes[code & (table.magnitude_count - 1)];
  return code < table.magnitude_count ? magnitude : -magnitude;
}

// The coordinate whose centroid is number k of byte `at` of a K row.
inline int coordinate(int head_dim, int bits, int at, int k) {
  const int chunk = row_bytes(head_dim, bits) / 4;
  const int q = at / chunk, code = 2 * (at % chunk) + (k & 1) + (k >> 1) * 2 * chunk;
  return code / 8 * 32 + code % 8 / 4 * 16 + 4 * q + code % 4;
}

// The token whose centroid lies in byte b of vector k of group `group` (of vector_bytes) of 64 bytes of V
// units; at 4 bits k = 0, 1 are those of the area's first half and k = 2, 3 of its second.
inline int token(int vector_bytes, int group, int k, int b) {
  const int q = (group * vector_bytes + b) / 16, code = 2 * (b % 4) + (k & 1);
  return 32 * (k >> 1) + 8 * (code % 4) + 2 * q + code / 4;
}

struct Writer {
  Operands* out;
  int operand_bytes, at = 0;
  void put(int x) {
    out->columns[at++] = static_cast<std::uint8_t>(x);
    if (operand_bytes == 2) out->columns[at++] = static_cast<std::uint8_t>(x >> 8);
  }
};

// queries: [heads][head_dim], at most query_limit in magnitude.
inline void pack_queries(const LoopSet& set, const Shape& s, const std::int32_t* queries, Operands* out) {
  for (int code = 0; code < 64; ++code)
    out->table[code] =
        static_cast<std::uint8_t>(128 + code_value(core::key_table(s.bits), code % (1 << s.bits)));
  const int row = row_bytes(s.head_dim, s.bits), width = set.vector_bytes,
            loads = row > width ? row / width : 1;
  const int pieces = set.operand_bytes == 2 ? 1 : s.pieces, lane = width < 16 ? width : 16;
  Writer writer{out, set.operand_bytes};
  for (int h = 0; h < s.heads; ++h) {
    const std::int32_t* query = queries + h * s.head_dim;
    out->correction[h] = 0;
    for (int e = 0; e < s.head_dim; ++e) out->correction[h] -= 128 * query[e];
    for (int piece = 0; piece < pieces; ++piece)
      for (int l = 0; l < loads; ++l)
        for (int dword = 0; dword < lane / 4; ++dword)
          for (int k = 0; k < (s.bits == 4 ? 2 : 4); ++k)
            for (int b = 0; b < width; ++b) {
              const int at = (l * width + b / lane * lane + 4 * dword + b % 4) % row;
              const int x = query[coordinate(s.head_dim, s.bits, at, k)];
              const int high = (x + set.query_radix / 2) >> (set.query_radix == 256 ? 8 : 7);
              if (pieces == 1) writer.put(x);
              else writer.put(piece == 0 ? high : x - high * set.query_radix);
            }
  }
}

// probabilities: [heads][64], from 0 to probability_limit.
inline void pack_probabilities(const LoopSet& set, const Shape& s, const std::int32_t* probabilities,
                               Operands* out) {
  const core::CodeTable& table = core::value_table(s.bits);
  for (int code = 0; code < 64; ++code) {
    const int value = code_value(table, code % (1 << s.bits));
    out->table[code] = static_cast<std::uint8_t>(table.half_steps == 2 ? (value - 1) / 2 : value);
  }
  const int pieces = set.operand_bytes == 2 ? 1 : s.pieces;
  Writer writer{out, set.operand_bytes};
  for (int h = 0; h < s.heads; ++h)
    for (int piece = 0; piece < pieces; ++piece)
      for (int group = 0; group < 64 / set.value_bytes; ++group)
        for (int k = 0; k < 4; ++k)
          for (int b = 0; b < set.value_bytes; ++b) {
            const int x = probabilities[64 * h + token(set.value_bytes, group, k, b)];
            if (pieces == 1) writer.put(x);
            else writer.put(piece == 0 ? x / set.probability_radix : x % set.probability_radix);
          }
}

}  // namespace turboquant::bench
