// SPDX-License-Identifier: Apache-2.0
// Codes to and from pages, byte by byte in storage order. Bound by loads and stores: at 3 and 2 bits one of
// each for four codes; 4 bits are in nibbles.h.
#include "kernels/portable/nibbles.h"

namespace turboquant::kernels::TQ_ISA {
namespace {

using core::CodeTable;

// What the codes of one byte stand for, in steps, in storage order: 4 codes of 2 bits.
struct Quads {
  float steps[256][4];
};
// The sign bits of 4 codes of 3 bits, which lie 2 apart in a byte of the sign area: bits 0, 2, 4, 6.
struct Signs {
  std::uint32_t flip[0x56][4];
};

constexpr Quads make_quads(const CodeTable& table) {
  Quads quads{};
  for (int byte = 0; byte < 256; ++byte)
    for (int n = 0; n < 4; ++n) quads.steps[byte][n] = steps_of(table, byte >> (2 * n) & 3);
  return quads;
}
constexpr Signs make_signs() {
  Signs signs{};
  for (int byte = 0; byte < 0x56; ++byte)
    for (int n = 0; n < 4; ++n) signs.flip[byte][n] = (byte >> (2 * n) & 1) != 0 ? 0x80000000u : 0u;
  return signs;
}

constexpr NibbleTable kKeyNibbles = make_nibbles(core::kKey4);
constexpr NibbleTable kValueNibbles = make_nibbles(core::kValue4);
constexpr Quads kQuads2 = make_quads(core::kEither2);
constexpr Quads kMagnitudes3 = make_quads(core::kEither3);
constexpr Signs kSigns = make_signs();

inline void unpack_nibbles(const std::uint8_t* bytes, int count, const NibbleTable& table, float* out) {
  for (int i = 0; i < count; i += 8) unpack_sixteen(bytes + i, bytes + i + 4, table, out + 2 * i);
}
inline void unpack_quads(const std::uint8_t* bytes, int count, float* out) {
  for (int i = 0; i < count; ++i) std::memcpy(out + 4 * i, kQuads2.steps[bytes[i]], 4 * sizeof(float));
}

inline void unpack_signed_quad(std::uint8_t byte, int signs, float* out) {
  std::uint32_t steps[4];
  std::memcpy(steps, kMagnitudes3.steps[byte], sizeof steps);
  for (int n = 0; n < 4; ++n) steps[n] ^= kSigns.flip[signs][n];
  std::memcpy(out, steps, sizeof steps);
}

// One chunk of 3-bit codes: kBytes of magnitudes (2, 4 or 8), half as many of signs. Magnitude nibble n of N
// holds codes n and n + N; their signs are bits r and r + 2 of sign nibble n % (N / 2), r = 2 n / N.
template <int kBytes>
inline void unpack_triples(const std::uint8_t* bytes, const std::uint8_t* signs, float* out) {
  for (int i = 0; i < kBytes; ++i)
    unpack_signed_quad(bytes[i], signs[i % (kBytes / 2)] >> (2 * i / kBytes) & 0x55, out + 4 * i);
}
// A chunk of 4 codes, in a plane of 16: one byte of magnitudes, one nibble of signs, whose bits are the
// codes.
inline void unpack_four(std::uint8_t byte, int sign_nibble, float* out) {
  unpack_signed_quad(byte, (sign_nibble & 5) | (sign_nibble >> 1 & 5) << 4, out);
}

inline void unpack_triple_row(const std::uint8_t* bytes, const std::uint8_t* signs, int width, float* out) {
  for (int q = 0; q < 4; ++q) {
    const std::uint8_t *chunk = bytes + q * width / 16, *chunk_signs = signs + q * width / 32;
    float* steps = out + q * width / 4;
    if (width == 128) unpack_triples<8>(chunk, chunk_signs, steps);
    else if (width == 64) unpack_triples<4>(chunk, chunk_signs, steps);
    else if (width == 32) unpack_triples<2>(chunk, chunk_signs, steps);
    else unpack_four(*chunk, signs[q / 2] >> (q % 2 * 4) & 15, steps);
  }
}

}  // namespace

void unpack_keys(const std::uint8_t* page, const Layout& layout, float* out) {
  const int d = layout.format.head_dim, bits = layout.format.k_bits;
  const std::uint8_t* signs = page + 16 * d;
  for (int first = 0; first < d;) {
    const int width = core::plane_of(d, first).width;
    for (int t = 0; t < kPageTokens; ++t) {
      float* row = out + t * d + first;
      const int before = first * kPageTokens + t * width;  // codes
      if (bits == 4) unpack_nibbles(page + before / 2, width / 2, kKeyNibbles, row);
      else if (bits == 2) unpack_quads(page + before / 4, width / 4, row);
      else unpack_triple_row(page + before / 4, signs + before / 8, width, row);
    }
    first += width;
  }
}

void unpack_values(const std::uint8_t* page, const Layout& layout, float* out) {
  const int d = layout.format.head_dim, bits = layout.format.v_bits;
  const std::uint8_t* codes = page + layout.format.v_codes_offset();
  const std::uint8_t* signs = codes + 16 * d;
  for (int e = 0; e < d; ++e)
    for (int q = 0; q < 4; ++q) {
      const int unit = layout.value_units[e] + q * layout.value_unit_step[e];
      float* row = out + e * kPageTokens + q * 16;
      if (bits == 4) {
        unpack_sixteen(codes + unit * 4, codes + 16 * d + unit * 4, kValueNibbles, row);
      } else if (bits == 2) {
        unpack_quads(codes + unit * 4, 4, row);
      } else {
        unpack_triples<4>(codes + unit * 4, signs + unit * 2, row);
      }
    }
}

namespace {

// bits `b` of codes >> from, in storage order, into a row of bytes.
inline void pack_row(const std::uint8_t* codes, const std::uint16_t* order, int count, int b, int from,
                     std::uint8_t* row) {
  const int per_byte = 8 / b, mask = (1 << b) - 1;
  for (int i = 0; i < count / per_byte; ++i) {
    int byte = 0;
    for (int n = 0; n < per_byte; ++n) byte |= (codes[order[i * per_byte + n]] >> from & mask) << (n * b);
    row[i] = static_cast<std::uint8_t>(byte);
  }
}

inline void pack_key_area(const std::uint8_t* codes, const Order& order, int d, int b, int from, int t,
                          std::uint8_t* area) {
  for (int first = 0; first < d;) {
    const int width = core::plane_of(d, first).width;
    pack_row(codes, order.keys + first, width, b, from, area + (first * kPageTokens + t * width) * b / 8);
    first += width;
  }
}

// One token's codes: b bits in one unit of each coordinate.
inline void pack_value_area(const std::uint8_t* codes, const Layout& layout, int b, int from, int t,
                            std::uint8_t* area) {
  const int d = layout.format.head_dim;
  const core::CodePosition at = core::value_position(d, b, t, 0);
  const int q = t % 8 / 2, mask = (1 << b) - 1;
  const int unit_bytes = b == 4 ? 4 : 2 * b;
  const int unit0 = layout.value_units[0] + q * layout.value_unit_step[0];
  std::uint8_t* base = area + at.byte - unit0 * unit_bytes;
  for (int e = 0; e < d; ++e) {
    std::uint8_t* byte = base + (layout.value_units[e] + q * layout.value_unit_step[e]) * unit_bytes;
    *byte = static_cast<std::uint8_t>((*byte & ~(mask << at.shift)) | (codes[e] >> from & mask) << at.shift);
  }
}

}  // namespace

void pack_key(const std::uint8_t* codes, const Layout& layout, int t, std::uint8_t* page) {
  const int d = layout.format.head_dim, bits = layout.format.k_bits;
  if (bits == 4) return pack_key_area(codes, layout.nibbles, d, 4, 0, t, page);
  pack_key_area(codes, layout.pairs, d, 2, 0, t, page);
  if (bits == 3) pack_key_area(codes, layout.bits, d, 1, 2, t, page + 16 * d);
}

void pack_value(const std::uint8_t* codes, const Layout& layout, int t, std::uint8_t* page) {
  std::uint8_t* area = page + layout.format.v_codes_offset();
  const int bits = layout.format.v_bits;
  if (bits == 4) return pack_value_area(codes, layout, 4, 0, t, area);
  pack_value_area(codes, layout, 2, 0, t, area);
  if (bits == 3) pack_value_area(codes, layout, 1, 2, t, area + 16 * layout.format.head_dim);
}

void make_layout(const PageFormat& format, Layout& out) {
  out.format = format;
  const int d = format.head_dim;
  for (const int b : {4, 2, 1}) {
    Order& order = b == 4 ? out.nibbles : b == 2 ? out.pairs : out.bits;
    for (int e = 0; e < d; ++e) {
      const core::Plane plane = core::plane_of(d, e);
      const core::CodePosition at = core::key_position(d, b, 0, e);
      const int bit = static_cast<int>(at.byte) * 8 + at.shift - plane.first * kPageTokens * b;
      order.keys[plane.first + bit / b] = static_cast<std::uint16_t>(e);
    }
    for (int t = 0; t < kPageTokens; ++t) {  // coordinate 0's four units, and their halves at 4 bits
      const int q = t % 8 / 2, half = b == 4 ? t / 32 : 0, unit = q * (d >= 32 ? 4 : 2);
      const core::CodePosition at = core::value_position(d, b, t, 0);
      const int unit_bits = b == 4 ? 32 : 16 * b;
      const int bit = static_cast<int>(at.byte) * 8 + at.shift - (half * 4 * d + unit) * unit_bits;
      order.values[q * 16 + half * 8 + bit / b] = static_cast<std::uint8_t>(t);
    }
  }
  for (int e = 0; e < d; ++e) {
    out.value_units[e] = static_cast<std::uint16_t>(core::value_unit(d, e, 0));
    out.value_unit_step[e] = static_cast<std::uint8_t>(core::value_unit(d, e, 1) - core::value_unit(d, e, 0));
  }
}

}  // namespace turboquant::kernels::TQ_ISA
