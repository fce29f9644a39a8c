// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// Where a code lies in its page: the comment in turboquant/format.h as functions. Slow and plain; the
// reference kernels and the tests use them, fast kernels walk the areas in order instead.
namespace turboquant::core {

// Bit `shift` of byte `byte` on: where a code's low bit lies.
struct CodePosition {
  std::size_t byte;
  int shift;
};

struct Plane {
  int first;  // coordinate
  int width;  // 128, 64, 32 or 16
};

// The plane that holds coordinate e of head_dim d.
static inline constexpr Plane plane_of(int d, int e) {
  int first = 0, width = 128;
  for (;;) {
    while (d - first < width) width /= 2;
    if (e < first + width) return {first, width};
    first += width;
  }
}

// Code c of a chunk of `codes` codes of b bits, nibble-strided, whose first nibble is `first_nibble`.
static inline constexpr CodePosition nibble_strided(std::size_t first_nibble, int codes, int b, int c) {
  const int nibbles = codes * b / 4;
  const std::size_t nibble = first_nibble + static_cast<std::size_t>(c % nibbles);
  return {nibble / 2, static_cast<int>(nibble % 2) * 4 + c / nibbles * b};
}

// Token t, coordinate e in a K area of width b in {1, 2, 4}.
static inline constexpr CodePosition key_position(int d, int b, int t, int e) {
  const Plane plane = plane_of(d, e);
  const int r = e - plane.first;
  const int i = r / 32, h = r % 32 / 16, q = r % 16 / 4, n = r % 4;
  const int codes = plane.width / 4;
  const std::size_t nibbles_before =
      static_cast<std::size_t>((plane.first * 64 + t * plane.width + q * codes) * b / 4);
  return nibble_strided(nibbles_before, codes, b, 8 * i + 4 * h + n);
}

// The order of the units of a V area: the unit of coordinate e, token quarter q.
static inline constexpr std::size_t value_unit(int d, int e, int q) {
  const int block = e / 32, j = e % 32 / 8, g = e % 8, lane = 4 * g + q;
  const int units = d - 32 * block >= 32 ? 4 : 2;
  return static_cast<std::size_t>(128 * block + lane * units + j);
}

// Token t, coordinate e in a V area of width b in {1, 2, 4}.
static inline constexpr CodePosition value_position(int d, int b, int t, int e) {
  const int i = t / 32, n = t % 32 / 8, q = t % 8 / 2, h = t % 2;
  const std::size_t unit = value_unit(d, e, q);
  const int c = 8 * i + 4 * h + n;
  if (b == 4) return nibble_strided((static_cast<std::size_t>(4 * d * i) + unit) * 8, 8, 4, c % 8);
  return nibble_strided(unit * static_cast<std::size_t>(4 * b), 16, b, c);
}

// Where token t's scale lies among the 64 fp16 of its area.
static inline constexpr int scale_index(int t) {
  return 8 * (t % 8) + t / 8;
}

using Position = CodePosition (*)(int d, int b, int t, int e);

static inline constexpr std::uint8_t read_bits(const std::uint8_t* area, CodePosition at, int b) {
  return static_cast<std::uint8_t>((area[at.byte] >> at.shift) & ((1 << b) - 1));
}
static inline constexpr void write_bits(std::uint8_t* area, CodePosition at, int b, std::uint8_t code) {
  const int mask = ((1 << b) - 1) << at.shift;
  area[at.byte] = static_cast<std::uint8_t>((area[at.byte] & ~mask) | ((code << at.shift) & mask));
}

// A code of 2, 3 or 4 bits; 3 bits are a 2-bit area followed by a 1-bit area.
static inline constexpr std::uint8_t read_code(const std::uint8_t* area, Position position, int d, int bits,
                                               int t, int e) {
  if (bits != 3) return read_bits(area, position(d, bits, t, e), bits);
  const std::uint8_t* signs = area + static_cast<std::size_t>(16 * d);
  return static_cast<std::uint8_t>(read_bits(area, position(d, 2, t, e), 2) |
                                   read_bits(signs, position(d, 1, t, e), 1) << 2);
}
static inline constexpr void write_code(std::uint8_t* area, Position position, int d, int bits, int t, int e,
                                        std::uint8_t code) {
  if (bits != 3) return write_bits(area, position(d, bits, t, e), bits, code);
  write_bits(area, position(d, 2, t, e), 2, code & 3);
  write_bits(area + static_cast<std::size_t>(16 * d), position(d, 1, t, e), 1,
             static_cast<std::uint8_t>(code >> 2));
}

}  // namespace turboquant::core
