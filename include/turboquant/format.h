// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>

#include "turboquant/status.h"

namespace turboquant {

// A page: the codes of 64 tokens of one KV head, the unit that page tables name.
// d = head_dim, kb = k_bits, vb = v_bits; every area starts at a multiple of 128 bytes:
//
//   bytes            area                                               4/4 bits, d = 128
//   8 d kb           K codes                                            [   0, 4096)
//   8 d vb           V codes                                            [4096, 8192)
//   128              K scales, fp16; token t at index 8 (t % 8) + t / 8 [8192, 8320)
//   128              V scales, fp16; the same order                     [8320, 8448)
//   d                K centre, int8 per coordinate of the rotated key   [8448, 8576)
//   2                K centre step, fp16                                [8576, 8578)
//   0..126           zero padding to a multiple of 128                  [8578, 8704)
//
// What the bytes mean, in the rotated domain (src/core/tables.h has the integer tables T):
//   key   y[t][e] = (scale < 0 ? 0 : step * centre[e]) + |scale| / 64 * T_K[code]
//   value y[t][e] = scale / 64 * T_V[code]
// The sign bit of a K scale says "this token's reference is zero, not the centre". A scale of NaN
// marks a token whose vector held NaN or infinity (or was too large to rotate): its codes are 0
// and it decodes to NaN. The unit 1/64 puts fp16's normal range at norms from 5e-4 to 5e5 (d = 128);
// larger norms are clamped to the largest scale, 65504.
//
// A 4-bit code is sign (bit 3) and magnitude index (bits 0-2), a 3-bit code sign (bit 2) and magnitude
// (bits 0-1), a 2-bit code sign (bit 1) and magnitude (bit 0). A 3-bit area is a 2-bit area (the
// magnitudes) followed by a 1-bit area (the signs), so only widths b of 1, 2 and 4 need a layout.
//
// Nibble-strided packing: C codes of b bits are packed as N = C b / 4 nibbles; nibble n holds the codes
// n, n + N, n + 2N, ..., low bits first (4 bits: nibble n is code n). Nibble n is bits 4n..4n+3 of the
// little-endian bytes. A GPU lane then selects 4 codes at once with one mask and one byte permute.
//
// K codes, b bits. The coordinates are cut into planes: as many of 128 as fit, then one each of 64, 32
// and 16 where the remainder has them (d = 80: 64 + 16). A plane of w coordinates from e0 is 64 rows,
// one a token, of w b / 8 bytes; a row is 4 chunks q = 0..3 of C = w / 4 codes, nibble-strided:
//   coordinate e0 + 32 i + 16 h + 4 q + n  is code 8 i + 4 h + n of chunk q       (n < 4, h < 2)
// (lane 4 g + q of a warp reads chunk q of rows g and g + 8: the A operand of mma.m16n8k32).
//
// V codes, b bits. A (coordinate e, q) pair owns C = 16 codes, nibble-strided:
//   token 32 i + 8 n + 2 q + h  is code 8 i + 4 h + n                             (n < 4, h < 2, i < 2)
// At 4 bits a pair's 8 bytes are split: the words of i = 0 fill the first half of the area, those of
// i = 1 the second. Units (words at 4 bits, 4 bytes at 2 bits, 2 bytes at 1 bit) lie in this order:
//   for each block of 32 coordinates: lane 4 g + q = 0..31: 4 units, coordinate 32 block + 8 j + g
//   for a last block of 16:           lane 4 g + q = 0..31: 2 units, coordinate 32 block + 8 j + g
// (a lane reads the A operand, V transposed, of two 16 x 32 tiles with one load).
//
// Chosen by measurement: docs/adr/0001. This comment is the format: when it changes, bump
// kFormatVersion and add a file to tests/golden/.
inline constexpr int kFormatVersion = 1;
inline constexpr int kPageTokens = 64;
inline constexpr int kPageAlignment = 128;  // bytes; other pitches cost an H100 up to 7 % of its bandwidth
inline constexpr int kMinPageHeadDim = 32, kMaxPageHeadDim = 512;

struct PageFormat {
  int head_dim;  // a multiple of 16 from 32 to 512
  int k_bits;    // 2, 3 or 4
  int v_bits;    // 2, 3 or 4

  constexpr std::size_t k_codes_offset() const { return 0; }
  constexpr std::size_t v_codes_offset() const { return code_bytes(k_bits); }
  constexpr std::size_t k_scales_offset() const { return code_bytes(k_bits) + code_bytes(v_bits); }
  constexpr std::size_t v_scales_offset() const { return k_scales_offset() + kScaleBytes; }
  constexpr std::size_t centre_offset() const { return v_scales_offset() + kScaleBytes; }
  constexpr std::size_t centre_step_offset() const {
    return centre_offset() + static_cast<std::size_t>(head_dim);
  }
  constexpr std::size_t page_bytes() const {
    return (centre_step_offset() + 2 + kPageAlignment - 1) / kPageAlignment * kPageAlignment;
  }

  friend constexpr bool operator==(const PageFormat&, const PageFormat&) = default;

 private:
  static constexpr std::size_t kScaleBytes = 2 * kPageTokens;
  constexpr std::size_t code_bytes(int bits) const {
    return static_cast<std::size_t>(kPageTokens) * static_cast<std::size_t>(head_dim) *
           static_cast<std::size_t>(bits) / 8;
  }
};

static_assert(PageFormat{128, 4, 4}.page_bytes() == 8704);  // 136 B a token and head; bf16: 512, 3.76x
static_assert(PageFormat{64, 4, 4}.page_bytes() == 4480);   //  70 B;                  bf16: 256, 3.66x
static_assert(PageFormat{64, 3, 3}.page_bytes() == 3456);   //  54 B;                             4.74x
static_assert(PageFormat{64, 2, 2}.page_bytes() == 2432);   //  38 B;                             6.74x

// Ok, or what is wrong with the format and what would be right.
Status check(const PageFormat& format);

}  // namespace turboquant
