// SPDX-License-Identifier: Apache-2.0
// attend_workspace_bytes: no tensor says which library to ask, so the one for the CPU asks the other, through
// an operator that only that one implements.
#include "workspace.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "call.h"

namespace turboquant::ops {

Tensor new_workspace(const Tensor& like, const AttendArgs& args, const Context& context) {
  const std::int64_t size = static_cast<std::int64_t>(
      turboquant::attend_workspace_bytes(args.pages.format, args.pages.kv_heads, args.q_heads,
                                         args.sequences.count, args.sequences.tokens, context));
  return kDevice == DeviceType::kCuda ? torch::stable::new_zeros(like, {size}, ScalarType::Byte)
                                      : torch::stable::new_empty(like, {size}, ScalarType::Byte);
}

void set_workspace(const Tensor& workspace, AttendArgs& args) {
  args.workspace = mutable_data({"workspace", workspace}, ScalarType::Byte, {{"bytes"}});
  args.workspace_bytes = static_cast<std::size_t>(workspace.size(0));
}

namespace {

std::int64_t bytes_on(const Context& context, std::int64_t head_dim, std::int64_t k_bits, std::int64_t v_bits,
                      std::int64_t kv_heads, std::int64_t q_heads, std::int64_t sequences,
                      std::int64_t tokens) {
  const PageFormat format = page_format(head_dim, k_bits, v_bits);
  require(supports("attend", format, context.device.type));
  return static_cast<std::int64_t>(
      turboquant::attend_workspace_bytes(format, narrow("kv_heads", kv_heads), narrow("q_heads", q_heads),
                                         narrow("sequences", sequences), tokens, context));
}

#ifdef TQ_TORCH_CUDA

std::int64_t cuda_attend_workspace_bytes(std::int64_t head_dim, std::int64_t k_bits, std::int64_t v_bits,
                                         std::int64_t kv_heads, std::int64_t q_heads, std::int64_t sequences,
                                         std::int64_t tokens, std::int64_t device) {
  const Context context{
      .device = {DeviceType::kCuda, narrow("device", device)}, .stream = {}, .executor = nullptr};
  return bytes_on(context, head_dim, k_bits, v_bits, kv_heads, q_heads, sequences, tokens);
}

#else

std::int64_t attend_workspace_bytes(std::int64_t head_dim, std::int64_t k_bits, std::int64_t v_bits,
                                    std::int64_t kv_heads, std::int64_t q_heads, std::int64_t sequences,
                                    std::int64_t tokens, std::int64_t device) {
  if (device < 0)
    return bytes_on(context_of(0), head_dim, k_bits, v_bits, kv_heads, q_heads, sequences, tokens);
  using torch::stable::detail::from;
  std::array stack{from(head_dim), from(k_bits),    from(v_bits), from(kv_heads),
                   from(q_heads),  from(sequences), from(tokens), from(device)};
  if (torch_call_dispatcher("turboquant::cuda_attend_workspace_bytes", "", stack.data(), TORCH_ABI_VERSION) !=
      0)
    raise(unsupported("the CUDA operators are not loaded; turboquant loads them where torch finds a GPU"));
  return torch::stable::detail::to<std::int64_t>(stack[0]);
}

#endif

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, CompositeExplicitAutograd, m) {
#ifdef TQ_TORCH_CUDA
  m.impl("cuda_attend_workspace_bytes", TORCH_BOX(&turboquant::ops::cuda_attend_workspace_bytes));
#else
  m.impl("attend_workspace_bytes", TORCH_BOX(&turboquant::ops::attend_workspace_bytes));
#endif
}
