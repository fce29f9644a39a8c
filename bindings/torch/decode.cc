// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "args.h"
#include "call.h"

namespace turboquant::ops {
namespace {

std::tuple<Tensor, Tensor> decode(const Tensor& pages, const Tensor& page_table, const Tensor& lengths,
                                  const OptionalTensor& starts, const OptionalTensor& fringe,
                                  const OptionalTensor& recent_starts, const Tensor& query_signs,
                                  const Tensor& value_signs, const OptionalTensor& base,
                                  std::int64_t head_dim, std::int64_t k_bits, std::int64_t v_bits,
                                  std::int64_t fringe_first, std::int64_t max_tokens, ScalarType dtype) {
  const Call call({{"pages", pages},
                   {"page_table", page_table},
                   {"lengths", lengths},
                   {"starts", starts},
                   {"fringe", fringe},
                   {"recent_starts", recent_starts},
                   {"query_signs", query_signs},
                   {"value_signs", value_signs},
                   {"base", base}});
  Sizes sizes{.head_dim = head_dim};
  DecodeArgs args;
  args.pages = pages_of(pages, page_format(head_dim, k_bits, v_bits), /*writes=*/false, sizes);
  args.sequences = sequences_of(page_table, lengths, starts, nullptr, sizes);
  args.fringe = fringe_of(fringe, recent_starts, fringe_first, /*writes=*/false, sizes);
  args.basis.query_signs = signs_of("query_signs", query_signs, sizes);
  args.basis.value_signs = signs_of("value_signs", value_signs, sizes);
  set_base(base, args.basis.base, args.basis.base_matrix);
  args.dtype = real_dtype("dtype", dtype);
  if (max_tokens < 0)
    raise(invalid("max_tokens=" + std::to_string(max_tokens) + " is negative; pass the longest length"));
  args.max_tokens = max_tokens;
  // Zeros: the core leaves what lies past a sequence's length as it is.
  const auto zeros = [&] {
    return torch::stable::new_zeros(pages, {sizes.sequences, sizes.kv_heads, max_tokens, head_dim}, dtype);
  };
  Tensor keys = zeros(), values = zeros();
  if (keys.numel() > 0) {
    args.keys = keys.mutable_data_ptr();
    args.values = values.mutable_data_ptr();
    require(turboquant::decode(args, call.context()));
  }
  return {keys, values};
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("decode", TORCH_BOX(&turboquant::ops::decode));
}
