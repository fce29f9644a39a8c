// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "args.h"
#include "call.h"

namespace turboquant::ops {
namespace {

Tensor rotate(const Tensor& x, const Tensor& signs, const OptionalTensor& base, bool inverse) {
  const Call call({{"x", x}, {"signs", signs}, {"base", base}});
  const Argument argument{"x", x};
  argument.shaped({{"tokens"}, {"heads"}, {"head_dim"}});
  const Sizes sizes{.tokens = x.size(0), .kv_heads = x.size(1), .head_dim = x.size(2)};
  RotateArgs args;
  args.head_dim = narrow("x.shape[2]", sizes.head_dim);
  args.heads = narrow("x.shape[1]", sizes.kv_heads);
  args.tokens = sizes.tokens;
  args.in = rows_of(argument, {"heads"}, sizes);
  args.signs = floats({"signs", signs}, {{"heads", sizes.kv_heads}, {"head_dim", sizes.head_dim}});
  set_base(base, args.base, args.base_matrix);
  args.inverse = inverse;
  const Tensor out = torch::stable::new_empty(x, x.sizes());
  args.out = rows_of(out);
  require(turboquant::rotate(args, call.context()));
  return out;
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("rotate", TORCH_BOX(&turboquant::ops::rotate));
}
