// SPDX-License-Identifier: Apache-2.0
// encode with a key_metric. Kernels of their own: what flips need of registers is no business of those
// without.
#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/launch_pages.cuh"

namespace turboquant::kernels::cuda {

Status launch_flips(const EncodeCall& call, std::int64_t slots, bool direct, const Context& context) {
  return launch_pages_with<true>(call, slots, direct, context);
}

}  // namespace turboquant::kernels::cuda
