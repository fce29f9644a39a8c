// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>

#include "args.h"
#include "call.h"

namespace turboquant::ops {
namespace {

void encode(const Tensor& keys, const Tensor& values, const Tensor& token_starts, const Tensor& page_table,
            const Tensor& lengths, const OptionalTensor& starts, const Tensor& pages,
            const OptionalTensor& fringe, const OptionalTensor& recent_starts, const Tensor& key_signs,
            const Tensor& value_signs, const OptionalTensor& base, std::int64_t k_bits, std::int64_t v_bits,
            std::int64_t fringe_first, bool settled, const OptionalTensor& key_metric) {
  const Call call({{"keys", keys},
                   {"values", values},
                   {"token_starts", token_starts},
                   {"page_table", page_table},
                   {"lengths", lengths},
                   {"starts", starts},
                   {"pages", pages},
                   {"fringe", fringe},
                   {"recent_starts", recent_starts},
                   {"key_signs", key_signs},
                   {"value_signs", value_signs},
                   {"base", base},
                   {"key_metric", key_metric}});
  Argument{"keys", keys}.shaped({{"tokens"}, {"kv_heads"}, {"head_dim"}});
  Sizes sizes{.tokens = keys.size(0), .head_dim = keys.size(2)};
  EncodeArgs args;
  args.pages = pages_of(pages, page_format(sizes.head_dim, k_bits, v_bits), /*writes=*/true, sizes);
  args.sequences = sequences_of(page_table, lengths, starts, &token_starts, sizes);
  args.fringe = fringe_of(fringe, recent_starts, fringe_first, /*writes=*/true, sizes);
  args.keys = rows_of({"keys", keys}, {"kv_heads", sizes.kv_heads}, sizes);
  args.values =
      rows_of(Argument{"values", values}.of(keys.scalar_type()), {"kv_heads", sizes.kv_heads}, sizes);
  args.basis.key_signs = signs_of("key_signs", key_signs, sizes);
  args.basis.value_signs = signs_of("value_signs", value_signs, sizes);
  set_base(base, args.basis.base, args.basis.base_matrix);
  args.basis.key_metric = metric_of(key_metric, sizes);
  args.settled = settled;
  require(turboquant::encode(args, call.context()));
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("encode", TORCH_BOX(&turboquant::ops::encode));
}
