// SPDX-License-Identifier: Apache-2.0
// Which kernel attends: by dtype, head_dim and the number of rows a sequence.
#include <algorithm>
#include <climits>

#include "kernels/cuda/attend/few_rows/few_rows.h"
#include "kernels/cuda/cuda.h"

namespace turboquant::kernels::cuda {

Status attend(const AttendArgs& args, const Context& context) {
  if (args.sequences.count == 0 || args.sequences.tokens == 0) return {};
  return few_rows::attend(args, INT_MAX, context);
}

std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, const Context& context) {
  return few_rows::workspace_bytes(format, kv_heads, q_heads, sequences, tokens, context);
}

}  // namespace turboquant::kernels::cuda
