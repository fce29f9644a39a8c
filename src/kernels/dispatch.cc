// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "kernels/kernels.h"

namespace turboquant::kernels {

std::span<const KernelTable* const> all() {
  static constexpr const KernelTable* kAll[] = {
    &kReference,
    &kPortable,
#if defined(__x86_64__)
    &kAvx2,
#endif
  };
  return kAll;
}

const KernelTable* find(std::string_view name) {
  for (const KernelTable* table : all())
    if (table->name == name) return table;
  return nullptr;
}

static const KernelTable* choose() {
  if (const char* forced = std::getenv("TQ_KERNELS")) {
    const KernelTable* table = find(forced);
    return table != nullptr && table->runs_here() ? table : nullptr;  // never a quiet fallback
  }
  const KernelTable* best = &kReference;
  for (const KernelTable* table : all())
    if (table->runs_here()) best = table;
  return best;
}

const KernelTable* active() {
  static const KernelTable* const table = choose();
  return table;
}

}  // namespace turboquant::kernels
