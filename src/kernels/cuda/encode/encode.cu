// SPDX-License-Identifier: Apache-2.0
// encode on CUDA: the bytes of kernels/encode_rules.h, whatever the shape of the call.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/launch_pages.cuh"

namespace turboquant::kernels::cuda {

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
  const bool flips = args.basis.key_metric != nullptr;
  if (prefill_serves(args, slots, limits.value()) &&
      (!flips || (flip_keys_serve(limits.value()) && prefill_turns_serve(limits.value())))) {
    Status status = launch_prefill(call, slots, limits.value(), context);
    return status.ok() && flips ? launch_flip_keys(call, slots, limits.value(), context) : status;
  }
  const bool direct = sequences.tokens <= sequences.count;
  if (flips) return launch_flips(call, slots, direct, context);
  return launch_pages_with<false>(call, slots, direct, context);
}

}  // namespace turboquant::kernels::cuda
