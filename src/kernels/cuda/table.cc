// SPDX-License-Identifier: Apache-2.0
// The table of the CUDA verbs, each with its call's device as the current one.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels {
namespace {

// Makes a device the current one, and the one before it again at the end.
class CurrentDevice {
 public:
  explicit CurrentDevice(int index) {
    error_ = cudaGetDevice(&before_);
    if (error_ != cudaSuccess || before_ == index) return;
    error_ = cudaSetDevice(index);
    changed_ = error_ == cudaSuccess;
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

template <auto verb, class Args>
Status on_device(const Args& args, const Context& context) {
  const CurrentDevice current(context.device.index);
  if (current.error() != cudaSuccess)
    return cuda::device_error(("CUDA device " + std::to_string(context.device.index)).c_str(),
                              current.error());
  return verb(args, context);
}

std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, const Context& context) {
  const CurrentDevice current(context.device.index);  // which kernels there are is asked of the current one
  return cuda::attend_workspace_bytes(format, kv_heads, q_heads, sequences, tokens, context);
}

}  // namespace

const CudaTable* cuda_table() {
  static constexpr CudaTable kTable = {
      on_device<cuda::rotate, RotateArgs>,        on_device<cuda::balance, BalanceArgs>,
      on_device<cuda::key_metric, KeyMetricArgs>, on_device<cuda::encode, EncodeArgs>,
      on_device<cuda::decode, DecodeArgs>,        on_device<cuda::attend, AttendArgs>,
      on_device<cuda::attend_encode, AttendArgs>, attend_workspace_bytes};
  return &kTable;
}

}  // namespace turboquant::kernels
