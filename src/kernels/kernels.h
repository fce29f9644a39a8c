// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

#include "turboquant/attention.h"

namespace turboquant::kernels {

// One table per instruction set: the kernels it has, and when it may run. Arguments are checked before
// (attention/checks.h); kernels check nothing.
struct KernelTable {
  std::string_view name;  // "reference", "portable", ...
  bool (*runs_here)();
  void (*rotate)(const RotateArgs&, Executor&);
  void (*encode)(const EncodeArgs&, Executor&);
  void (*decode)(const DecodeArgs&, Executor&);
  void (*attend)(const AttendArgs&, Executor&);
  std::size_t (*attend_workspace_bytes)(const PageFormat&, int kv_heads, int q_heads, int sequences,
                                        std::int64_t tokens, int threads);
};

extern const KernelTable kReference;
extern const KernelTable kPortable;  // portable/, for any machine
extern const KernelTable kAvx2;      // portable/ again, built for AVX2 and FMA; x86-64 builds only

std::span<const KernelTable* const> all();  // worst first; the last that runs here is the default
const KernelTable* find(std::string_view name);

// The table every CPU call uses, chosen once. TQ_KERNELS=<name> forces one; null when the forced one is
// unknown or cannot run here, which callers report as unsupported.
const KernelTable* active();

}  // namespace turboquant::kernels
