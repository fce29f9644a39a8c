// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "layout/loops.h"

// Plain C++: a byte, two codes, is looked up at once; products are int16 pairs, which any compiler
// vectorises.
namespace turboquant::bench {
namespace {

struct Pairs {
  std::int16_t pair[256][2];  // the centroids of a byte's low and high nibble
};

Pairs pairs_of(const Operands& operands, bool keys) {
  Pairs out;
  for (int byte = 0; byte < 256; ++byte)
    for (int half = 0; half < 2; ++half) {
      const std::uint8_t entry = operands.table[(half == 0 ? byte : byte >> 4) & 15];
      out.pair[byte][half] = static_cast<std::int16_t>(keys ? entry : static_cast<std::int8_t>(entry));
    }
  return out;
}

std::uint64_t load64(const std::uint8_t* p) {
  std::uint64_t x;
  std::memcpy(&x, p, 8);
  return x;
}

// A unit of kChunk sign bytes becomes b, b >> 1 (avx2.cc says why); 4 bytes of signs.
template <int kChunk>
std::uint64_t spread_signs(const std::uint8_t* p) {
  std::uint32_t x;
  std::memcpy(&x, p, 4);
  if constexpr (kChunk == 4) return x | std::uint64_t{x} << 31;
  const std::uint64_t w = (x & 0xffffu) | std::uint64_t{x >> 16} << 32;
  return w | w << 15;
}

// Eight code bytes: byte m = 4 dword + b goes to out[dword][k][b], k as in operands.h.
template <int kBits, int kSignChunk, int kStride>
void look_up(const Pairs& pairs, const std::uint8_t* codes, const std::uint8_t* signs, std::int16_t* out) {
  constexpr std::uint64_t kEven = 0x3333333333333333u;
  const std::uint64_t x = load64(codes);
  std::uint64_t even = x, odd = 0;
  if constexpr (kBits != 4) even = x & kEven, odd = x >> 2 & kEven;
  if constexpr (kBits == 3) {
    const std::uint64_t s = spread_signs<kSignChunk>(signs);
    even |= s << 2 & kEven << 1 & ~kEven, odd |= s & kEven << 1 & ~kEven;
  }
  for (int m = 0; m < 8; ++m) {
    std::int16_t* to = out + m / 4 * kStride + m % 4;
    to[0] = pairs.pair[even >> 8 * m & 255][0];
    to[4] = pairs.pair[even >> 8 * m & 255][1];
    if constexpr (kBits != 4) {
      to[8] = pairs.pair[odd >> 8 * m & 255][0];
      to[12] = pairs.pair[odd >> 8 * m & 255][1];
    }
  }
}

template <int kHeadDim, int kBits, int kHeads, int>
void score(const std::uint8_t* codes, const std::uint8_t* ahead, const Operands& operands,
           std::int32_t* scores) {
  constexpr int kRow = row_bytes(kHeadDim, kBits);
  const Pairs pairs = pairs_of(operands, true);
  const auto* columns = reinterpret_cast<const std::int16_t*>(operands.columns);
  for (int t = 0; t < 64; ++t) {
    ask_for(ahead, 8 * kHeadDim * kBits, t, 64);
    std::int16_t centroids[kHeadDim];
    for (int b = 0; b < kRow; b += 8) {
      const int at = t * kRow + b;
      look_up<kBits, kHeadDim / 32, kHeadDim * 4 / kRow>(pairs, codes + at, codes + 64 * kRow + at / 2,
                                                         centroids + b * kHeadDim / kRow);
    }
    for (int h = 0; h < kHeads; ++h) {
      std::int32_t sum = operands.correction[h];
      for (int i = 0; i < kHeadDim; ++i) sum += centroids[i] * columns[h * kHeadDim + i];
      scores[64 * h + t] = sum;
    }
  }
}

template <int kHeadDim, int kBits, int kHeads, int>
void value(const std::uint8_t* codes, const std::uint8_t* ahead, const Operands& operands, float factor,
           float* sums) {
  constexpr int kUnitBytes = kHeadDim * 16;
  const Pairs pairs = pairs_of(operands, false);
  const auto* columns = reinterpret_cast<const std::int16_t*>(operands.columns);
  for (int at = 0; at < kUnitBytes; at += 8) {  // two units, coordinates of one token quarter
    ask_for(ahead, 8 * kHeadDim * kBits, at / 8, 2 * kHeadDim);
    std::int16_t centroids[32];  // [unit][k][m]
    look_up<kBits, 2, 16>(pairs, codes + at, codes + kUnitBytes + at / 2, centroids);
    if constexpr (kBits == 4) look_up<4, 2, 16>(pairs, codes + kUnitBytes + at, nullptr, centroids + 8);
    for (int h = 0; h < kHeads; ++h)
      for (int unit = 0; unit < 2; ++unit) {
        const std::int16_t* column = columns + 256 * h + 16 * (at / 4 % 16 + unit);
        std::int32_t sum = 0;
        for (int i = 0; i < 16; ++i) sum += centroids[16 * unit + i] * column[i];
        sums[h * 4 * kHeadDim + at / 4 + unit] += factor * static_cast<float>(sum);
      }
  }
}

std::uint64_t read(const std::uint8_t* codes, const std::uint8_t* ahead, std::size_t bytes) {
  std::uint64_t sum = 0;
  for (std::size_t at = 0; at < bytes; at += 8) {
    if (at % 64 == 0) __builtin_prefetch(ahead + at);
    sum ^= load64(codes + at);
  }
  return sum;
}

constexpr ScoreLoop kScores[2][3][4][2] = TQ_LOOPS(score);
constexpr ValueLoop kValues[2][3][4][2] = TQ_LOOPS(value);

}  // namespace

const LoopSet kPortable = {"portable",
                           TQ_LAYOUT_FLAGS,
                           [] { return true; },
                           4,
                           4,
                           16,
                           2,
                           256,
                           256,
                           [](const Shape& s) { return loop_of(kScores, s); },
                           [](const Shape&) { return ScoreLoop{nullptr}; },
                           [](const Shape& s) { return loop_of(kValues, s); },
                           read};

}  // namespace turboquant::bench
