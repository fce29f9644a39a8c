// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "core/hadamard.h"
#include "kernels/reference/reference.h"

namespace turboquant::kernels::reference {
namespace {

// x = signs * H^T y / sqrt(d): back to the model's basis.
void store_unrotated(const DecodeArgs& a, std::vector<double>& y, const float* signs, void* out,
                     std::int64_t at) {
  const int d = a.pages.format.head_dim;
  std::vector<double> scratch(y.size());
  core::hadamard_double(y.data(), a.basis.base, d / a.basis.base, a.basis.base_matrix, scratch.data(), true);
  std::vector<float> x(y.size());
  for (std::size_t e = 0; e < y.size(); ++e)
    x[e] = static_cast<float>(static_cast<double>(signs[e]) * y[e] / std::sqrt(static_cast<double>(d)));
  store_vector(a.dtype, out, at, d, x.data());
}

}  // namespace

void decode(const DecodeArgs& a, Executor& executor) {
  const int d = a.pages.format.head_dim;
  const auto heads = static_cast<std::size_t>(a.pages.kv_heads);
  executor.for_each(static_cast<std::size_t>(a.sequences.count) * heads, [&](std::size_t task) {
    const int i = static_cast<int>(task / heads), h = static_cast<int>(task % heads);
    const History history{a.pages, a.fringe, a.sequences};
    for (std::int64_t p = 0; p < a.sequences.lengths[i]; ++p) {
      std::vector<double> key(static_cast<std::size_t>(d)), value(static_cast<std::size_t>(d));
      if (p >= start_of(a.sequences, i)) {
        history.key(i, h, p, key.data());
        history.value(i, h, p, value.data());
      }
      const std::int64_t at = (static_cast<std::int64_t>(task) * a.max_tokens + p) * d;
      store_unrotated(a, key, a.basis.query_signs + h * d, a.keys, at);
      store_unrotated(a, value, a.basis.value_signs + h * d, a.values, at);
    }
  });
}

}  // namespace turboquant::kernels::reference
