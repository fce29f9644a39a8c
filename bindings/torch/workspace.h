// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "args.h"

// attend's workspace, as the operators that attend take it.
namespace turboquant::ops {

// For one call of `args`. CUDA kernels count in it and expect zeros.
Tensor new_workspace(const Tensor& like, const AttendArgs& args, const Context& context);

// workspace [bytes] uint8.
void set_workspace(const Tensor& workspace, AttendArgs& args);

}  // namespace turboquant::ops
