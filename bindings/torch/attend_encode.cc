// SPDX-License-Identifier: Apache-2.0
// A step of decoding in one call. Tensors that are the same at each step are checked once for all steps
// (attend_encode_prepared).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "args.h"
#include "call.h"
#include "workspace.h"

namespace turboquant::ops {
namespace {

struct Step {
  Sizes sizes;
  std::int64_t tokens = 0, q_heads = 0;  // tokens: of each sequence
  AttendArgs args;
};

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

// The call's own tokens.
void set_own(Step& step, const Tensor& query, const Tensor& keys, const Tensor& values) {
  const Dim kv_heads{"kv_heads", step.sizes.kv_heads};
  step.args.keys = rows_of_heads({"keys", keys}, kv_heads, step.tokens, step.sizes);
  step.args.values =
      rows_of_heads(Argument{"values", values}.of(keys.scalar_type()), kv_heads, step.tokens, step.sizes);
  step.args.query = rows_of_heads({"query", query}, {"q_heads", step.q_heads}, step.tokens, step.sizes);
}

Tensor run(Step& step, const Tensor& query, const Call& call) {
  const std::int64_t head_dim = step.sizes.head_dim;
  Tensor out = empty_like_rows(query, {step.sizes.sequences, step.tokens, step.q_heads, head_dim});
  static float none = 0;
  step.args.out = {.dtype = step.args.query.dtype,
                   .data = out.numel() > 0 ? out.mutable_data_ptr() : &none,
                   .token_stride = step.q_heads * head_dim,
                   .head_stride = head_dim};
  require(turboquant::attend_encode(step.args, call.context()));
  return out;
}

// A step's checked arguments in a tensor on the CPU, for more steps with the same ones. It holds addresses,
// so whoever keeps it keeps the tensors that they are of.
struct Prepared {
  std::uint64_t magic = kMagic;
  DeviceType type = kDevice;
  int device = 0;
  ScalarType dtype = ScalarType::Undefined;
  Step step;
  static constexpr std::uint64_t kMagic = 0x7e9a5d3c41b60f28;  // anything but what a tensor is likely to hold
  static constexpr std::int64_t kBytes = 1024;  // of the tensor, as in python/turboquant/_fake.py
};
static_assert(std::is_trivially_copyable_v<Prepared> && sizeof(Prepared) <= Prepared::kBytes);

Tensor prepare(const Step& step, ScalarType dtype, const Call& call) {
  Tensor state = torch::stable::empty({Prepared::kBytes}, ScalarType::Byte, std::nullopt,
                                      torch::stable::Device(torch::headeronly::DeviceType::CPU));
  const Prepared prepared{.device = call.context().device.index, .dtype = dtype, .step = step};
  std::memset(state.mutable_data_ptr(), 0, Prepared::kBytes);
  std::memcpy(state.mutable_data_ptr(), &prepared, sizeof(Prepared));
  return state;
}

Prepared prepared_of(const Tensor& state) {
  if (!state.is_cpu()) raise(invalid("state is not on the CPU; pass what prepare_attend_encode returned"));
  Prepared prepared;
  std::memcpy(&prepared, data({"state", state}, ScalarType::Byte, {{"bytes", Prepared::kBytes}}),
              sizeof(Prepared));
  if (prepared.magic != Prepared::kMagic)
    raise(invalid("state holds something else; pass what prepare_attend_encode returned"));
  return prepared;
}

enum class Then { kRun, kPrepare };

template <Then then>
Tensor attend_encode(const Tensor& query, const Tensor& keys, const Tensor& values,
                     const Tensor& token_starts, const Tensor& pages, const Tensor& page_table,
                     const Tensor& lengths, const OptionalTensor& starts, const OptionalTensor& fringe,
                     const OptionalTensor& recent_starts, const Tensor& key_signs, const Tensor& query_signs,
                     const Tensor& value_signs, const OptionalTensor& base, const OptionalTensor& sinks,
                     std::int64_t k_bits, std::int64_t v_bits, std::int64_t fringe_first, double scale,
                     double softcap, std::int64_t window, bool settled, const OptionalTensor& workspace,
                     const OptionalTensor& key_metric) {
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
                   {"workspace", workspace},
                   {"key_metric", key_metric}});
  Argument{"query", query}.shaped({{"sequences"}, {"q_heads"}, {"tokens"}, {"head_dim"}});
  Step step{.sizes = {.tokens = query.size(0) * query.size(2), .head_dim = query.size(3)},
            .tokens = query.size(2),
            .q_heads = query.size(1),
            .args = {}};
  Sizes& sizes = step.sizes;
  AttendArgs& args = step.args;
  args.pages = pages_of(pages, page_format(sizes.head_dim, k_bits, v_bits), /*writes=*/true, sizes);
  args.sequences = sequences_of(page_table, lengths, starts, &token_starts, sizes);
  args.fringe = fringe_of(fringe, recent_starts, fringe_first, /*writes=*/true, sizes);
  args.basis.key_signs = signs_of("key_signs", key_signs, sizes);
  args.basis.query_signs = signs_of("query_signs", query_signs, sizes);
  args.basis.value_signs = signs_of("value_signs", value_signs, sizes);
  set_base(base, args.basis.base, args.basis.base_matrix);
  args.basis.key_metric = metric_of(key_metric, sizes);
  args.q_heads = narrow("query.shape[1]", step.q_heads);
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap);
  args.window = narrow("window", window);
  args.sinks = floats("sinks", sinks, {{"q_heads", step.q_heads}});
  args.settled = settled;
  set_own(step, query, keys, values);
  if (workspace) set_workspace(*workspace, args);
  if constexpr (then == Then::kPrepare) {
    if (!workspace) raise(invalid("workspace is None; a prepared step takes one that is kept"));
    return prepare(step, query.scalar_type(), call);
  } else {
    const OptionalTensor made =
        workspace ? OptionalTensor() : OptionalTensor(new_workspace(query, args, call.context()));
    if (made) set_workspace(*made, args);
    return run(step, query, call);
  }
}

Tensor attend_encode_prepared(const Tensor& query, const Tensor& keys, const Tensor& values,
                              const Tensor& lengths, const Tensor& state) {
  Prepared prepared = prepared_of(state);
  const Call call({{"query", query}, {"keys", keys}, {"values", values}, {"lengths", lengths}});
  if (prepared.type != kDevice || call.context().device.index != prepared.device)
    raise(invalid("query is on another device than the tensors that state was made of"));
  Step& step = prepared.step;
  Argument{"query", query}.of(prepared.dtype);
  set_own(step, query, keys, values);
  check_token_count(step.args.sequences.token_starts, step.sizes.sequences, step.sizes.tokens);
  step.args.sequences.lengths = ints({"lengths", lengths}, {{"sequences", step.sizes.sequences}});
  return run(step, query, call);
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, TQ_TORCH_DEVICE, m) {
  m.impl("attend_encode", TORCH_BOX(&turboquant::ops::attend_encode<turboquant::ops::Then::kRun>));
  m.impl("prepare_attend_encode",
         TORCH_BOX(&turboquant::ops::attend_encode<turboquant::ops::Then::kPrepare>));
  m.impl("attend_encode_prepared", TORCH_BOX(&turboquant::ops::attend_encode_prepared));
}
