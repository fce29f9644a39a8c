// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// The inner loops of attention over the code areas of one page (turboquant/format.h), one set per instruction
// set. Plain data only: each of the files that include this is built with other flags.
namespace turboquant::bench {

inline constexpr int kMaxHeads = 8;

// What a loop multiplies the centroids with, in the order in which its vectors hold them (operands.h).
struct Operands {
  // Keys: T + 128 of each code; values: T, or (T - 1) / 2 where the entries are odd; all 64 entries are used,
  // repeated with the period of the code.
  alignas(64) std::uint8_t table[64];
  // 8-bit pieces, the high ones of a head before its low ones; int16 and one piece for the portable loops.
  alignas(64) std::uint8_t columns[16384];
  std::int32_t correction[kMaxHeads];  // keys: -128 times the sum of the query
};

// While a loop reads an area it asks for the lines of the same area of another page, `ahead`, as a kernel
// that walks a page table does.
static inline void ask_for(const std::uint8_t* ahead, int area_bytes, int step, int steps) {
  const int lines = area_bytes / 64;
  for (int line = step * lines / steps; line < (step + 1) * lines / steps; ++line)
    __builtin_prefetch(ahead + 64 * line);
}

// scores[h][t] = sum over e of T_K[code(t, e)] * query[h][e]: exact integers, for the page's 64 tokens.
using ScoreLoop = void (*)(const std::uint8_t* k_codes, const std::uint8_t* ahead, const Operands& operands,
                           std::int32_t* scores);

// sums[h][...] += factor * (sum over the page's t of V[code(t, e)] * probability[h][t]), V the entries of the
// table. A coordinate has several partial sums (four token quarters at most), added once a sequence, not once
// a page.
using ValueLoop = void (*)(const std::uint8_t* v_codes, const std::uint8_t* ahead, const Operands& operands,
                           float factor, float* sums);

// Reads `bytes` (a multiple of 512) and returns something that depends on all of them.
using ReadLoop = std::uint64_t (*)(const std::uint8_t* codes, const std::uint8_t* ahead, std::size_t bytes);

struct Shape {
  int head_dim;  // 64 or 128
  int bits;      // 2, 3 or 4
  int heads;     // 1, 3, 4 or 8 query heads of the KV head
  int pieces;    // 8-bit pieces of an operand: 1, or 2 (high * radix + low)
};

struct LoopSet {
  const char* name;
  const char* flags;
  bool (*runs_here)();
  int vector_bytes;   // of the vectors of K codes; 4 tokens' are transposed dword by dword, but for 4-byte
                      // ones
  int value_bytes;    // of the groups that the V operands cover
  int value_sums;     // partial sums that a value loop keeps for the 16 of a group of 4 coordinates: 8 or 16
  int operand_bytes;  // 1, or 2: whole int16 operands, never in pieces
  int query_radix;    // |piece| <= query_radix / 2
  int probability_radix;  // 0 <= piece < probability_radix
  ScoreLoop (*score)(const Shape&);
  // The same over another order of the K codes, to tell what the format's order costs: null where not built.
  ScoreLoop (*score_side_by_side)(const Shape&);
  ValueLoop (*value)(const Shape&);
  ReadLoop read;
};

extern const LoopSet kPortable, kAvx2, kAvx512;

// A table of a loop for every shape; LOOP is a template <int head_dim, int bits, int heads, int pieces>.
#define TQ_LOOPS_OF_PIECES(LOOP, d, b, h) \
  { LOOP<d, b, h, 1>, LOOP<d, b, h, 2> }
#define TQ_LOOPS_OF_HEADS(LOOP, d, b)                                                                        \
  {                                                                                                          \
    TQ_LOOPS_OF_PIECES(LOOP, d, b, 1), TQ_LOOPS_OF_PIECES(LOOP, d, b, 3), TQ_LOOPS_OF_PIECES(LOOP, d, b, 4), \
        TQ_LOOPS_OF_PIECES(LOOP, d, b, 8)                                                                    \
  }
#define TQ_LOOPS_OF_BITS(LOOP, d) \
  { TQ_LOOPS_OF_HEADS(LOOP, d, 2), TQ_LOOPS_OF_HEADS(LOOP, d, 3), TQ_LOOPS_OF_HEADS(LOOP, d, 4) }
#define TQ_LOOPS(LOOP) \
  { TQ_LOOPS_OF_BITS(LOOP, 64), TQ_LOOPS_OF_BITS(LOOP, 128) }

template <typename Loop>
static inline Loop loop_of(const Loop (&loops)[2][3][4][2], const Shape& s) {
  const int heads = s.heads == 1 ? 0 : s.heads == 3 ? 1 : s.heads == 4 ? 2 : 3;
  return loops[s.head_dim / 128][s.bits - 2][heads][s.pieces - 1];
}

// Side by side: the dwords of 4 tokens' rows next to each other (head_dim 128, 4 bits), as [token quad][dword
// of the chunk][q][token]. Loops need not transpose, but a token's codes lie in 16 places.
static inline bool has_side_by_side(const Shape& s) {
  return s.head_dim == 128 && s.bits == 4 && (s.heads == 1 || s.heads == 4);
}
template <typename Loop>
static inline Loop side_by_side_of(const Loop (&loops)[4], const Shape& s) {
  return has_side_by_side(s) ? loops[(s.heads == 4 ? 2 : 0) + s.pieces - 1] : nullptr;
}

// Bytes of a row (a token's codes of one K area; of a 3-bit area, its magnitudes).
static inline constexpr int row_bytes(int head_dim, int bits) {
  return head_dim * (bits == 4 ? 4 : 2) / 8;
}

}  // namespace turboquant::bench
