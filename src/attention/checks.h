// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "turboquant/attention.h"

// What kernels rely on. Each check names the first value that is wrong and what would be right, and changes
// nothing. On the CPU it reads everything the verb will read of tables, lengths and starts; for CUDA these
// lie on the device, and only what the host holds is checked: no pointer is followed.
namespace turboquant::attention {

Status check(const RotateArgs& args, DeviceType device);
Status check(const BalanceArgs& args, DeviceType device);
Status check(const KeyMetricArgs& args, DeviceType device);
Status check(const EncodeArgs& args, DeviceType device);
Status check(const DecodeArgs& args, DeviceType device);
Status check(const AttendArgs& args, std::size_t workspace_needed, DeviceType device);
// Every sequence of a call that is right otherwise has as many tokens.
Status check_even(const Sequences& sequences, DeviceType device);

// The rows of a call.
std::int64_t tokens_of(const Sequences& sequences, DeviceType device);

}  // namespace turboquant::attention
