// SPDX-License-Identifier: Apache-2.0
#include "turboquant/format.h"

#include <algorithm>
#include <utility>

namespace turboquant {

Status check(const PageFormat& format) {
  for (const auto& [name, bits] : {std::pair{"k_bits", format.k_bits}, std::pair{"v_bits", format.v_bits}})
    if (bits < 2 || bits > 4)
      return invalid(std::string(name) + "=" + std::to_string(bits) + " is not a page width; use 2, 3 or 4");
  const int d = format.head_dim;
  if (d < kMinPageHeadDim || d > kMaxPageHeadDim || d % 16 != 0) {
    const int near = std::clamp((d + 8) / 16 * 16, kMinPageHeadDim, kMaxPageHeadDim);
    return invalid("head_dim=" + std::to_string(d) +
                   " is not a multiple of 16 from 32 to 512; the nearest is " + std::to_string(near));
  }
  return {};
}

}  // namespace turboquant
