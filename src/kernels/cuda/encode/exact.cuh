// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// IEEE division and square root, to nearest, without the range checks of __fdiv_rn() and __fsqrt_rn(), whose
// slow paths are calls that cost a hot loop its registers. The operations are those of CUDA's fast paths.
namespace turboquant::kernels::cuda {

// a / b where a, b and the quotient are normal and a is above 2^-64.
__device__ inline float divide_normal(float a, float b) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  r = __fmaf_rn(r, __fmaf_rn(-b, r, 1.0f), r);
  const float quotient = __fmul_rn(a, r);
  return __fmaf_rn(r, __fmaf_rn(-b, quotient, a), quotient);
}

// sqrt(x) of any finite x >= 0. Small ones are scaled by an even power of two, which is exact.
__device__ inline float square_root(float x) {
  const bool small = x < 0x1p-64f;
  const float y = small ? __fmul_rn(x, 0x1p96f) : x;
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(y));
  float root = __fmul_rn(y, r);
  root = __fmaf_rn(__fmaf_rn(-root, root, y), __fmul_rn(r, 0.5f), root);
  if (small) root = __fmul_rn(root, 0x1p-48f);
  return x == 0.0f ? 0.0f : root;
}

}  // namespace turboquant::kernels::cuda
