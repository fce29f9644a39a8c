// SPDX-License-Identifier: Apache-2.0
// rotate: a warp a vector, in registers (warp_vector.cuh); at head_dim 128 four lanes a vector (quads.cuh),
// which is bound by memory.
#include <cmath>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/quads.cuh"
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

__global__ void __launch_bounds__(32 * kWarps, 3)
    rotate_quads(const __grid_constant__ RotateArgs a, const float scale) {
  wait_for_previous_kernel();
  const std::int64_t count = a.tokens * a.heads, lane_vector = threadIdx.x / 4;
  std::int64_t vector = static_cast<std::int64_t>(blockIdx.x) * (8 * kWarps) + lane_vector;
  const bool exists = vector < count;
  if (!exists) vector = count - 1;
  const std::int64_t token = vector / a.heads;
  const int head = static_cast<int>(vector - token * a.heads);
  float x[kQuadLane], signs[kQuadLane];
  load_quad(a.in.dtype, a.in.data, row_at(a.in, token, head), x);
  load_quad(DType::kF32, a.signs, static_cast<std::int64_t>(head) * kQuadDim, signs);
  if (!a.inverse) {
#pragma unroll
    for (int j = 0; j < kQuadLane; ++j) x[j] = __fmul_rn(x[j], signs[j]);
  }
  quad_hadamard(x);
#pragma unroll
  for (int j = 0; j < kQuadLane; ++j) {
    x[j] = __fmul_rn(x[j], scale);
    if (a.inverse) x[j] = __fmul_rn(x[j], signs[j]);
  }
  if (exists) store_quad(a.out.dtype, a.out.data, row_at(a.out, token, head), x);
}

template <class Rows>
bool is_aligned(const Rows& rows) {
  const auto bytes = static_cast<std::int64_t>(size_of(rows.dtype));
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.token_stride * bytes % 16 == 0 &&
         rows.head_stride * bytes % 16 == 0;
}

Status launch_quads(const RotateArgs& args, float scale, const Context& context) {
  const std::int64_t blocks = (args.tokens * args.heads + 8 * kWarps - 1) / (8 * kWarps);
  const Launch how{"rotate", dim3(static_cast<unsigned>(blocks)), dim3(32 * kWarps), 0, true};
  return launch(how, context, &rotate_quads, args, scale);
}

template <int C>
Status launch_rotate(const RotateArgs& args, float scale, const Context& context) {
  const std::int64_t blocks = (args.tokens * args.heads + kWarps - 1) / kWarps;
  const Launch how{"rotate", dim3(static_cast<unsigned>(blocks)), dim3(32 * kWarps), 0, true};
  return launch(how, context, &rotate_vectors<C>, args, scale);
}

}  // namespace

Status rotate(const RotateArgs& args, const Context& context) {
  if (args.tokens <= 0 || args.heads <= 0) return {};
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.head_dim)));
  if (args.head_dim == kQuadDim && is_aligned(args.in) && is_aligned(args.out) &&
      reinterpret_cast<std::uintptr_t>(args.signs) % 16 == 0)
    return launch_quads(args, scale, context);
  switch (coordinates_per_lane(args.head_dim)) {
    case 1:
      return launch_rotate<1>(args, scale, context);
    case 2:
      return launch_rotate<2>(args, scale, context);
    case 4:
      return launch_rotate<4>(args, scale, context);
    case 8:
      return launch_rotate<8>(args, scale, context);
    case 16:
      return launch_rotate<16>(args, scale, context);
    default:
      return launch_rotate<32>(args, scale, context);
  }
}

}  // namespace turboquant::kernels::cuda
