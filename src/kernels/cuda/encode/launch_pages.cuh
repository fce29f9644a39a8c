// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "kernels/cuda/encode/pages.cuh"
#include "kernels/cuda/launch.h"

// encode_pages for any head_dim, with a key_metric or without: a file instantiates one of the two.
namespace turboquant::kernels::cuda {

inline constexpr int kPageWarps = 8;
inline constexpr int kRowBytes = 32 * 1024;  // of rotated keys that a block keeps

// n: 32 coordinates_per_lane().
constexpr BlockPlan plan_of(const PageFormat& format, int n, bool direct) {
  BlockPlan plan{};
  plan.direct = direct;
  plan.warps = direct ? 1 : kPageWarps;
  plan.row_count = direct ? plan.warps : std::min(kPageTokens, kRowBytes / (4 * n));
  plan.image_bytes =
      direct ? 0 : 8 * format.head_dim * std::max(format.k_bits, format.v_bits) + 2 * kPageTokens;
  return plan;
}

template <bool kFlip, int C>
Status launch_pages_of(const EncodeCall& call, std::int64_t slots, bool direct, const Context& context) {
  constexpr int n = 32 * C;
  const BlockPlan plan = plan_of(call.args.pages.format, n, direct);
  const auto heads = static_cast<unsigned>(call.args.pages.kv_heads);
  const dim3 grid(static_cast<unsigned>(slots), direct ? heads : 2 * heads);
  const int parts = direct ? 2 : 1;  // of a block
  const Launch how{"encode", grid, dim3(static_cast<unsigned>(32 * plan.warps * parts)),
                   static_cast<std::size_t>(plan.bytes(n) + (direct ? 4 * n : 0)), true};
  return launch(how, context, direct ? &encode_pages<C, true, kFlip> : &encode_pages<C, false, kFlip>, call,
                plan);
}

template <bool kFlip>
Status launch_pages_with(const EncodeCall& call, std::int64_t slots, bool direct, const Context& context) {
  switch (coordinates_per_lane(call.args.pages.format.head_dim)) {
    case 1:
      return launch_pages_of<kFlip, 1>(call, slots, direct, context);
    case 2:
      return launch_pages_of<kFlip, 2>(call, slots, direct, context);
    case 4:
      return launch_pages_of<kFlip, 4>(call, slots, direct, context);
    case 8:
      return launch_pages_of<kFlip, 8>(call, slots, direct, context);
    default:
      return launch_pages_of<kFlip, 16>(call, slots, direct, context);
  }
}

}  // namespace turboquant::kernels::cuda
