// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

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

struct Known {
  std::atomic<bool> ready = false;
  DeviceLimits limits;
};

// Kernels that are prepared, in the order in which they were: readers take no lock, a writer holds one.
struct Prepared {
  const void* kernel;
  int device;
  bool waits;
};
constexpr std::size_t kMaxPrepared = 1024;  // more are prepared at each launch
std::array<Prepared, kMaxPrepared> prepared;
std::atomic<std::size_t> prepared_count = 0;
}  // namespace

Result<DeviceLimits> device_limits(int device) {
  static std::mutex mutex;
  static std::array<Known, kMaxDevices> all;
  if (device < 0 || device >= kMaxDevices)
    return invalid("device index " + std::to_string(device) + " is not between 0 and " +
                   std::to_string(kMaxDevices - 1));
  Known& known = all[static_cast<std::size_t>(device)];
  if (known.ready.load(std::memory_order_acquire)) return known.limits;
  const std::lock_guard lock(mutex);
  if (!known.ready.load(std::memory_order_relaxed)) {
    DeviceLimits found;
    if (const cudaError_t error = read_limits(device, found); error != cudaSuccess)
      return Error{Code::kDevice, "CUDA device " + std::to_string(device) + ": " + cudaGetErrorString(error)};
    known.limits = found;
    known.ready.store(true, std::memory_order_release);
  }
  return known.limits;
}

Result<bool> prepare_kernel(const void* kernel, int device) {
  static std::mutex mutex;
  const auto find = [&](std::size_t count) {
    const Prepared *begin = prepared.data(), *end = begin + count;
    const Prepared* found =
        std::find_if(begin, end, [&](const Prepared& p) { return p.kernel == kernel && p.device == device; });
    return found == end ? nullptr : found;
  };
  if (const Prepared* found = find(prepared_count.load(std::memory_order_acquire))) return found->waits;
  const auto limits = device_limits(device);
  if (!limits.ok()) return limits.error();
  const std::lock_guard lock(mutex);
  const std::size_t count = prepared_count.load(std::memory_order_relaxed);
  if (const Prepared* found = find(count)) return found->waits;
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
  if (count < kMaxPrepared) {
    prepared[count] = {kernel, device, waits};
    prepared_count.store(count + 1, std::memory_order_release);
  }
  return waits;
}

}  // namespace turboquant::kernels::cuda
