// SPDX-License-Identifier: Apache-2.0
#include "call.h"

namespace turboquant::ops {
namespace {

bool is_here(const Tensor& tensor) {
  return kDevice == DeviceType::kCuda ? tensor.is_cuda() : tensor.is_cpu();
}

// As Python spells it.
std::string device_of(const Tensor& tensor) {
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return tensor.is_cpu() ? "cpu" : "another device";
}

}  // namespace

Call::Call(std::initializer_list<Given> tensors) {
  // torch calls this library where any tensor is on its kind of device: that one says which.
  const Given* home = nullptr;
  for (const Given& given : tensors)
    if (home == nullptr && given.tensor != nullptr && is_here(*given.tensor)) home = &given;
  if (home == nullptr) raise(invalid("no tensor is on a device of this operator"));
  const int index = kDevice == DeviceType::kCuda ? home->tensor->get_device_index() : 0;
  for (const Given& given : tensors) {
    if (given.tensor == nullptr || given.tensor == home->tensor) continue;
    if (is_here(*given.tensor) && (kDevice == DeviceType::kCpu || given.tensor->get_device_index() == index))
      continue;
    const std::string device = device_of(*home->tensor);
    raise(invalid(std::string(given.name) + " is on " + device_of(*given.tensor) + " but " + home->name +
                  " on " + device + "; pass " + given.name + ".to('" + device + "')"));
  }
  context_ = context_of(index);
}

}  // namespace turboquant::ops
