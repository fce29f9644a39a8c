// SPDX-License-Identifier: Apache-2.0
// A GPU reads a page as the A operands of mma.sync.m16n8k32 (s8): lane 4 g + q holds, as four registers of
// four bytes, row g and row g + 8 at columns 4 q .. 4 q + 3 (a0, a1) and at 16 + 4 q .. (a2, a3). For keys a
// row is a token and a column a coordinate; for values a row is a coordinate and a column a token. These
// tests do on the CPU what a lane does (load, mask, PRMT) and compare each operand byte with the code that
// core::read_code reads.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "core/layout.h"
#include "core/tables.h"
#include "unit/kernels/warp.h"

namespace turboquant {
namespace {

using warp::group;
using warp::kLanes;
using warp::prmt;
using warp::quarter;

constexpr int kHeadDims[] = {64, 80, 96, 128, 192, 256};

int table_entry(const core::CodeTable& table, int code) {
  const int magnitude = table.magnitudes[code & (table.magnitude_count - 1)];
  return code < table.magnitude_count ? magnitude : -magnitude;
}

// A lane's bytes from `bit` of an area on, as little-endian words.
struct Words {
  std::uint32_t word[4] = {};
};
Words load(const std::uint8_t* area, std::size_t address, std::size_t bytes) {
  Words out;
  std::memcpy(out.word, area + address, bytes);
  return out;
}

// The selector nibbles of codes 8 i + 4 h .. + 3 of a chunk of `codes` codes of b bits, all in one word: what
// is left of the words that hold them after a shift and a mask.
std::uint32_t select(const Words& x, int codes, int b, int i, int h) {
  const std::uint32_t w = x.word[0];
  if (b == 4) return x.word[i] >> 16 * h & 0xffff;
  if (b == 2) {
    if (codes == 32) return x.word[i % 2] >> (2 * (i / 2) + 16 * h) & 0x3333;
    if (codes == 16) return w >> (2 * i + 16 * h) & 0x3333;
    return (codes == 8 ? w >> 2 * h : w | w << 6) & 0x3333;
  }
  if (codes == 32) return w >> (i + 16 * h) & 0x1111;
  if (codes == 16) return w >> (2 * i + h) & 0x1111;
  if (codes == 8) return (w >> 2 * h | w << 7 >> 2 * h) & 0x1111;
  const std::uint32_t pairs = (w | w << 6) & 0x303;  // codes == 4: bit c to bit 4 c
  return (pairs | pairs << 3) & 0x1111;
}

// Four operand bytes of a table of at most 8 entries: 2 and 3 bits. A 3-bit code's sign joins its magnitude
// here.
struct Table {
  std::uint32_t low = 0, high = 0;
};
Table signed_table(const core::CodeTable& table) {
  Table out;
  for (int code = 0; code < 1 << table.bits; ++code)
    (code < 4 ? out.low : out.high) |= std::uint32_t{static_cast<std::uint8_t>(table_entry(table, code))}
                                       << code % 4 * 8;
  return out;
}
// The magnitudes of 4 bits: (T - 1) / 2 where the entries are odd.
Table magnitude_table(const core::CodeTable& table) {
  Table out;
  for (int k = 0; k < 8; ++k)
    (k < 4 ? out.low : out.high) |=
        std::uint32_t{table.magnitudes[k]} / static_cast<std::uint32_t>(table.half_steps) << k % 4 * 8;
  return out;
}

// Keys of 4 bits are read twice, as positive and as negative magnitudes: a magnitude is below 128, so PRMT
// gives 0 for a nibble with bit 3 set. The second product is with -Q.
void expect_key_bytes(std::uint32_t selector, const int (&codes)[4]) {
  const Table t = magnitude_table(core::kKey4);
  const std::uint32_t positive = prmt(t.low, t.high, selector),
                      negative = prmt(t.low, t.high, selector ^ 0x8888);
  for (int n = 0; n < 4; ++n)
    ASSERT_EQ(warp::byte_of(positive, n) - warp::byte_of(negative, n), table_entry(core::kKey4, codes[n]));
}

// Values of 4 bits: m, or its complement -m - 1, where T = 2 m + 1. `word` is the whole unit: a nibble's sign
// is bit 7 of its byte, or of the byte of word << 4.
void expect_value_bytes(std::uint32_t word, int h, const int (&codes)[4]) {
  const Table t = magnitude_table(core::kValue4);
  const std::uint32_t magnitudes = prmt(t.low, t.high, (word & 0x77777777u) >> 16 * h);
  const std::uint32_t operand = magnitudes ^ prmt(word << 4, word, h == 0 ? 0xd9c8 : 0xfbea);
  for (int n = 0; n < 4; ++n)
    ASSERT_EQ(2 * warp::byte_of(operand, n) + 1, table_entry(core::kValue4, codes[n]));
}

void expect_bytes(const core::CodeTable& table, std::uint32_t selector, const int (&codes)[4]) {
  const Table t = signed_table(table);
  const std::uint32_t operand = prmt(t.low, t.high, selector);
  for (int n = 0; n < 4; ++n) ASSERT_EQ(warp::byte_of(operand, n), table_entry(table, codes[n]));
}

std::vector<std::uint8_t> random_area(core::Position position, int d, int bits) {
  std::mt19937 random(static_cast<unsigned>(1000 * d + bits));
  std::vector<std::uint8_t> area(static_cast<std::size_t>(8 * d * bits));
  for (int t = 0; t < 64; ++t)
    for (int e = 0; e < d; ++e)
      core::write_code(area.data(), position, d, bits, t, e,
                       static_cast<std::uint8_t>(random() & ((1u << bits) - 1)));
  return area;
}

// ---- keys

// Where lane reads chunk q of the row of token 16 tile + g, or of the row 8 below, and how many bytes. A
// chunk of 4 codes of 1 bit is half a byte: two lanes read one.
std::size_t key_address(const core::Plane& plane, int b, int tile, int below, int lane) {
  const int row_bits = plane.width * b, token = 16 * tile + 8 * below + group(lane);
  return static_cast<std::size_t>((plane.first * 64 * b + token * row_bits + quarter(lane) * row_bits / 4) /
                                  8);
}
std::size_t key_load_bytes(const core::Plane& plane, int b) {
  return plane.width * b >= 32 ? static_cast<std::size_t>(plane.width * b / 32) : 1;
}

Words load_key(const std::uint8_t* area, const core::Plane& plane, int b, int tile, int below, int lane) {
  Words out = load(area, key_address(plane, b, tile, below, lane), key_load_bytes(plane, b));
  if (plane.width * b == 16) out.word[0] = out.word[0] >> 4 * (quarter(lane) % 2) & 15;
  return out;
}

void check_keys(int d, int bits) {
  const std::vector<std::uint8_t> area = random_area(core::key_position, d, bits);
  const std::uint8_t* signs = area.data() + 16 * d;
  for (int first = 0; first < d; first += core::plane_of(d, first).width) {
    const core::Plane plane = core::plane_of(d, first);
    const int chunk = plane.width / 4;
    for (int tile = 0; tile < 4; ++tile)
      for (int below = 0; below < 2; ++below)  // a0 and a2, or a1 and a3
        for (int lane = 0; lane < kLanes; ++lane) {
          const int token = 16 * tile + 8 * below + group(lane), q = quarter(lane);
          const Words x = load_key(area.data(), plane, bits == 4 ? 4 : 2, tile, below, lane);
          const Words s = bits == 3 ? load_key(signs, plane, 1, tile, below, lane) : Words{};
          for (int i = 0; i < (plane.width + 31) / 32; ++i)
            for (int h = 0; h < 2 && 32 * i + 16 * h < plane.width; ++h) {
              int codes[4];
              for (int n = 0; n < 4; ++n)
                codes[n] = core::read_code(area.data(), core::key_position, d, bits, token,
                                           first + 32 * i + 16 * h + 4 * q + n);
              std::uint32_t selector = select(x, chunk, bits == 4 ? 4 : 2, i, h);
              if (bits == 3) selector |= select(s, chunk, 1, i, h) << 2;
              if (bits == 4) ASSERT_NO_FATAL_FAILURE(expect_key_bytes(selector, codes)) << d << ", " << token;
              else
                ASSERT_NO_FATAL_FAILURE(expect_bytes(core::key_table(bits), selector, codes))
                    << d << ", " << token;
            }
        }
  }
}

TEST(CudaLaneMapping, KeyBytesBecomeTheRowsOfAnMmaOperandByMaskAndPermute) {
  for (const int d : kHeadDims)
    for (const int bits : {2, 3, 4}) ASSERT_NO_FATAL_FAILURE(check_keys(d, bits)) << d << ", " << bits;
}

TEST(CudaLaneMapping, AWarpLoadsEightKeyRowsAtOnceContiguously) {
  for (const int d : kHeadDims)
    for (const int b : {1, 2, 4})
      for (int first = 0; first < d; first += core::plane_of(d, first).width)
        for (int half_tile = 0; half_tile < 8; ++half_tile) {
          const core::Plane plane = core::plane_of(d, first);
          std::vector<std::size_t> addresses;
          for (int lane = 0; lane < kLanes; ++lane)
            addresses.push_back(key_address(plane, b, half_tile / 2, half_tile % 2, lane));
          const std::size_t bytes = key_load_bytes(plane, b);
          ASSERT_TRUE(warp::is_conflict_free(addresses, bytes)) << d << ", " << b << ", " << first;
          if (plane.width * b == 16) continue;  // two lanes share a byte
          ASSERT_TRUE(warp::is_contiguous(addresses, bytes)) << d << ", " << b << ", " << first;
        }
}

// ---- values

// A lane's units of a block of 32 coordinates, or of a last block of 16, are one load.
struct ValueLoad {
  std::size_t address, bytes;
};
ValueLoad value_load(int d, int b, int block, int i, int lane) {
  const int units = d - 32 * block >= 32 ? 4 : 2, unit_bytes = b == 1 ? 2 : 4;
  const int half = b == 4 ? 16 * d * i : 0;
  return {static_cast<std::size_t>(half + (128 * block + lane * units) * unit_bytes),
          static_cast<std::size_t>(units * unit_bytes)};
}

void check_values(int d, int bits) {
  const std::vector<std::uint8_t> area = random_area(core::value_position, d, bits);
  const std::uint8_t* signs = area.data() + 16 * d;
  for (int block = 0; 32 * block < d; ++block)
    for (int i = 0; i < 2; ++i)
      for (int lane = 0; lane < kLanes; ++lane) {
        const ValueLoad at = value_load(d, bits == 4 ? 4 : 2, block, i, lane),
                        sign_at = value_load(d, 1, block, i, lane);
        const Words x = load(area.data(), at.address, at.bytes);
        const Words s = bits == 3 ? load(signs, sign_at.address, sign_at.bytes) : Words{};
        const int units = static_cast<int>(at.bytes) / 4;
        for (int j = 0; j < units; ++j)  // of a tile of 16 coordinates, even j is a0 and a2, odd j a1 and a3
          for (int h = 0; h < 2; ++h) {
            const int coordinate = 32 * block + 8 * j + group(lane);
            int codes[4];
            for (int n = 0; n < 4; ++n)
              codes[n] = core::read_code(area.data(), core::value_position, d, bits,
                                         32 * i + 8 * n + 2 * quarter(lane) + h, coordinate);
            if (bits == 4) {
              ASSERT_NO_FATAL_FAILURE(expect_value_bytes(x.word[j], h, codes)) << d << ", " << coordinate;
              continue;
            }
            std::uint32_t selector = select({{x.word[j]}}, 16, 2, i, h);
            if (bits == 3) selector |= select({{s.word[j / 2] >> 16 * (j % 2) & 0xffff}}, 16, 1, i, h) << 2;
            ASSERT_NO_FATAL_FAILURE(expect_bytes(core::value_table(bits), selector, codes))
                << d << ", " << coordinate;
          }
      }
}

TEST(CudaLaneMapping, ValueBytesBecomeTheRowsOfAnMmaOperandByMaskAndPermute) {
  for (const int d : kHeadDims)
    for (const int bits : {2, 3, 4}) ASSERT_NO_FATAL_FAILURE(check_values(d, bits)) << d << ", " << bits;
}

TEST(CudaLaneMapping, AWarpLoadsTwoValueTilesAtOnceContiguously) {
  for (const int d : kHeadDims)
    for (const int b : {1, 2, 4})
      for (int block = 0; 32 * block < d; ++block)
        for (int i = 0; i < (b == 4 ? 2 : 1); ++i) {
          std::vector<std::size_t> addresses;
          for (int lane = 0; lane < kLanes; ++lane)
            addresses.push_back(value_load(d, b, block, i, lane).address);
          const std::size_t bytes = value_load(d, b, block, i, 0).bytes;
          ASSERT_TRUE(warp::is_contiguous(addresses, bytes)) << d << ", " << b << ", " << block;
          ASSERT_TRUE(warp::is_conflict_free(addresses, bytes)) << d << ", " << b << ", " << block;
        }
}

// ---- from scores to probabilities

// The products of keys leave lane 4 g + q the scores of tokens 16 tile + g and 16 tile + 8 + g: g + 8 j, j
// < 8. The B operand of the values wants, in lane 4 g + q, its rows 4 q .. 4 q + 3 and 16 + 4 q ..: the order
// of tokens within a value unit makes each of these registers four tokens of one lane's scores, packed there
// and moved by one shuffle.
TEST(CudaLaneMapping, ARegisterOfProbabilitiesIsFourTokensOfOneLanesScores) {
  for (int i = 0; i < 2; ++i)
    for (int q = 0; q < 4; ++q)
      for (int h = 0; h < 2; ++h) {
        const int g = 2 * q + h;  // the lanes whose scores these are
        for (int n = 0; n < 4; ++n) {
          const int token = 32 * i + 8 * n + 2 * q + h, j = 4 * i + n;
          EXPECT_EQ(token, g + 8 * j);
          EXPECT_EQ(core::scale_index(token), 8 * g + j);  // and its 8 scales are one load of 16 bytes
        }
      }
}

// The emulation is right about the one thing that is easy to get wrong.
TEST(CudaLaneMapping, PermuteRepeatsTheSignWhereASelectorsBit3IsSet) {
  EXPECT_EQ(prmt(0x83828180u, 0x07060504u, 0x7410), 0x07048180u);
  EXPECT_EQ(prmt(0x83828180u, 0x07060504u, 0xf8c9), 0x00ff00ffu);
}

// Rows of 256 coordinates instead of planes of 128: lanes of equal q meet in the same banks.
TEST(CudaLaneMapping, AConflictIsSeen) {
  std::vector<std::size_t> rows, planes;
  for (int lane = 0; lane < kLanes; ++lane) {
    rows.push_back(static_cast<std::size_t>(group(lane) * 128 + quarter(lane) * 32));
    planes.push_back(static_cast<std::size_t>(group(lane) * 64 + quarter(lane) * 16));
  }
  EXPECT_FALSE(warp::is_conflict_free(rows, 16));
  EXPECT_TRUE(warp::is_conflict_free(planes, 16));
}

}  // namespace
}  // namespace turboquant
