// SPDX-License-Identifier: Apache-2.0
// Which kernel attends. few_rows and many_rows each take the sequences of their kind, so that a ragged call
// of both kinds is two launches; any_dim takes what neither of them does.
#include <algorithm>
#include <climits>
#include <cstdint>

#include "kernels/cuda/attend/few_rows/few_rows.h"
#include "kernels/cuda/attend/kernels.h"
#include "kernels/cuda/cuda.h"
#include "kernels/own_tokens.h"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kFewRows = 32;  // (query, head of the group) pairs: more are cheaper by tiles of 64
constexpr std::int64_t kMostRows = std::int64_t{1} << 20;  // of a call that few_rows takes alone
// A second kernel that finds nothing to do takes 10 microseconds, as the next call cannot begin beside it. So
// few_rows takes small calls of few rows on average alone, however unequal the sequences are: one that has
// nearly all of 225 tokens with 4 rows each takes less time so, too; one of 449 four times as long, since
// every row of it meets every own token at the end (docs/attend.md).
constexpr std::int64_t kMostMixedPairs = 4 * 256 * 256;  // of a row and a token

// Bulk copies want sources aligned to 16 bytes: pages are (128), a fringe that is a part of something may not
// be.
bool suits_few_rows(const AttendArgs& a) {
  return a.query.dtype != DType::kF32 && a.out.dtype != DType::kF32 &&
         (a.keys.data == nullptr || (a.keys.dtype != DType::kF32 && a.values.dtype != DType::kF32)) &&
         reinterpret_cast<std::uintptr_t>(a.fringe.data) % 16 == 0;
}

}  // namespace

Status attend(const AttendArgs& a, const Context& context) {
  const Sequences& s = a.sequences;
  if (s.count == 0 || s.tokens == 0) return {};
  const bool few = suits_few_rows(a) && few_rows::fits(a, context);
  const std::int64_t group = a.q_heads / a.pages.kv_heads, rows = s.tokens * group;
  const bool known =
      s.most_tokens > 0 && s.most_tokens >= (s.tokens + s.count - 1) / s.count;  // or it is wrong
  const std::int64_t most_tokens = std::min(s.most_tokens, s.tokens);
  // As many tokens as sequences is decoding: no sequence is likely to have more than few_rows is made for. It
  // is right for any number.
  const bool mixed = s.tokens * rows <= kMostMixedPairs && rows <= kFewRows * s.count;
  const bool decodes =
      s.tokens == s.count || rows <= kFewRows || (known && most_tokens * group <= kFewRows) || mixed;
  if (few && decodes && rows <= kMostRows) return few_rows::attend(a, INT_MAX, context);
  AttendArgs others = a;  // the workspace without what few_rows keeps zero
  others.workspace = static_cast<std::uint8_t*>(a.workspace) + few_rows::kZeroBytes;
  others.workspace_bytes = a.workspace_bytes - few_rows::kZeroBytes;
  const bool many = many_rows_takes(a, context);
  if (!few || (!many && rows > kMostRows)) return any_dim(others, context);
  if (decodes || !many) return few_rows::attend(a, INT_MAX, context);
  const bool all_long = s.count == 1 || (known && most_tokens * s.count == s.tokens);
  if (!all_long)
    if (Status status = few_rows::attend(a, kFewRows, context); !status.ok()) return status;
  return many_rows(others, all_long ? 0 : kFewRows, context);
}

Status attend_encode(const AttendArgs& given, const Context& context) {
  AttendArgs a = given;  // every sequence has as many tokens
  if (a.sequences.count > 0) a.sequences.most_tokens = a.sequences.tokens / a.sequences.count;
  if (suits_few_rows(a) && few_rows::can_append(a, context))
    return few_rows::attend(a, INT_MAX, context, few_rows::Then::kAppend);
  if (Status status = cuda::attend(a, context); !status.ok()) return status;
  EncodeArgs own = own_tokens(a);
  own.settled = true;  // what encode reads was there before attend began, since attend reads it as well
  return cuda::encode(own, context);
}

std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, const Context& context) {
  const std::size_t others =
      std::max(many_rows_workspace_bytes(format, kv_heads, q_heads, sequences, tokens, context),
               any_dim_workspace_bytes(format, kv_heads, q_heads, sequences, tokens, context));
  return std::max(few_rows::workspace_bytes(format, kv_heads, q_heads, tokens, context),
                  few_rows::kZeroBytes + others);
}

}  // namespace turboquant::kernels::cuda
