// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "args.h"
#include "call.h"
#include "workspace.h"

namespace turboquant::ops {
namespace {

std::tuple<Tensor, Tensor> attend(
    const Tensor& query, const OptionalTensor& keys, const OptionalTensor& values, const Tensor& token_starts,
    const Tensor& pages, const Tensor& page_table, const Tensor& lengths, const OptionalTensor& starts,
    const OptionalTensor& fringe, const OptionalTensor& recent_starts, const Tensor& query_signs,
    const Tensor& value_signs, const OptionalTensor& base, const OptionalTensor& sinks, std::int64_t k_bits,
    std::int64_t v_bits, std::int64_t fringe_first, double scale, double softcap, std::int64_t window,
    bool settled, const OptionalTensor& workspace, std::int64_t most_tokens) {
  const Call call({{"query", query},
                   {"keys", keys},
                   {"values", values},
                   {"token_starts", token_starts},
                   {"pages", pages},
                   {"page_table", page_table},
                   {"lengths", lengths},
                   {"starts", starts},
                   {"fringe", fringe},
                   {"recent_starts", recent_starts},
                   {"query_signs", query_signs},
                   {"value_signs", value_signs},
                   {"base", base},
                   {"sinks", sinks},
                   {"workspace", workspace}});
  Argument{"query", query}.shaped({{"tokens"}, {"q_heads"}, {"head_dim"}});
  const std::int64_t q_heads = query.size(1);
  Sizes sizes{.tokens = query.size(0), .head_dim = query.size(2)};
  AttendArgs args;
  args.pages = pages_of(pages, page_format(sizes.head_dim, k_bits, v_bits), /*writes=*/false, sizes);
  args.sequences = sequences_of(page_table, lengths, starts, &token_starts, sizes);
  args.sequences.most_tokens = most_tokens;
  args.fringe = fringe_of(fringe, recent_starts, fringe_first, /*writes=*/false, sizes);
  args.q_heads = narrow("query.shape[1]", q_heads);
  args.query = rows_of({"query", query}, {"q_heads"}, sizes);
  if (keys.has_value() != values.has_value())
    raise(invalid(keys ? "keys without values; pass both or neither"
                       : "values without keys; pass both or neither"));
  if (keys) {
    args.keys = rows_of({"keys", *keys}, {"kv_heads", sizes.kv_heads}, sizes);
    args.values =
        rows_of(Argument{"values", *values}.of(keys->scalar_type()), {"kv_heads", sizes.kv_heads}, sizes);
  }
  args.basis.query_signs = signs_of("query_signs", query_signs, sizes);
  args.basis.value_signs = signs_of("value_signs", value_signs, sizes);
  set_base(base, args.basis.base, args.basis.base_matrix);
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  args.window = narrow("window", window);
  args.sinks = floats("sinks", sinks, {{"q_heads", q_heads}});

  args.settled = settled;

  Tensor out = torch::stable::new_empty(query, query.sizes());
  Tensor lse = torch::stable::new_empty(query, {sizes.tokens, q_heads}, ScalarType::Float);
  args.out = rows_of(out);
  args.lse = static_cast<float*>(lse.mutable_data_ptr());
  const Tensor bytes = workspace ? *workspace : new_workspace(query, args, call.context());
  set_workspace(bytes, args);
  require(turboquant::attend(args, call.context()));
  return {out, lse};
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("attend", TORCH_BOX(&turboquant::ops::attend));
}
