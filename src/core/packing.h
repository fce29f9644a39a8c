// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace turboquant::core {

// `count` codes of `bits` (0 to 8) each as one little-endian bit string: code i lies in the bits
// [i * bits, (i + 1) * bits), bit b in byte b / 8 at place b % 8. Codes may straddle two bytes; the last
// byte's unused bits are zero.
constexpr std::size_t packed_bytes(std::size_t count, int bits) {
  return (count * static_cast<std::size_t>(bits) + 7) / 8;
}

// codes [count], each below 2^bits -> packed [packed_bytes(count, bits)].
constexpr void pack(const std::uint8_t* codes, std::size_t count, int bits, std::uint8_t* packed) {
  std::uint32_t held = 0;  // bits not written yet, the earliest lowest
  int held_bits = 0;
  for (std::size_t i = 0; i < count; ++i) {
    held |= static_cast<std::uint32_t>(codes[i]) << held_bits;
    held_bits += bits;
    if (held_bits < 8) continue;
    *packed++ = static_cast<std::uint8_t>(held & 0xFFu);
    held >>= 8;
    held_bits -= 8;
  }
  if (held_bits > 0) *packed = static_cast<std::uint8_t>(held);
}

// The inverse.
constexpr void unpack(const std::uint8_t* packed, std::size_t count, int bits, std::uint8_t* codes) {
  const std::uint32_t mask = (1u << bits) - 1u;
  std::uint32_t held = 0;
  int held_bits = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (held_bits < bits) {
      held |= static_cast<std::uint32_t>(*packed++) << held_bits;
      held_bits += 8;
    }
    codes[i] = static_cast<std::uint8_t>(held & mask);
    held >>= bits;
    held_bits -= bits;
  }
}

static_assert(packed_bytes(128, 4) == 64 && packed_bytes(3, 3) == 2 && packed_bytes(100, 0) == 0);

}  // namespace turboquant::core
