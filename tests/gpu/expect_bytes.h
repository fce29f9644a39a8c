// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include "device_world.h"

// Bitwise equality of pages and fringe, with the place of the first difference: page, head and area.
namespace turboquant::gpu {

inline std::string area_of(const PageFormat& f, std::size_t at) {
  const char* name = at < f.v_codes_offset()           ? "K codes"
                     : at < f.k_scales_offset()        ? "V codes"
                     : at < f.v_scales_offset()        ? "K scales"
                     : at < f.centre_offset()          ? "V scales"
                     : at < f.centre_step_offset()     ? "centre"
                     : at < f.centre_step_offset() + 2 ? "centre step"
                                                       : "padding";
  return std::string(name) + ", byte " + std::to_string(at);
}

// How many elements differ, and the first that does.
template <class T>
std::pair<std::size_t, std::size_t> differences(const std::vector<T>& got, const std::vector<T>& expected) {
  std::size_t count = 0, first = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    if (std::memcmp(&got[i], &expected[i], sizeof(T)) != 0 && count++ == 0) first = i;
  return {count, first};
}

// True where all is equal; one failure otherwise.
inline bool expect_same_bytes(const World& world, const DeviceWorld& device, const std::string& what) {
  const PageFormat& f = world.shape.format;
  const auto pages = device.page_bytes.download();
  if (const auto [count, first] = differences(pages, world.page_bytes); count > 0) {
    const std::size_t page = first / f.page_bytes(), heads = World::n(world.shape.kv_heads);
    std::size_t entry = 0;
    while (entry < world.table.size() && World::n(world.table[entry]) != page / heads) ++entry;
    ADD_FAILURE() << what << ": " << count << " page bytes differ, the first in page " << page / heads
                  << " (sequence " << entry / World::n(world.shape.max_pages) << ", page index "
                  << entry % World::n(world.shape.max_pages) << "), head " << page % heads << ", "
                  << area_of(f, first % f.page_bytes()) << ": " << int{pages[first]} << " instead of "
                  << int{world.page_bytes[first]};
    return false;
  }
  const auto fringe = device.fringe_halves.download();
  if (const auto [count, first] = differences(fringe, world.fringe_halves); count > 0) {
    const std::size_t d = World::n(f.head_dim);
    const std::size_t slots = World::n(world.shape.fringe_first + world.shape.fringe_recent);
    ADD_FAILURE() << what << ": " << count << " fringe elements differ, the first in slot "
                  << first / (2 * d) % slots << " of sequence and head " << first / (2 * d) / slots << ", "
                  << (first / d % 2 != 0 ? "value " : "key ") << first % d << ": " << fringe[first]
                  << " instead of " << world.fringe_halves[first];
    return false;
  }
  return true;
}

inline std::string name_of(const PageFormat& f) {
  return "head_dim " + std::to_string(f.head_dim) + ", bits " + std::to_string(f.k_bits) + "/" +
         std::to_string(f.v_bits);
}

}  // namespace turboquant::gpu
