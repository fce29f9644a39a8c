// SPDX-License-Identifier: Apache-2.0
// encode on CUDA: the bytes of kernels/encode_rules.h, whatever the shape of the call.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/pages.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kPageWarps = 8;
constexpr int kRowBytes = 32 * 1024;  // of rotated keys that a block keeps

template <int C>
Status launch_pages(const EncodeCall& call, std::int64_t slots, bool direct, const Context& context) {
  constexpr int n = 32 * C;
  const PageFormat& format = call.args.pages.format;
  BlockPlan plan;
  plan.direct = direct;
  plan.warps = direct ? 1 : kPageWarps;
  plan.row_count = direct ? plan.warps : std::min(kPageTokens, kRowBytes / (4 * n));
  plan.image_bytes =
      direct ? 0 : 8 * format.head_dim * std::max(format.k_bits, format.v_bits) + 2 * kPageTokens;
  const auto heads = static_cast<unsigned>(call.args.pages.kv_heads);
  const dim3 grid(static_cast<unsigned>(slots), direct ? heads : 2 * heads);
  const int parts = direct ? 2 : 1;  // of a block
  const Launch how{"encode", grid, dim3(static_cast<unsigned>(32 * plan.warps * parts)),
                   static_cast<std::size_t>(plan.bytes(n) + (direct ? 4 * n : 0)), true};
  return launch(how, context, direct ? &encode_pages<C, true> : &encode_pages<C, false>, call, plan);
}

}  // namespace

Status encode(const EncodeArgs& args, const Context& context) {
  const Sequences& sequences = args.sequences;
  if (sequences.tokens <= 0 || sequences.count <= 0) return {};
  const double d = args.pages.format.head_dim;
  EncodeCall call;
  call.args = args;
  call.rotation_scale = static_cast<float>(1.0 / std::sqrt(d));
  call.centre_scale = static_cast<float>(std::sqrt(d));
  const PageFormat& format = args.pages.format;
  call.key_coder = make_coder(core::key_table(format.k_bits), key_curves(format.k_bits));
  call.value_coder = make_coder(core::value_table(format.v_bits), value_curves(format.v_bits));
  const std::int64_t by_page = (sequences.tokens + kSlotSlack * sequences.count) / kPageTokens;
  call.slot_is_row = sequences.tokens <= by_page;
  const std::int64_t slots = std::min(sequences.tokens, by_page);
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  if (prefill_serves(args, slots, limits.value()))
    return launch_prefill(call, slots, limits.value(), context);
  const bool direct = sequences.tokens <= sequences.count;
  switch (coordinates_per_lane(args.pages.format.head_dim)) {
    case 1:
      return launch_pages<1>(call, slots, direct, context);
    case 2:
      return launch_pages<2>(call, slots, direct, context);
    case 4:
      return launch_pages<4>(call, slots, direct, context);
    case 8:
      return launch_pages<8>(call, slots, direct, context);
    default:
      return launch_pages<16>(call, slots, direct, context);
  }
}

}  // namespace turboquant::kernels::cuda
