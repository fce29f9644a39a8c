// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "args.h"
#include "call.h"

namespace turboquant::ops {
namespace {

void key_metric(const Tensor& query, const OptionalTensor& starts, const Tensor& query_signs,
                const OptionalTensor& base, std::int64_t step, bool begins, const Tensor& moment,
                const OptionalTensor& metric) {
  const Call call({{"query", query},
                   {"starts", starts},
                   {"query_signs", query_signs},
                   {"base", base},
                   {"moment", moment},
                   {"metric", metric}});
  const Argument argument{"query", query};
  argument.shaped({{"sequences"}, {"q_heads"}, {"tokens"}, {"head_dim"}}).last_dim_contiguous();
  const Sizes sizes{.sequences = query.size(0), .tokens = query.size(2), .head_dim = query.size(3)};
  Argument{"moment", moment}.shaped(
      {{"kv_heads"}, {"head_dim", sizes.head_dim}, {"head_dim", sizes.head_dim}});
  const Dim heads{"kv_heads", moment.size(0)}, head_dim{"head_dim", sizes.head_dim};
  KeyMetricArgs args;
  args.kv_heads = narrow("moment.shape[0]", heads.size);
  args.q_heads = narrow("query.shape[1]", query.size(1));
  args.head_dim = narrow("query.shape[3]", sizes.head_dim);
  args.sequence_count = narrow("query.shape[0]", sizes.sequences);
  args.tokens = narrow("query.shape[2]", sizes.tokens);
  args.step = step;
  args.begins = begins;
  args.starts = ints("starts", starts, {{"sequences", sizes.sequences}});
  static constexpr float kNone = 0;  // an empty tensor is not an absent one
  args.query = {.dtype = argument.real_dtype(),
                .data = query.numel() > 0 ? query.const_data_ptr() : &kNone,
                .token_stride = query.stride(2),
                .head_stride = query.stride(1)};
  args.sequence_stride = query.stride(0);
  args.query_signs = floats({"query_signs", query_signs}, {heads, head_dim});
  set_base(base, args.base, args.base_matrix);
  args.moment = static_cast<std::int32_t*>(
      mutable_data({"moment", moment}, ScalarType::Int, {heads, head_dim, head_dim}));
  if (metric)
    args.metric = static_cast<std::int8_t*>(
        mutable_data({"metric", *metric}, ScalarType::Char, {heads, head_dim, head_dim}));
  require(turboquant::key_metric(args, call.context()));
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("key_metric", TORCH_BOX(&turboquant::ops::key_metric));
}
