// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "turboquant/attention.h"

// Launching kernels from host code. Every launch is checked; none is waited for.
namespace turboquant::kernels::cuda {

// What the schedules need to know of a device; read once.
struct DeviceLimits {
  int sm_count = 0;
  int shared_bytes = 0;  // largest dynamic shared memory of a block
  int major = 0, minor = 0;
};
Result<DeviceLimits> device_limits(int device);

// A call of the runtime that failed, which the runtime then forgets: the program's next check is not ours.
inline Status device_error(const char* what, cudaError_t error) {
  cudaGetLastError();
  if (error == cudaErrorNoKernelImageForDevice)
    return unsupported(std::string(what) +
                       " was not compiled for this device; build with its -DCMAKE_CUDA_ARCHITECTURES");
  return Error{Code::kDevice, std::string(what) + ": " + cudaGetErrorString(error)};
}

inline cudaStream_t stream_of(const Context& context) {
  return static_cast<cudaStream_t>(context.stream.handle);
}

// A grid, and whether it may start while the stream's previous kernel still runs (programmatic dependent
// launch; the kernel itself waits with griddepcontrol.wait). Devices before sm_90 ignore `overlap`.
struct Launch {
  const char* name;  // in errors
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  bool overlap = false;
};

// Once a kernel and device: lets it use all shared memory of a block, and asks for SMs that offer it. Returns
// whether the code that runs there has griddepcontrol.wait (sm_90 on): without it a kernel must not start
// early.
Result<bool> prepare_kernel(const void* kernel, int device);

template <class... Parameters, class... Arguments>
Status launch(const Launch& how, const Context& context, void (*kernel)(Parameters...),
              const Arguments&... arguments) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return {};
  const auto waits = prepare_kernel(reinterpret_cast<const void*>(kernel), context.device.index);
  if (!waits.ok()) return waits.error();
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = stream_of(context);
  config.attrs = &attribute;
  config.numAttrs = how.overlap && waits.value() ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  return error == cudaSuccess ? Status{} : device_error(how.name, error);
}

}  // namespace turboquant::kernels::cuda
