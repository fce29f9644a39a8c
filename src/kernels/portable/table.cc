// SPDX-License-Identifier: Apache-2.0
#include "kernels/portable/portable.h"

namespace turboquant::kernels {
namespace {

#if defined(__AVX2__)
#define TQ_TABLE kAvx2
constexpr const char* kName = "avx2";
bool runs_here() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
}
#else
#define TQ_TABLE kPortable
constexpr const char* kName = "portable";
bool runs_here() {
  return true;
}
#endif

}  // namespace

const KernelTable TQ_TABLE{kName,
                           &runs_here,
                           &TQ_ISA::rotate,
                           &TQ_ISA::encode,
                           &TQ_ISA::decode,
                           &TQ_ISA::attend,
                           &TQ_ISA::attend_workspace_bytes};

}  // namespace turboquant::kernels
