// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "turboquant/attention.h"

// What kernels rely on. Each check reads everything the verb will read of tables, lengths and starts (on
// the CPU), names the first value that is wrong and what would be right, and changes nothing.
namespace turboquant::attention {

Status check(const RotateArgs& args);
Status check(const BalanceArgs& args);
Status check(const EncodeArgs& args);
Status check(const DecodeArgs& args);
Status check(const AttendArgs& args, std::size_t workspace_needed);

}  // namespace turboquant::attention
