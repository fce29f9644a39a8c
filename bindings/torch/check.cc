// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <limits>
#include <stdexcept>

namespace turboquant::ops {
namespace {

// What stands in for the data of a tensor without elements, which torch says is null.
alignas(128) std::byte no_elements[128];

// As Python spells it.
std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(dtype);
  }
}

template <class Values, class Print>
std::string list(const Values& values, Print print) {
  std::string text = "[";
  for (const auto& value : values) text += (text.size() > 1 ? ", " : "") + print(value);
  return text + "]";
}
std::string shape_of(const Tensor& tensor) {
  return list(tensor.sizes(), [](std::int64_t size) { return std::to_string(size); });
}
std::string text_of(std::initializer_list<Dim> shape) {
  return list(shape, [](const Dim& dim) {
    return dim.size == Dim::kAny ? std::string(dim.name)
                                 : std::string(dim.name) + "=" + std::to_string(dim.size);
  });
}

bool matches(const Tensor& tensor, std::initializer_list<Dim> shape) {
  if (tensor.dim() != static_cast<std::int64_t>(shape.size())) return false;
  std::int64_t i = 0;
  for (const Dim& dim : shape)
    if (const std::int64_t size = tensor.size(i++); dim.size != Dim::kAny && dim.size != size) return false;
  return true;
}

void check_dense(const Argument& argument, ScalarType dtype, std::initializer_list<Dim> shape) {
  argument.of(dtype).shaped(shape).contiguous();
}

}  // namespace

void raise(const Error& error) {
  const char* kind = error.code == Code::kInvalidArgument ? "invalid argument: "
                     : error.code == Code::kUnsupported   ? "unsupported: "
                                                          : "device: ";
  throw std::runtime_error(std::string("turboquant: ") + kind + error.message);
}

const Argument& Argument::of(ScalarType dtype) const {
  if (tensor.scalar_type() != dtype)
    raise(invalid(std::string(name) + " is " + name_of(tensor.scalar_type()) + ", not " + name_of(dtype) +
                  "; pass " + name + ".to(torch." + name_of(dtype) + ")"));
  return *this;
}

const Argument& Argument::shaped(std::initializer_list<Dim> shape) const {
  if (!matches(tensor, shape))
    raise(invalid(std::string(name) + " has shape " + shape_of(tensor) + "; pass " + text_of(shape)));
  return *this;
}

const Argument& Argument::contiguous() const {
  if (!tensor.is_contiguous())
    raise(invalid(std::string(name) + " of shape " + shape_of(tensor) + " has strides " +
                  list(tensor.strides(), [](std::int64_t stride) { return std::to_string(stride); }) +
                  ", not contiguous ones; pass " + name + ".contiguous()"));
  return *this;
}

const Argument& Argument::last_dim_contiguous() const {
  const std::int64_t stride = tensor.stride(tensor.dim() - 1);
  if (stride != 1 && tensor.numel() > 0)
    raise(invalid(std::string(name) + " has a last stride of " + std::to_string(stride) + ", not 1; pass " +
                  name + ".contiguous()"));
  return *this;
}

DType Argument::real_dtype() const {
  return ops::real_dtype(name, tensor.scalar_type());
}

const void* data(const Argument& argument, ScalarType dtype, std::initializer_list<Dim> shape) {
  check_dense(argument, dtype, shape);
  return argument.tensor.numel() > 0 ? argument.tensor.const_data_ptr() : no_elements;
}

void* mutable_data(const Argument& argument, ScalarType dtype, std::initializer_list<Dim> shape) {
  check_dense(argument, dtype, shape);
  return argument.tensor.numel() > 0 ? argument.tensor.mutable_data_ptr() : no_elements;
}

const float* floats(const Argument& argument, std::initializer_list<Dim> shape) {
  return static_cast<const float*>(data(argument, ScalarType::Float, shape));
}

const std::int32_t* ints(const Argument& argument, std::initializer_list<Dim> shape) {
  return static_cast<const std::int32_t*>(data(argument, ScalarType::Int, shape));
}

const float* floats(const char* name, const std::optional<Tensor>& tensor, std::initializer_list<Dim> shape) {
  return tensor ? floats({name, *tensor}, shape) : nullptr;
}

const std::int32_t* ints(const char* name, const std::optional<Tensor>& tensor,
                         std::initializer_list<Dim> shape) {
  return tensor ? ints({name, *tensor}, shape) : nullptr;
}

int narrow(const char* name, std::int64_t value) {
  if (value < std::numeric_limits<int>::min() || value > std::numeric_limits<int>::max())
    raise(invalid(std::string(name) + "=" + std::to_string(value) + " does not fit into 32 bits"));
  return static_cast<int>(value);
}

ScalarType scalar_type(DType dtype) {
  return dtype == DType::kF32   ? ScalarType::Float
         : dtype == DType::kF16 ? ScalarType::Half
                                : ScalarType::BFloat16;
}

DType real_dtype(const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return DType::kF32;
    case ScalarType::Half:
      return DType::kF16;
    case ScalarType::BFloat16:
      return DType::kBF16;
    default:
      raise(invalid(std::string(name) + " is " + name_of(dtype) +
                    "; use float32, float16 or bfloat16, for example torch.float32"));
  }
}

}  // namespace turboquant::ops
