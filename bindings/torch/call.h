// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>
#include <optional>

#include "check.h"
#include "turboquant/attention.h"

// These sources are compiled twice: for the CPU, and for CUDA (with TQ_TORCH_CUDA) into a library of its own.
#ifdef TQ_TORCH_CUDA
#define TQ_TORCH_DEVICE CUDA
#else
#define TQ_TORCH_DEVICE CPU
#endif

namespace turboquant::ops {

#ifdef TQ_TORCH_CUDA
inline constexpr DeviceType kDevice = DeviceType::kCuda;
#else
inline constexpr DeviceType kDevice = DeviceType::kCpu;
#endif

// A tensor argument that may be absent.
struct Given {
  Given(const char* called, const Tensor& given) : name(called), tensor(&given) {}
  Given(const char* called, const std::optional<Tensor>& given)
      : name(called), tensor(given ? &*given : nullptr) {}
  const char* name;
  const Tensor* tensor;
};

// Where an operator runs: the device of its tensors, which is one, and on CUDA the current stream there. That
// device need not be the current one: torch allocates where it is told, and CUDA verbs look after themselves.
class Call {
 public:
  // Every tensor of the call; raises where one is elsewhere.
  explicit Call(std::initializer_list<Given> tensors);
  const Context& context() const { return context_; }

 private:
  Context context_;
};

// Device `index` of this library's kind, as the core's context: torch's threads, or its current stream.
Context context_of(int index);

}  // namespace turboquant::ops
