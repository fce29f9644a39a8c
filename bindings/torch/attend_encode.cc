// SPDX-License-Identifier: Apache-2.0
// A step of decoding in one call: attend, then encode of the same tokens. Tensors are checked once for both.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "args.h"
#include "call.h"
#include "workspace.h"

namespace turboquant::ops {
namespace {

// Straight from torch's C shim: new_empty goes through the dispatcher, at the price of a launch.
Tensor empty_like_rows(const Tensor& like, const std::array<std::int64_t, 4>& sizes) {
  const std::array<std::int64_t, 4> strides = {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3],
                                               1};
  std::int32_t dtype = 0, type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &type));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(4, sizes.data(), strides.data(), dtype, type,
                                                  kDevice == DeviceType::kCuda ? like.get_device_index() : 0,
                                                  &made));
  return Tensor(made);
}

Tensor attend_encode(const Tensor& query, const Tensor& keys, const Tensor& values,
                     const Tensor& token_starts, const Tensor& pages, const Tensor& page_table,
                     const Tensor& lengths, const OptionalTensor& starts, const OptionalTensor& fringe,
                     const OptionalTensor& recent_starts, const Tensor& key_signs, const Tensor& query_signs,
                     const Tensor& value_signs, const OptionalTensor& base, const OptionalTensor& sinks,
                     std::int64_t k_bits, std::int64_t v_bits, std::int64_t fringe_first, double scale,
                     double softcap, std::int64_t window, bool settled, const OptionalTensor& workspace) {
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
                   {"key_signs", key_signs},
                   {"query_signs", query_signs},
                   {"value_signs", value_signs},
                   {"base", base},
                   {"sinks", sinks},
                   {"workspace", workspace}});
  Argument{"query", query}.shaped({{"sequences"}, {"q_heads"}, {"tokens"}, {"head_dim"}});
  const std::int64_t q_heads = query.size(1), tokens = query.size(2);
  Sizes sizes{.tokens = query.size(0) * tokens, .head_dim = query.size(3)};
  EncodeArgs write;
  write.pages = pages_of(pages, page_format(sizes.head_dim, k_bits, v_bits), /*writes=*/true, sizes);
  write.sequences = sequences_of(page_table, lengths, starts, &token_starts, sizes);
  write.fringe = fringe_of(fringe, recent_starts, fringe_first, /*writes=*/true, sizes);
  const Dim kv_heads{"kv_heads", sizes.kv_heads};
  write.keys = rows_of_heads({"keys", keys}, kv_heads, tokens, sizes);
  write.values = rows_of_heads(Argument{"values", values}.of(keys.scalar_type()), kv_heads, tokens, sizes);
  write.basis.key_signs = signs_of("key_signs", key_signs, sizes);
  write.basis.query_signs = signs_of("query_signs", query_signs, sizes);
  write.basis.value_signs = signs_of("value_signs", value_signs, sizes);
  set_base(base, write.basis.base, write.basis.base_matrix);
  // What encode reads was there before attend began, since attend reads it as well.
  write.settled = true;

  AttendArgs read{.pages = write.pages,
                  .basis = write.basis,
                  .fringe = write.fringe,
                  .sequences = write.sequences,
                  .q_heads = narrow("query.shape[1]", q_heads),
                  .query = rows_of_heads({"query", query}, {"q_heads"}, tokens, sizes),
                  .keys = write.keys,
                  .values = write.values,
                  .scale = static_cast<float>(scale),
                  .softcap = static_cast<float>(softcap),
                  .window = narrow("window", window),
                  .sinks = floats("sinks", sinks, {{"q_heads", q_heads}}),
                  .out = {},
                  .settled = settled};
  Tensor out = empty_like_rows(query, {sizes.sequences, tokens, q_heads, sizes.head_dim});
  static float none = 0;
  read.out = {.dtype = read.query.dtype,
              .data = out.numel() > 0 ? out.mutable_data_ptr() : &none,
              .token_stride = q_heads * sizes.head_dim,
              .head_stride = sizes.head_dim};
  const Tensor bytes = workspace ? *workspace : new_workspace(query, read, call.context());
  set_workspace(bytes, read);
  require(turboquant::attend(read, call.context()));
  require(turboquant::encode(write, call.context()));
  return out;
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("attend_encode", TORCH_BOX(&turboquant::ops::attend_encode));
}
