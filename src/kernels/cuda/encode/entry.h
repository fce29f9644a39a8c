// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "turboquant/attention.h"

// encode's kernels, for its entry in encode/encode.cu.
namespace turboquant::kernels::cuda {

struct EncodeCall;
struct DeviceLimits;

// encode/prefill.cu: is it the faster one here?
bool prefill_serves(const EncodeArgs& args, std::int64_t slots, const DeviceLimits& limits);
Status launch_prefill(const EncodeCall& call, std::int64_t slots, const DeviceLimits& limits,
                      const Context& context);
// encode/prefill_turns.cu: its main part where there is a metric, rule 5a for pivots alone; whether it can.
bool prefill_turns_serve(const DeviceLimits& limits);
Status launch_prefill_turns(const EncodeCall& call, std::int64_t slots, unsigned blocks,
                            const Context& context);
// encode/flip_keys.cu: what a key_metric changes behind launch_prefill(); whether it can.
bool flip_keys_serve(const DeviceLimits& limits);
Status launch_flip_keys(const EncodeCall& call, std::int64_t slots, const DeviceLimits& limits,
                        const Context& context);
// encode/flips.cu: with a key_metric. direct: a token a sequence.
Status launch_flips(const EncodeCall& call, std::int64_t slots, bool direct, const Context& context);

}  // namespace turboquant::kernels::cuda
