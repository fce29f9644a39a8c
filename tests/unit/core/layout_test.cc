// SPDX-License-Identifier: Apache-2.0
#include "core/layout.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "turboquant/format.h"

namespace turboquant {
namespace {

constexpr core::Position kPositions[] = {core::key_position, core::value_position};

// Every (token, coordinate) has bits of its own, and together they fill the area of 8 d b bytes.
TEST(Layout, UsesEveryBitOfAnAreaOnceAtEveryHeadSizeAndWidth) {
  for (const core::Position position : kPositions)
    for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16)
      for (const int b : {1, 2, 4}) {
        std::vector<std::uint8_t> used(static_cast<std::size_t>(8 * d * b));
        for (int t = 0; t < kPageTokens; ++t)
          for (int e = 0; e < d; ++e) {
            const core::CodePosition at = position(d, b, t, e);
            const int mask = ((1 << b) - 1) << at.shift;
            ASSERT_LT(at.byte, used.size()) << d << ", " << b << ", " << t << ", " << e;
            ASSERT_LT(mask, 256);
            ASSERT_EQ(used[at.byte] & mask, 0) << d << ", " << b << ", " << t << ", " << e;
            used[at.byte] = static_cast<std::uint8_t>(used[at.byte] | mask);
          }
        for (const std::uint8_t byte : used) ASSERT_EQ(byte, 255) << d << ", " << b;
      }
}

TEST(Layout, ReadsTheCodesItWroteOverWhateverWasThere) {
  std::mt19937 random(1);
  for (const core::Position position : kPositions)
    for (const int d : {32, 80, 128, 464})
      for (const int bits : {2, 3, 4}) {
        std::vector<std::uint8_t> area(static_cast<std::size_t>(8 * d * bits), 0xa5), codes;
        for (int t = 0; t < kPageTokens; ++t)
          for (int e = 0; e < d; ++e) {
            codes.push_back(static_cast<std::uint8_t>(random() & ((1u << bits) - 1)));
            core::write_code(area.data(), position, d, bits, t, e, codes.back());
          }
        std::size_t i = 0;
        for (int t = 0; t < kPageTokens; ++t)
          for (int e = 0; e < d; ++e)
            ASSERT_EQ(core::read_code(area.data(), position, d, bits, t, e), codes[i++]) << d << ", " << bits;
      }
}

// The planes that the comment of turboquant/format.h names.
TEST(Layout, CutsCoordinatesIntoPlanesOf128AndWhatRemains) {
  struct Row {
    int head_dim;
    std::vector<int> widths;
  };
  for (const Row& row : {Row{32, {32}},
                         {48, {32, 16}},
                         {80, {64, 16}},
                         {112, {64, 32, 16}},
                         {128, {128}},
                         {240, {128, 64, 32, 16}},
                         {256, {128, 128}},
                         {336, {128, 128, 64, 16}}}) {
    std::vector<int> widths;
    for (int e = 0; e < row.head_dim; e += widths.back()) {
      const core::Plane plane = core::plane_of(row.head_dim, e);
      EXPECT_EQ(plane.first, e);
      widths.push_back(plane.width);
    }
    EXPECT_EQ(widths, row.widths) << row.head_dim;
  }
}

struct Nibble {
  std::size_t byte;
  int shift;
};

void expect_at(core::CodePosition at, Nibble expected, const char* what) {
  EXPECT_EQ(at.byte, expected.byte) << what;
  EXPECT_EQ(at.shift, expected.shift) << what;
}

// At head_dim 128 and 4 bits the order has a plain description, here by hand from it:
//   K: row t of 64 bytes; chunk q of 16; word i; nibble n is coordinate 32 i + 4 q + n, nibble 4 + n that
//   + 16. V: two halves of 32 tokens, 2048 bytes each: [32 coordinates][lane][4 words]; word j of lane (g, q)
//   is coordinate
//      8 j + g of the 32; nibble n is token 2 q + 8 n of the half, nibble 4 + n the one after.
TEST(Layout, AtHeadDim128And4BitsIsTheBytesOfTheDescription) {
  for (int i = 0; i < 4; ++i)
    for (int q = 0; q < 4; ++q)
      for (int n = 0; n < 4; ++n)
        for (int h = 0; h < 2; ++h) {
          const int nibble = 4 * h + n;
          expect_at(core::key_position(128, 4, 5, 32 * i + 16 * h + 4 * q + n),
                    {static_cast<std::size_t>(5 * 64 + 16 * q + 4 * i + nibble / 2), nibble % 2 * 4}, "key");
        }
  for (int half = 0; half < 2; ++half)
    for (int block = 0; block < 4; ++block)
      for (int g = 0; g < 8; ++g)
        for (int q = 0; q < 4; ++q)
          for (int j = 0; j < 4; ++j)
            for (int nibble = 0; nibble < 8; ++nibble)
              expect_at(core::value_position(128, 4, 32 * half + 2 * q + 8 * (nibble % 4) + nibble / 4,
                                             32 * block + 8 * j + g),
                        {static_cast<std::size_t>(2048 * half + 512 * block + 16 * (4 * g + q) + 4 * j +
                                                  nibble / 2),
                         nibble % 2 * 4},
                        "value");
}

// Written out, so that a change of both the comment and the functions still shows.
TEST(Layout, PutsTheseCodesInTheseBytes) {
  expect_at(core::key_position(128, 4, 0, 1), {0, 4}, "the high nibble of the first byte");
  expect_at(core::key_position(128, 4, 0, 16), {2, 0}, "h = 1 is the word's upper half");
  expect_at(core::key_position(128, 4, 0, 4), {16, 0}, "q = 1 is the next chunk");
  expect_at(core::key_position(128, 4, 1, 0), {64, 0}, "the next token is the next row");
  expect_at(core::key_position(128, 2, 1, 64), {32, 2}, "2 bits: code 16 of 32 is nibble 0 again");
  expect_at(core::key_position(128, 1, 1, 96), {16, 3}, "1 bit: code 24 of 32 is nibble 0 again");
  expect_at(core::key_position(80, 4, 0, 64), {2048, 0}, "the plane of 16 follows that of 64");
  expect_at(core::key_position(80, 4, 2, 79), {2071, 4}, "its last coordinate");
  expect_at(core::value_position(128, 4, 0, 8), {4, 0}, "j = 1 is the lane's next word");
  expect_at(core::value_position(128, 4, 1, 0), {2, 0}, "an odd token is in the word's upper half");
  expect_at(core::value_position(128, 4, 2, 0), {16, 0}, "q = 1 is the next lane");
  expect_at(core::value_position(128, 4, 32, 0), {4096 / 2, 0}, "the second half of the tokens");
  expect_at(core::value_position(128, 2, 32, 0), {0, 2}, "2 bits: beside the first, in the same nibble");
  expect_at(core::value_position(80, 4, 0, 72), {1024 + 4, 0}, "a last block of 16 has lanes of 2 units");
}

TEST(Layout, GivesA3BitCodeItsMagnitudeAmong2BitCodesAndItsSignBehindThem) {
  const int d = 96;
  for (const core::Position position : kPositions) {
    std::vector<std::uint8_t> area(static_cast<std::size_t>(24 * d));
    core::write_code(area.data(), position, d, 3, 11, 50, 6);  // sign 1, magnitude 2
    const core::CodePosition magnitude = position(d, 2, 11, 50), sign = position(d, 1, 11, 50);
    EXPECT_EQ(area[magnitude.byte], 2 << magnitude.shift);
    EXPECT_EQ(area[static_cast<std::size_t>(16 * d) + sign.byte], 1 << sign.shift);
  }
}

TEST(Layout, PutsTheScalesOfOneLanesTokensInOneLoad) {
  std::vector<bool> used(64);
  for (int t = 0; t < 64; ++t) used[static_cast<std::size_t>(core::scale_index(t))] = true;
  EXPECT_EQ(used, std::vector<bool>(64, true));
  EXPECT_EQ(core::scale_index(8), 1);
  EXPECT_EQ(core::scale_index(1), 8);
}

// The figures of the comment of turboquant/format.h.
TEST(Layout, PutsTheAreasOfHeadDim128At4BitsWhereTheFormatSays) {
  constexpr PageFormat format{128, 4, 4};
  EXPECT_EQ(format.k_codes_offset(), 0u);
  EXPECT_EQ(format.v_codes_offset(), 4096u);
  EXPECT_EQ(format.k_scales_offset(), 8192u);
  EXPECT_EQ(format.v_scales_offset(), 8320u);
  EXPECT_EQ(format.centre_offset(), 8448u);
  EXPECT_EQ(format.centre_step_offset(), 8576u);
  EXPECT_EQ(format.page_bytes(), 8704u);
}

TEST(Layout, StartsEveryAreaAndPageAtAMultipleOf128Bytes) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16)
    for (const int k_bits : {2, 3, 4})
      for (const int v_bits : {2, 3, 4}) {
        const PageFormat format{d, k_bits, v_bits};
        for (const std::size_t offset :
             {format.v_codes_offset(), format.k_scales_offset(), format.v_scales_offset(),
              format.centre_offset(), format.page_bytes()})
          ASSERT_EQ(offset % 128, 0u) << d << ", " << k_bits << ", " << v_bits;
      }
}

}  // namespace
}  // namespace turboquant
