// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "turboquant/attention.h"

namespace turboquant::ops {

// Runs loops on torch's own threads, so that torch.set_num_threads holds and no second pool competes.
Executor& torch_executor();

inline Context cpu_context() {
  return {.device = {}, .stream = {}, .executor = &torch_executor()};
}

}  // namespace turboquant::ops
