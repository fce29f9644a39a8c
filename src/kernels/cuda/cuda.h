// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda_table.h"

// Every verb on CUDA, one file or folder each.
namespace turboquant::kernels::cuda {

Status rotate(const RotateArgs& args, const Context& context);
Status balance(const BalanceArgs& args, const Context& context);
Status key_metric(const KeyMetricArgs& args, const Context& context);
Status encode(const EncodeArgs& args, const Context& context);
Status decode(const DecodeArgs& args, const Context& context);
Status attend(const AttendArgs& args, const Context& context);
Status attend_encode(const AttendArgs& args, const Context& context);
std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, const Context& context);

}  // namespace turboquant::kernels::cuda
