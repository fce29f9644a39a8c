// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "core/hadamard.h"
#include "kernels/portable/portable.h"

namespace turboquant::kernels::TQ_ISA {

void rotate(const RotateArgs& a, Executor& executor) {
  const int d = a.head_dim;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  const auto per_task = static_cast<std::int64_t>(64);  // tokens
  executor.for_each(static_cast<std::size_t>((a.tokens + per_task - 1) / per_task), [&](std::size_t task) {
    float x[1024], scratch[1024];
    const std::int64_t begin = static_cast<std::int64_t>(task) * per_task;
    for (std::int64_t token = begin; token < begin + per_task && token < a.tokens; ++token)
      for (int h = 0; h < a.heads; ++h) {
        const float* signs = a.signs + h * d;
        load_vector(a.in, token, h, d, x);
        if (!a.inverse)
          for (int e = 0; e < d; ++e) x[e] = x[e] * signs[e];
        if (a.inverse) core::hadamard_transposed(x, a.base, d / a.base, a.base_matrix, scratch);
        else core::hadamard_forward(x, a.base, d / a.base, a.base_matrix, scratch);
        for (int e = 0; e < d; ++e) x[e] = x[e] * scale;
        if (a.inverse)
          for (int e = 0; e < d; ++e) x[e] = x[e] * signs[e];
        store_vector(a.out, token, h, d, x);
      }
  });
}

}  // namespace turboquant::kernels::TQ_ISA
