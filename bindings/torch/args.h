// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "check.h"
#include "turboquant/attention.h"

// Checked tensors as the argument structs of turboquant/attention.h.
namespace turboquant::ops {

using OptionalTensor = std::optional<Tensor>;

// The sizes that tensors of one call agree on, each taken from the argument that defines it.
struct Sizes {
  std::int64_t sequences = 0, tokens = 0, kv_heads = 0, head_dim = 0;
};

PageFormat page_format(std::int64_t head_dim, std::int64_t k_bits, std::int64_t v_bits);

// pages [count, kv_heads, page_bytes] uint8; fills sizes.kv_heads. `writes`: the call writes the pages.
Pages pages_of(const Tensor& pages, const PageFormat& format, bool writes, Sizes& sizes);

// page_table [sequences, max_pages], lengths and starts [sequences], token_starts [sequences + 1]; all
// int32. Fills sizes.sequences. `token_starts` is null where the verb reads none.
Sequences sequences_of(const Tensor& page_table, const Tensor& lengths, const OptionalTensor& starts,
                       const Tensor* token_starts, Sizes& sizes);

// token_starts ends at the call's number of rows: the core takes the rows' word for it. On CUDA the caller
// promises it.
void check_token_count(const std::int32_t* token_starts, std::int64_t sequences, std::int64_t tokens);

// fringe [sequences, kv_heads, first + recent, 2, head_dim] float16, recent_starts [sequences] int32.
Fringe fringe_of(const OptionalTensor& fringe, const OptionalTensor& recent_starts, std::int64_t first,
                 bool writes, const Sizes& sizes);

// Signs [kv_heads, head_dim] float32.
const float* signs_of(const char* name, const Tensor& signs, const Sizes& sizes);
// key_metric [kv_heads, head_dim, head_dim] int8; None: null.
const std::int8_t* metric_of(const OptionalTensor& metric, const Sizes& sizes);
// base [m, m] float32; None, or m = 1: none.
void set_base(const OptionalTensor& base, int& size, const float*& matrix);

// [tokens, heads, head_dim] of float32, float16 or bfloat16, any strides but the last.
Rows rows_of(const Argument& argument, const Dim& heads, const Sizes& sizes);
MutableRows rows_of(const Tensor& contiguous);

// [sequences, heads, tokens a sequence, head_dim], as models have them: the same rows where sequences follow
// one another at the stride of their tokens. Token i of sequence s is row s * tokens + i.
Rows rows_of_heads(const Argument& argument, const Dim& heads, std::int64_t tokens, const Sizes& sizes);

}  // namespace turboquant::ops
