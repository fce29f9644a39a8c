// SPDX-License-Identifier: Apache-2.0
#include "args.h"

#include "call.h"

namespace turboquant::ops {

PageFormat page_format(std::int64_t head_dim, std::int64_t k_bits, std::int64_t v_bits) {
  const PageFormat format{narrow("head_dim", head_dim), narrow("k_bits", k_bits), narrow("v_bits", v_bits)};
  require(check(format));
  return format;
}

Pages pages_of(const Tensor& pages, const PageFormat& format, bool writes, Sizes& sizes) {
  const Argument argument{"pages", pages};
  const std::initializer_list<Dim> shape = {
      {"count"}, {"kv_heads"}, {"page_bytes", static_cast<std::int64_t>(format.page_bytes())}};
  // Verbs that only read take the same struct; their pages are not written through it.
  void* bytes = writes ? mutable_data(argument, ScalarType::Byte, shape)
                       : const_cast<void*>(data(argument, ScalarType::Byte, shape));
  sizes.kv_heads = pages.size(1);
  return {.format = format,
          .kv_heads = narrow("pages.shape[1]", sizes.kv_heads),
          .count = pages.size(0),
          .data = static_cast<std::uint8_t*>(bytes)};
}

Sequences sequences_of(const Tensor& page_table, const Tensor& lengths, const OptionalTensor& starts,
                       const Tensor* token_starts, Sizes& sizes) {
  Sequences result;
  result.page_table = ints({"page_table", page_table}, {{"sequences"}, {"max_pages"}});
  sizes.sequences = page_table.size(0);
  result.count = narrow("page_table.shape[0]", sizes.sequences);
  result.max_pages = narrow("page_table.shape[1]", page_table.size(1));
  result.lengths = ints({"lengths", lengths}, {{"sequences", sizes.sequences}});
  result.starts = ints("starts", starts, {{"sequences", sizes.sequences}});
  result.tokens = sizes.tokens;
  if (token_starts) {
    result.token_starts = ints({"token_starts", *token_starts}, {{"sequences + 1", sizes.sequences + 1}});
    check_token_count(result.token_starts, sizes.sequences, sizes.tokens);
  }
  return result;
}

void check_token_count(const std::int32_t* token_starts, std::int64_t sequences, std::int64_t tokens) {
  if (kDevice == DeviceType::kCuda) return;
  if (const std::int32_t last = token_starts[sequences]; last != tokens)
    raise(invalid("token_starts[" + std::to_string(sequences) + "]=" + std::to_string(last) +
                  " but the call has " + std::to_string(tokens) +
                  " tokens; the last entry is the number of tokens"));
}

Fringe fringe_of(const OptionalTensor& fringe, const OptionalTensor& recent_starts, std::int64_t first,
                 bool writes, const Sizes& sizes) {
  Fringe result;
  result.recent_starts = ints("recent_starts", recent_starts, {{"sequences", sizes.sequences}});
  if (!fringe) {
    if (first != 0)
      raise(invalid("fringe_first=" + std::to_string(first) + " without a fringe; pass 0, or the fringe"));
    return result;
  }
  const Argument argument{"fringe", *fringe};
  const std::initializer_list<Dim> shape = {{"sequences", sizes.sequences},
                                            {"kv_heads", sizes.kv_heads},
                                            {"first + recent"},
                                            {"K and V", 2},
                                            {"head_dim", sizes.head_dim}};
  void* halves = writes ? mutable_data(argument, ScalarType::Half, shape)
                        : const_cast<void*>(data(argument, ScalarType::Half, shape));
  const std::int64_t slots = fringe->size(2);
  if (first < 0 || first > slots)
    raise(invalid("fringe_first=" + std::to_string(first) + " is not within the fringe's " +
                  std::to_string(slots) + " slots; pass 0 to " + std::to_string(slots)));
  if (slots == 0) return result;
  result.first = narrow("fringe_first", first);
  result.recent = narrow("fringe.shape[2]", slots - first);
  result.data = static_cast<std::uint16_t*>(halves);
  return result;
}

const float* signs_of(const char* name, const Tensor& signs, const Sizes& sizes) {
  return floats({name, signs}, {{"kv_heads", sizes.kv_heads}, {"head_dim", sizes.head_dim}});
}

const std::int8_t* metric_of(const OptionalTensor& metric, const Sizes& sizes) {
  if (!metric) return nullptr;
  return static_cast<const std::int8_t*>(
      data({"key_metric", *metric}, ScalarType::Char,
           {{"kv_heads", sizes.kv_heads}, {"head_dim", sizes.head_dim}, {"head_dim", sizes.head_dim}}));
}

void set_base(const OptionalTensor& base, int& size, const float*& matrix) {
  if (!base) return;
  const Argument argument{"base", *base};
  argument.shaped({{"m"}, {"m"}});
  matrix = floats(argument, {{"m"}, {"m", base->size(0)}});
  size = narrow("base.shape[0]", base->size(0));
  if (size == 1) matrix = nullptr;
}

Rows rows_of(const Argument& argument, const Dim& heads, const Sizes& sizes) {
  argument.shaped({{"tokens", sizes.tokens}, heads, {"head_dim", sizes.head_dim}}).last_dim_contiguous();
  const Tensor& tensor = argument.tensor;
  static constexpr float kNone = 0;  // an empty tensor is not an absent one
  return {.dtype = argument.real_dtype(),
          .data = tensor.numel() > 0 ? tensor.const_data_ptr() : &kNone,
          .token_stride = tensor.stride(0),
          .head_stride = tensor.stride(1)};
}

Rows rows_of_heads(const Argument& argument, const Dim& heads, std::int64_t tokens, const Sizes& sizes) {
  argument.shaped({{"sequences", sizes.sequences}, heads, {"tokens", tokens}, {"head_dim", sizes.head_dim}})
      .last_dim_contiguous();
  const Tensor& tensor = argument.tensor;
  const std::string name = argument.name;
  if (sizes.sequences > 1 && tokens > 1 && tensor.stride(0) != tokens * tensor.stride(2))
    raise(invalid(name + " has strides of " + std::to_string(tensor.stride(0)) + " between sequences and " +
                  std::to_string(tensor.stride(2)) +
                  " between tokens, so they are not one row of tokens; pass " + name +
                  ".transpose(1, 2).contiguous().transpose(1, 2)"));
  static constexpr float kNone = 0;  // an empty tensor is not an absent one
  return {.dtype = argument.real_dtype(),
          .data = tensor.numel() > 0 ? tensor.const_data_ptr() : &kNone,
          .token_stride = tensor.stride(tokens > 1 ? 2 : 0),
          .head_stride = tensor.stride(1)};
}

MutableRows rows_of(const Tensor& contiguous) {
  static float none = 0;
  return {.dtype = real_dtype("output", contiguous.scalar_type()),
          .data = contiguous.numel() > 0 ? contiguous.mutable_data_ptr() : &none,
          .token_stride = contiguous.stride(0),
          .head_stride = contiguous.stride(1)};
}

}  // namespace turboquant::ops
