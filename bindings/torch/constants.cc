// SPDX-License-Identifier: Apache-2.0
// Operators without tensor arguments: what a cache asks once, when it is built. Results are on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>

#include "args.h"
#include "turboquant/rotation.h"
#include "turboquant/version.h"

namespace turboquant::ops {
namespace {

Tensor float_tensor(torch::headeronly::IntHeaderOnlyArrayRef shape) {
  return torch::stable::empty(shape, ScalarType::Float, std::nullopt,
                              torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

std::int64_t page_bytes(std::int64_t head_dim, std::int64_t k_bits, std::int64_t v_bits) {
  return static_cast<std::int64_t>(page_format(head_dim, k_bits, v_bits).page_bytes());
}

Tensor random_signs(std::int64_t dim, std::int64_t seed) {
  const int count = narrow("dim", dim);
  if (count < 0) raise(invalid("dim=" + std::to_string(dim) + " is negative"));
  const std::vector<float> signs = turboquant::random_signs(count, static_cast<std::uint64_t>(seed));
  Tensor out = float_tensor({dim});
  std::copy(signs.begin(), signs.end(), static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

Tensor hadamard_base(std::int64_t head_dim) {
  const HadamardPlan plan = take(hadamard_plan(narrow("head_dim", head_dim)));
  Tensor out = float_tensor({plan.base, plan.base});
  float* matrix = static_cast<float*>(out.mutable_data_ptr());
  if (plan.base == 1) *matrix = 1;
  else std::copy(plan.base_matrix.begin(), plan.base_matrix.end(), matrix);
  return out;
}

std::int64_t hadamard_base_size(std::int64_t head_dim) {
  return take(hadamard_plan(narrow("head_dim", head_dim))).base;
}

std::string version() {
  return turboquant::version();
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, CompositeExplicitAutograd, m) {
  m.impl("page_bytes", TORCH_BOX(&turboquant::ops::page_bytes));
  m.impl("random_signs", TORCH_BOX(&turboquant::ops::random_signs));
  m.impl("hadamard_base", TORCH_BOX(&turboquant::ops::hadamard_base));
  m.impl("hadamard_base_size", TORCH_BOX(&turboquant::ops::hadamard_base_size));
  m.impl("version", TORCH_BOX(&turboquant::ops::version));
}
