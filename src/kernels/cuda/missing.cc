// SPDX-License-Identifier: Apache-2.0
// Verbs without a kernel yet: TQ_HAS_<VERB> says which have one (cmake/Cuda.cmake).
#include "kernels/cuda/cuda.h"

namespace turboquant::kernels::cuda {

#define TQ_MISSING(verb, Args)                       \
  Status verb(const Args&, const Context&) {         \
    return unsupported(#verb " has no CUDA kernel"); \
  }
#ifndef TQ_HAS_ROTATE
TQ_MISSING(rotate, RotateArgs)
#endif
#ifndef TQ_HAS_BALANCE
TQ_MISSING(balance, BalanceArgs)
#endif
#ifndef TQ_HAS_ENCODE
TQ_MISSING(encode, EncodeArgs)
#endif
#ifndef TQ_HAS_DECODE
TQ_MISSING(decode, DecodeArgs)
#endif
#ifndef TQ_HAS_ATTEND
TQ_MISSING(attend, AttendArgs)
std::size_t attend_workspace_bytes(const PageFormat&, int, int, int, std::int64_t, const Context&) {
  return 0;
}
#endif

}  // namespace turboquant::kernels::cuda
