// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "turboquant/attention.h"

namespace turboquant::kernels {

// The verbs on CUDA. Arguments are checked before (attention/checks.h), as far as a host can: what lies on
// the device is the caller's word. Each launches on context.stream and returns without waiting.
struct CudaTable {
  Status (*rotate)(const RotateArgs&, const Context&);
  Status (*balance)(const BalanceArgs&, const Context&);
  Status (*key_metric)(const KeyMetricArgs&, const Context&);
  Status (*encode)(const EncodeArgs&, const Context&);
  Status (*decode)(const DecodeArgs&, const Context&);
  Status (*attend)(const AttendArgs&, const Context&);
  Status (*attend_encode)(const AttendArgs&, const Context&);
  std::size_t (*attend_workspace_bytes)(const PageFormat&, int kv_heads, int q_heads, int sequences,
                                        std::int64_t tokens, const Context&);
};

// Null in a library built without CUDA.
const CudaTable* cuda_table();

}  // namespace turboquant::kernels
