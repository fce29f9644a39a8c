// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cuda.h"

namespace turboquant::kernels {

const CudaTable* cuda_table() {
  static constexpr CudaTable kTable = {cuda::rotate, cuda::balance, cuda::encode,
                                       cuda::decode, cuda::attend,  cuda::attend_workspace_bytes};
  return &kTable;
}

}  // namespace turboquant::kernels
