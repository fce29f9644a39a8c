// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "turboquant/device.h"
#include "turboquant/status.h"

// What every operator checks before it calls the core, and how an Error of the core leaves as an exception.
namespace turboquant::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws std::runtime_error, whose text begins with what python/turboquant/ops.py turns into the class:
// "turboquant: invalid argument: " (ValueError), "turboquant: unsupported: " (NotImplementedError),
// "turboquant: device: " (RuntimeError).
[[noreturn]] void raise(const Error& error);

inline void require(const Status& status) {
  if (!status.ok()) raise(status.error());
}
template <class T>
T take(Result<T> result) {
  if (!result.ok()) raise(result.error());
  return std::move(result.value());
}

// One dimension of an expected shape; a size of kAny accepts every size.
struct Dim {
  static constexpr std::int64_t kAny = -1;
  const char* name;
  std::int64_t size = kAny;
};

// A tensor argument and its name, for checks whose messages name the argument, what it is and what to do.
struct Argument {
  const char* name;
  const Tensor& tensor;

  const Argument& of(ScalarType dtype) const;
  const Argument& shaped(std::initializer_list<Dim> shape) const;
  const Argument& contiguous() const;
  const Argument& last_dim_contiguous() const;

  // float32, float16 or bfloat16 as the core's type.
  DType real_dtype() const;
};

// The checks of a dense array of one dtype, and its data. An empty tensor has data too: null means
// "absent" to the core.
const void* data(const Argument& argument, ScalarType dtype, std::initializer_list<Dim> shape);
void* mutable_data(const Argument& argument, ScalarType dtype, std::initializer_list<Dim> shape);

const float* floats(const Argument& argument, std::initializer_list<Dim> shape);
const std::int32_t* ints(const Argument& argument, std::initializer_list<Dim> shape);
// The same, or null where the argument is None.
const float* floats(const char* name, const std::optional<Tensor>& tensor, std::initializer_list<Dim> shape);
const std::int32_t* ints(const char* name, const std::optional<Tensor>& tensor,
                         std::initializer_list<Dim> shape);

// Schemas have 64-bit ints, the core's sizes are ints.
int narrow(const char* name, std::int64_t value);

ScalarType scalar_type(DType dtype);
DType real_dtype(const char* name, ScalarType dtype);

}  // namespace turboquant::ops
