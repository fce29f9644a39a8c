// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/layout.h"
#include "core/tables.h"

// Codes of a page as table steps.
namespace turboquant::kernels::cuda {

// A table's magnitudes, a byte each, in order.
constexpr std::uint64_t packed_magnitudes(const core::CodeTable& table) {
  std::uint64_t out = 0;
  for (int k = 0; k < core::kMaxMagnitudes; ++k)
    out |= static_cast<std::uint64_t>(table.magnitudes[k]) << (8 * k);
  return out;
}

// What codes of one table stand for, in steps (halves at 4-bit values).
struct Steps {
  std::uint64_t magnitudes;
  std::uint32_t sign;  // the code's sign bit
  float unit;          // 1, or 1/2

  __device__ float operator()(std::uint32_t code) const {
    const auto magnitude = static_cast<int>(magnitudes >> (8 * (code & (sign - 1))) & 255u);
    return static_cast<float>((code & sign) != 0 ? -magnitude : magnitude) * unit;
  }
};
__device__ inline Steps steps_of(int bits, bool is_key) {
  constexpr std::uint64_t kTables[4] = {packed_magnitudes(core::kKey4), packed_magnitudes(core::kValue4),
                                        packed_magnitudes(core::kEither3), packed_magnitudes(core::kEither2)};
  static_assert(core::kKey4.half_steps == 1 && core::kValue4.half_steps == 2);
  static_assert(core::kEither3.half_steps == 1 && core::kEither2.half_steps == 1);
  if (bits == 4) return {is_key ? kTables[0] : kTables[1], 8, is_key ? 1.0f : 0.5f};
  return {bits == 3 ? kTables[2] : kTables[3], bits == 3 ? 4u : 2u, 1.0f};
}

// The codes of coordinates e .. e + 3 of a key, e a multiple of 4: a nibble each, from the low bits up.
// Neighbours lie in neighbouring nibbles, but in narrow planes of narrow codes.
__device__ inline std::uint32_t four_key_codes(const std::uint8_t* area, int head_dim, int bits, int t,
                                               int e) {
  const auto four = [&](const std::uint8_t* from, int b) {
    const core::CodePosition at = core::key_position(head_dim, b, t, e);
    return static_cast<std::uint32_t>(*reinterpret_cast<const std::uint16_t*>(from + at.byte)) >> at.shift;
  };
  if (bits == 4) return four(area, 4);
  if (core::plane_of(head_dim, e).width >= 64) {
    const std::uint32_t low = four(area, 2) & 0x3333u;
    return bits == 2 ? low : low | (four(area + 16 * head_dim, 1) & 0x1111u) << 2;
  }
  std::uint32_t out = 0;
  for (int n = 0; n < 4; ++n)
    out |= static_cast<std::uint32_t>(core::read_code(area, core::key_position, head_dim, bits, t, e + n))
           << (4 * n);
  return out;
}

// Whether that holds at every e for codes of 2 and 3 bits too.
__device__ inline bool narrow_codes_on_lines(int head_dim) {
  return core::plane_of(head_dim, head_dim - 1).width >= 64;
}

// The same for one e and many tokens of a page, on lines in t that are worked out once. Not where codes of 2
// and 3 bits lie in narrow planes.
class KeyColumn {
 public:
  __device__ KeyColumn(const std::uint8_t* area, int head_dim, int bits, int e) : bits_(bits) {
    const int b = bits == 4 ? 4 : 2;
    const int width = core::plane_of(head_dim, e).width;
    const core::CodePosition low = core::key_position(head_dim, b, 0, e);
    const core::CodePosition top = core::key_position(head_dim, 1, 0, e);
    low_ = {area + low.byte, width * b / 8, low.shift};
    top_ = {area + 16 * head_dim + top.byte, width / 8, top.shift};
  }
  __device__ std::uint32_t operator()(int t) const {
    const std::uint32_t low = low_.at(t);
    if (bits_ == 4) return low;
    return bits_ == 2 ? low & 0x3333u : (low & 0x3333u) | (top_.at(t) & 0x1111u) << 2;
  }

 private:
  int bits_;
  struct Line {
    const std::uint8_t* first;
    int step, shift;
    __device__ std::uint32_t at(int t) const {
      return static_cast<std::uint32_t>(*reinterpret_cast<const std::uint16_t*>(first + t * step)) >> shift;
    }
  };
  Line low_, top_;
};

// Coordinate e of eight tokens: nibble 4 h + n is the code of token 32 i + 8 n + 2 q + h.
__device__ inline std::uint32_t eight_value_codes(const std::uint8_t* area, int head_dim, int bits, int i,
                                                  int q, int e) {
  const auto unit = static_cast<std::uint32_t>(core::value_unit(head_dim, e, q));
  const auto* words = reinterpret_cast<const std::uint32_t*>(area);
  if (bits == 4) return words[static_cast<std::uint32_t>(4 * head_dim * i) + unit];
  const std::uint32_t low = words[unit] >> (2 * i) & 0x33333333u;
  if (bits == 2) return low;
  const std::uint32_t signs = reinterpret_cast<const std::uint16_t*>(area + 16 * head_dim)[unit] >> (2 * i);
  return low | (signs & 0x1111u) << 2 | (signs >> 1 & 0x1111u) << 18;
}

}  // namespace turboquant::kernels::cuda
