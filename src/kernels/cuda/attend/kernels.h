// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "turboquant/attention.h"

// The kernels behind attend. A row is a (query, head of a KV head's group) pair; sequence i has
// tokens_i * group rows per KV head. Each launches on context.stream and handles whole sequences.
namespace turboquant::kernels::cuda {

// Whether many_rows can do a call: 16-bit queries, keys and values in rows aligned to 16 bytes, and a
// head_dim of 64, 80, 96, 128, 192 or 256 whose tiles fit this device's shared memory.
bool many_rows_takes(const AttendArgs& args, const Context& context);
// The sequences of more than min_rows rows; leaves the rows of all others alone.
Status many_rows(const AttendArgs& args, int min_rows, const Context& context);
std::size_t many_rows_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                      std::int64_t tokens, const Context& context);

// Every sequence, head_dim and dtype, in fp32 arithmetic.
Status any_dim(const AttendArgs& args, const Context& context);
std::size_t any_dim_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                    std::int64_t tokens, const Context& context);

}  // namespace turboquant::kernels::cuda
