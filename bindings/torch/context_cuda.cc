// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "call.h"

// Of torch's C shim, in libtorch_cuda; its header declares it only where the CUDA toolkit's headers are.
#ifndef USE_CUDA
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(std::int32_t device_index, void** ret_stream);
#endif

namespace turboquant::ops {

Context context_of(int index) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  return {.device = {DeviceType::kCuda, index}, .stream = {stream}, .executor = nullptr};
}

}  // namespace turboquant::ops
