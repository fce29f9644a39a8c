// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kMaxDevices = 64;

cudaError_t read_limits(int device, DeviceLimits& out) {
  const struct {
    cudaDeviceAttr what;
    int* where;
  } attributes[] = {{cudaDevAttrMultiProcessorCount, &out.sm_count},
                    {cudaDevAttrMaxSharedMemoryPerBlockOptin, &out.shared_bytes},
                    {cudaDevAttrComputeCapabilityMajor, &out.major},
                    {cudaDevAttrComputeCapabilityMinor, &out.minor}};
  for (const auto& attribute : attributes)
    if (const cudaError_t error = cudaDeviceGetAttribute(attribute.where, attribute.what, device);
        error != cudaSuccess)
      return error;
  return cudaSuccess;
}

}  // namespace

Result<DeviceLimits> device_limits(int device) {
  static std::mutex mutex;
  static std::array<DeviceLimits, kMaxDevices> known;
  if (device < 0 || device >= kMaxDevices)
    return invalid("device index " + std::to_string(device) + " is not between 0 and " +
                   std::to_string(kMaxDevices - 1));
  const std::lock_guard lock(mutex);
  DeviceLimits& limits = known[static_cast<std::size_t>(device)];
  if (limits.sm_count == 0) {
    DeviceLimits found;
    if (const cudaError_t error = read_limits(device, found); error != cudaSuccess)
      return Error{Code::kDevice, "CUDA device " + std::to_string(device) + ": " + cudaGetErrorString(error)};
    limits = found;
  }
  return limits;
}

Result<bool> prepare_kernel(const void* kernel, int device) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, bool> prepared;
  const auto limits = device_limits(device);
  if (!limits.ok()) return limits.error();
  const std::lock_guard lock(mutex);
  if (const auto found = prepared.find({kernel, device}); found != prepared.end()) return found->second;
  cudaFuncAttributes attributes = {};
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess)
    return device_error("a kernel", error).error();
  const int most = limits.value().shared_bytes - static_cast<int>(attributes.sharedSizeBytes);
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
      error != cudaSuccess)
    return device_error("a kernel's shared memory", error).error();
  // Blocks of kernels that divide an SM's memory differently do not meet on one: an encode could not begin
  // beside an attend, which takes all of it.
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                                     cudaSharedmemCarveoutMaxShared);
      error != cudaSuccess)
    return device_error("a kernel's shared memory", error).error();
  const bool waits = limits.value().major >= 9 && attributes.ptxVersion >= 90;
  prepared.emplace(std::pair{kernel, device}, waits);
  return waits;
}

}  // namespace turboquant::kernels::cuda
