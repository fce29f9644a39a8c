// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "core/hadamard.h"
#include "kernels/reference/reference.h"

namespace turboquant::kernels {
namespace reference {

// Like encode, rotate is defined by fp32 arithmetic in a fixed order.
void rotate(const RotateArgs& a, Executor& executor) {
  const int d = a.head_dim;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  executor.for_each(static_cast<std::size_t>(a.tokens), [&](std::size_t token) {
    float x[1024], scratch[1024];
    for (int h = 0; h < a.heads; ++h) {
      const float* signs = a.signs + h * d;
      load_vector(a.in, static_cast<std::int64_t>(token), h, d, x);
      if (!a.inverse) {
        for (int e = 0; e < d; ++e) x[e] = x[e] * signs[e];
        core::hadamard_forward(x, a.base, d / a.base, a.base_matrix, scratch);
        for (int e = 0; e < d; ++e) x[e] = x[e] * scale;
      } else {
        core::hadamard_transposed(x, a.base, d / a.base, a.base_matrix, scratch);
        for (int e = 0; e < d; ++e) x[e] = x[e] * scale * signs[e];
      }
      store_vector(a.out, static_cast<std::int64_t>(token), h, d, x);
    }
  });
}

}  // namespace reference

const KernelTable kReference{
    "reference",
    [] { return true; },
    &reference::rotate,
    &reference::encode,
    &reference::decode,
    &reference::attend,
    [](const PageFormat&, int, int, int, std::int64_t, int) -> std::size_t { return 0; }};

}  // namespace turboquant::kernels
