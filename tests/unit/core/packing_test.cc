// SPDX-License-Identifier: Apache-2.0
#include "core/packing.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace turboquant::core {
namespace {

// The definition: bit b of code i is bit i * bits + b of the string.
std::vector<std::uint8_t> packed_by_bits(const std::vector<std::uint8_t>& codes, int bits) {
  std::vector<std::uint8_t> packed(packed_bytes(codes.size(), bits), 0);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    for (int b = 0; b < bits; ++b) {
      const std::size_t place = i * static_cast<std::size_t>(bits) + static_cast<std::size_t>(b);
      if ((codes[i] >> b & 1) != 0)
        packed[place / 8] = static_cast<std::uint8_t>(packed[place / 8] | 1u << place % 8);
    }
  }
  return packed;
}

void expect_round_trip(const std::vector<std::uint8_t>& codes, int bits) {
  const std::size_t bytes = packed_bytes(codes.size(), bits);
  std::vector<std::uint8_t> packed(bytes + 1, 0xA5), back(codes.size() + 1, 0x5A);
  pack(codes.data(), codes.size(), bits, packed.data());
  ASSERT_EQ(packed.back(), 0xA5) << "writes past its bytes at " << bits << " bits";
  unpack(packed.data(), codes.size(), bits, back.data());
  ASSERT_EQ(back.back(), 0x5A) << "writes past its codes at " << bits << " bits";
  packed.pop_back();
  back.pop_back();
  ASSERT_EQ(packed, packed_by_bits(codes, bits)) << bits << " bits, " << codes.size() << " codes";
  ASSERT_EQ(back, codes) << bits << " bits, " << codes.size() << " codes";
}

// Every code at every one of the places of a period (8 codes start at byte 0 again), among zeros and among
// ones.
TEST(Packing, RoundTripsEveryCodeAtEveryPlace) {
  for (int bits = 1; bits <= 8; ++bits) {
    const auto largest = static_cast<std::uint8_t>((1 << bits) - 1);
    for (std::size_t place = 0; place < 17; ++place) {
      for (int code = 0; code <= largest; ++code) {
        for (const std::uint8_t others : {std::uint8_t{0}, largest}) {
          std::vector<std::uint8_t> codes(17, others);
          codes[place] = static_cast<std::uint8_t>(code);
          expect_round_trip(codes, bits);
        }
      }
    }
  }
}

// All pairs of neighbours, at 8 bits 65,536 of them, in every phase, since the strings' lengths are odd.
TEST(Packing, RoundTripsEveryPairOfNeighbours) {
  for (int bits = 1; bits <= 8; ++bits) {
    std::vector<std::uint8_t> codes{0};
    for (int first = 0; first < 1 << bits; ++first) {
      for (int second = 0; second < 1 << bits; ++second) {
        codes.push_back(static_cast<std::uint8_t>(first));
        codes.push_back(static_cast<std::uint8_t>(second));
        if (second % 3 == 0) codes.push_back(0);
      }
    }
    expect_round_trip(codes, bits);
  }
}

TEST(Packing, TakesExactlyTheBytesThatTheBitsNeedAtEveryLength) {
  for (int bits = 0; bits <= 8; ++bits) {
    for (std::size_t count = 0; count <= 70; ++count) {
      EXPECT_EQ(packed_bytes(count, bits), (count * static_cast<std::size_t>(bits) + 7) / 8);
      std::vector<std::uint8_t> codes(count);
      for (std::size_t i = 0; i < count; ++i)
        codes[i] = static_cast<std::uint8_t>((i * 37 + 11) & ((1u << bits) - 1u));
      expect_round_trip(codes, bits);
    }
  }
}

TEST(Packing, PutsTheFirstCodeInTheLowestBits) {
  const std::uint8_t codes[] = {0b101, 0b010, 0b111};  // 3 bits: the third straddles the bytes
  std::uint8_t packed[2];
  pack(codes, 3, 3, packed);
  EXPECT_EQ(packed[0], 0b11'010'101);
  EXPECT_EQ(packed[1], 0b1);
}

}  // namespace
}  // namespace turboquant::core
