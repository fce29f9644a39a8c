// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

// The instructions that C++ has no name for, sm_80 and later.
// https://docs.nvidia.com/cuda/parallel-thread-execution/ has each under its own name.
namespace turboquant::kernels::cuda::many {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void cp_async_16(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lanes 8 k .. 8 k + 7 give the row addresses of matrix k. Lane
// 4 g + q gets elements 2 q and 2 q + 1 of row g of each.
__device__ inline void ldmatrix_x4(std::uint32_t (&out)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// c += A B, A 16 x 16 and B 16 x 8 of fp16, c fp32. Lane 4 g + q holds of c: (g, 2 q), (g, 2 q + 1),
// (g + 8, 2 q), (g + 8, 2 q + 1).
__device__ inline void mma_16816(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                 std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A store where `yes` is not 0, without a branch: instructions around it stay in one block, to be
// interleaved.
__device__ inline void store_shared_if(bool yes, std::uint32_t to, const uint4& x) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.shared.v4.b32 [%1], {%2, %3, %4, %5}; }" ::"r"(
                   static_cast<int>(yes)),
               "r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}

// Byte j of the result is byte (nibble j of selector, below 8) of high:low. Unlike __byte_perm, no mask: the
// selector's upper half is ignored.
__device__ inline std::uint32_t permute(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  std::uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
  return out;
}

__device__ inline std::uint32_t half2_bits(__half2 x) {
  return *reinterpret_cast<std::uint32_t*>(&x);
}
__device__ inline __half2 half2_of(std::uint32_t bits) {
  return *reinterpret_cast<__half2*>(&bits);
}
__device__ inline std::uint32_t pack_half2(float low, float high) {
  return half2_bits(__floats2half2_rn(low, high));
}

}  // namespace turboquant::kernels::cuda::many
