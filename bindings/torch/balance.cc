// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "args.h"
#include "call.h"

namespace turboquant::ops {
namespace {

Tensor balance(const Tensor& query, const Tensor& keys, const Tensor& token_starts,
               const OptionalTensor& starts) {
  const Call call({{"query", query}, {"keys", keys}, {"token_starts", token_starts}, {"starts", starts}});
  Argument{"query", query}.shaped({{"tokens"}, {"q_heads"}, {"head_dim"}});
  Argument{"keys", keys}.shaped({{"tokens", query.size(0)}, {"kv_heads"}, {"head_dim", query.size(2)}});
  const Sizes sizes{.tokens = query.size(0), .kv_heads = keys.size(1), .head_dim = query.size(2)};
  BalanceArgs args;
  args.kv_heads = narrow("keys.shape[1]", sizes.kv_heads);
  args.q_heads = narrow("query.shape[1]", query.size(1));
  args.head_dim = narrow("query.shape[2]", sizes.head_dim);
  args.query = rows_of({"query", query}, {"q_heads"}, sizes);
  args.keys = rows_of({"keys", keys}, {"kv_heads"}, sizes);
  args.token_starts = ints({"token_starts", token_starts}, {{"sequences + 1"}});
  if (token_starts.size(0) == 0)
    raise(invalid("token_starts has shape [0]; pass [sequences + 1], at least [0]"));
  args.sequence_count = narrow("token_starts.shape[0]", token_starts.size(0) - 1);
  check_token_count(args.token_starts, args.sequence_count, sizes.tokens);
  args.starts = ints("starts", starts, {{"sequences", args.sequence_count}});
  const Tensor out = torch::stable::new_empty(query, {sizes.kv_heads, sizes.head_dim}, ScalarType::Float);
  args.balance = static_cast<float*>(out.mutable_data_ptr());
  require(turboquant::balance(args, call.context()));
  return out;
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("balance", TORCH_BOX(&turboquant::ops::balance));
}
