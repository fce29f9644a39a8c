// SPDX-License-Identifier: Apache-2.0
// rotate: a warp a vector, in registers (warp_vector.cuh). Bound by memory at head_dim 128.
#include <cmath>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/warp_vector.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kWarps = 8;

template <int C>
__global__ void __launch_bounds__(32 * kWarps)
    rotate_vectors(const __grid_constant__ RotateArgs a, const float scale) {
  __shared__ float scratch[kWarps][32 * C];
  wait_for_previous_kernel();
  const int warp = static_cast<int>(threadIdx.x / 32), d = a.head_dim, first = lane_id() * C;
  const std::int64_t vector = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (vector >= a.tokens * a.heads) return;
  const std::int64_t token = vector / a.heads;
  const int head = static_cast<int>(vector - token * a.heads);
  float x[C], signs[C];
  load_warp_vector(a.in.dtype, a.in.data, row_at(a.in, token, head), d, x);
#pragma unroll
  for (int j = 0; j < C; ++j)
    signs[j] = first < d ? a.signs[static_cast<std::int64_t>(head) * d + first + j] : 0.0f;
  if (!a.inverse) {
#pragma unroll
    for (int j = 0; j < C; ++j) x[j] = first < d ? __fmul_rn(x[j], signs[j]) : 0.0f;
  }
  hadamard(x, a.base, d / a.base, a.base_matrix, a.inverse, scratch[warp]);
#pragma unroll
  for (int j = 0; j < C; ++j) {
    x[j] = __fmul_rn(x[j], scale);
    if (a.inverse) x[j] = __fmul_rn(x[j], signs[j]);
  }
  store_warp_vector(a.out.dtype, a.out.data, row_at(a.out, token, head), d, x);
}

template <int C>
Status launch_rotate(const RotateArgs& args, const Context& context) {
  const std::int64_t blocks = (args.tokens * args.heads + kWarps - 1) / kWarps;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.head_dim)));
  const Launch how{"rotate", dim3(static_cast<unsigned>(blocks)), dim3(32 * kWarps), 0, true};
  return launch(how, context, &rotate_vectors<C>, args, scale);
}

}  // namespace

Status rotate(const RotateArgs& args, const Context& context) {
  switch (coordinates_per_lane(args.head_dim)) {
    case 1:
      return launch_rotate<1>(args, context);
    case 2:
      return launch_rotate<2>(args, context);
    case 4:
      return launch_rotate<4>(args, context);
    case 8:
      return launch_rotate<8>(args, context);
    case 16:
      return launch_rotate<16>(args, context);
    default:
      return launch_rotate<32>(args, context);
  }
}

}  // namespace turboquant::kernels::cuda
