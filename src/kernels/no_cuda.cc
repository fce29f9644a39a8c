// SPDX-License-Identifier: Apache-2.0
// In place of cuda/ in a library without it.
#include "kernels/cuda_table.h"

namespace turboquant::kernels {

const CudaTable* cuda_table() {
  return nullptr;
}

}  // namespace turboquant::kernels
