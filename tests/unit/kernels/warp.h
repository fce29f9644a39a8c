// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

// What a warp of a GPU does with bytes, on the CPU.
namespace turboquant::warp {

inline constexpr int kLanes = 32;
inline int group(int lane) {
  return lane >> 2;
}  // g: the row of a fragment, or its column
inline int quarter(int lane) {
  return lane & 3;
}  // q: which 4 of its 16 columns, or rows

// PRMT of PTX, default mode: byte j of the result is byte (selector nibble j & 7) of b:a, or, where the
// nibble's bit 3 is set, that byte's sign bit eight times.
inline std::uint32_t prmt(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = a | std::uint64_t{b} << 32;
  std::uint32_t out = 0;
  for (int j = 0; j < 4; ++j) {
    const std::uint32_t nibble = selector >> 4 * j & 15;
    std::uint32_t byte = static_cast<std::uint32_t>(bytes >> 8 * (nibble & 7)) & 255;
    if ((nibble & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
    out |= byte << 8 * j;
  }
  return out;
}

inline std::int8_t byte_of(std::uint32_t x, int j) {
  return static_cast<std::int8_t>(x >> 8 * j);
}

// One load of `bytes` a lane: the warp reads 32 * bytes without a hole or an overlap, in the order of the
// lanes.
inline bool is_contiguous(const std::vector<std::size_t>& addresses, std::size_t bytes) {
  for (std::size_t lane = 1; lane < addresses.size(); ++lane)
    if (addresses[lane] != addresses[0] + lane * bytes) return false;
  return addresses.size() == kLanes && addresses[0] % bytes == 0;
}

// Shared memory has 32 banks of 4 bytes. A load of 16 bytes a lane is served for 8 lanes at a time, of 8
// bytes for 16, of 4 or fewer for all; served at once where no bank has two different words.
inline bool is_conflict_free(const std::vector<std::size_t>& addresses, std::size_t bytes) {
  const std::size_t lanes = bytes == 16 ? 8 : bytes == 8 ? 16 : 32;
  for (std::size_t first = 0; first < addresses.size(); first += lanes) {
    std::set<std::size_t> words;
    std::array<int, 32> in_bank{};
    for (std::size_t lane = first; lane < first + lanes; ++lane)
      for (std::size_t byte = 0; byte < bytes; byte += 4) words.insert((addresses[lane] + byte) / 4);
    for (const std::size_t word : words)
      if (++in_bank[word % 32] > 1) return false;
  }
  return true;
}

}  // namespace turboquant::warp
