// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "turboquant/attention.h"

namespace turboquant::kernels {

// encode of the tokens that a call of attend brings.
inline EncodeArgs own_tokens(const AttendArgs& a) {
  EncodeArgs out;
  out.pages = a.pages;
  out.basis = a.basis;
  out.fringe = a.fringe;
  out.sequences = a.sequences;
  out.keys = a.keys;
  out.values = a.values;
  return out;
}

}  // namespace turboquant::kernels
