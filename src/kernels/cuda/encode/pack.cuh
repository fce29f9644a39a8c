// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/layout.h"

// One token's codes into code areas, by the functions of core/layout.h.
namespace turboquant::kernels::cuda {

// Byte x of a token's row of a plane of `width` coordinates of a K area of width b: bits b of
// codes[e] >> from, codes [width].
__device__ inline std::uint8_t key_row_byte(const std::uint8_t* codes, int width, int b, int from, int x) {
  const int nibbles = width * b / 16, mask = (1 << b) - 1;  // nibbles: of a chunk of width / 4 codes
  std::uint32_t byte = 0;
  for (int half = 0; half < 2; ++half) {
    const int q = (2 * x + half) / nibbles, nibble = (2 * x + half) - q * nibbles;
    for (int k = 0; k < 4 / b; ++k) {
      const int c = nibble + k * nibbles;  // code c = 8 i + 4 h + n of chunk q
      const int e = c / 8 * 32 + (c & 4) * 4 + 4 * q + (c & 3);
      byte |= static_cast<std::uint32_t>(codes[e] >> from & mask) << (4 * half + k * b);
    }
  }
  return static_cast<std::uint8_t>(byte);
}

// bits b of codes[e] >> from into the token's rows of a K area of width b; a warp calls it. The bytes of a
// token's rows are its own, so they are written whole.
__device__ inline void pack_key_area(const std::uint8_t* codes, int head_dim, int b, int from, int slot,
                                     std::uint8_t* area) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int first = 0; first < head_dim;) {
    const int width = core::plane_of(head_dim, first).width;
    const int row_bytes = width * b / 8;
    std::uint8_t* row = area + first * kPageTokens * b / 8 + slot * row_bytes;
    for (int x = lane; x < row_bytes; x += 32) row[x] = key_row_byte(codes + first, width, b, from, x);
    first += width;
  }
}

__device__ inline void pack_key(const std::uint8_t* codes, int head_dim, int bits, int slot,
                                std::uint8_t* area) {
  if (bits == 4) return pack_key_area(codes, head_dim, 4, 0, slot, area);
  pack_key_area(codes, head_dim, 2, 0, slot, area);
  if (bits == 3) pack_key_area(codes, head_dim, 1, 2, slot, area + 16 * head_dim);
}

// Coordinate e's code of one token. Bytes hold several tokens' codes of one coordinate: a coordinate's codes
// are written by one thread.
__device__ inline void pack_value(std::uint8_t code, int head_dim, int bits, int slot, int e,
                                  std::uint8_t* area) {
  core::write_code(area, core::value_position, head_dim, bits, slot, e, code);
}

}  // namespace turboquant::kernels::cuda
