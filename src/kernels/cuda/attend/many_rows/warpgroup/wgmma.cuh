// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// wgmma (sm_90a): four warps multiply 64 rows; B, and A or not, come from shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions
namespace turboquant::kernels::cuda::many {

// A matrix of rows of 128 bytes in the 128-byte swizzle, the reduction along the row, groups of 8 rows 1,024
// bytes apart: the lower half of its "matrix descriptor". Address / 16 in bits 0-13; the leading dimension's
// offset, in bits 16-29, is not used. Adding 1 goes on by 16 bytes, within a row or to another block.
__device__ inline std::uint32_t matrix_of(std::uint32_t address) {
  return 1u << 16 | (address & 0x3ffffu) >> 4;
}
constexpr std::uint32_t kNext16 = 32 / 16;  // 16 elements further along the row

// With the upper half: the groups' distance / 16 in bits 32-45, 1 (128-byte swizzle) in bits 62-63.
__device__ inline std::uint64_t descriptor_of(std::uint32_t matrix) {
  return std::uint64_t{1} << 62 | std::uint64_t{1024 / 16} << 32 | matrix;
}

// Before the first product, and after registers of one were written otherwise.
__device__ inline void products_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// All but the last kPending committed groups are complete.
template <int kPending>
__device__ inline void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// 64 rows x 72 columns, from 0 on where `first`. A warp's 16 rows and a lane's columns are those of
// mma_16816's c, 8 columns each.
__device__ inline void multiply_64x72(float (&s)[8][4], float (&last)[4], std::uint32_t a, std::uint32_t b,
                                      bool first) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.b32 p, %38, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n72k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35}, "
      "%36, %37, p, 1, 1, 0, 0;\n}"
      : "+f"(s[0][0]), "+f"(s[0][1]), "+f"(s[0][2]), "+f"(s[0][3]), "+f"(s[1][0]), "+f"(s[1][1]),
        "+f"(s[1][2]), "+f"(s[1][3]), "+f"(s[2][0]), "+f"(s[2][1]), "+f"(s[2][2]), "+f"(s[2][3]),
        "+f"(s[3][0]), "+f"(s[3][1]), "+f"(s[3][2]), "+f"(s[3][3]), "+f"(s[4][0]), "+f"(s[4][1]),
        "+f"(s[4][2]), "+f"(s[4][3]), "+f"(s[5][0]), "+f"(s[5][1]), "+f"(s[5][2]), "+f"(s[5][3]),
        "+f"(s[6][0]), "+f"(s[6][1]), "+f"(s[6][2]), "+f"(s[6][3]), "+f"(s[7][0]), "+f"(s[7][1]),
        "+f"(s[7][2]), "+f"(s[7][3]), "+f"(last[0]), "+f"(last[1]), "+f"(last[2]), "+f"(last[3])
      : "l"(descriptor_of(a)), "l"(descriptor_of(b)), "r"(static_cast<int>(first)));
}

// += 64 rows x 136 columns; A in registers, as mma_16816's.
__device__ inline void multiply_64x136(float (&o)[16][4], float (&last)[4], const std::uint32_t (&a)[4],
                                       std::uint32_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n136k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
      "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67}, "
      "{%68, %69, %70, %71}, %72, 1, 1, 1, 0;"
      : "+f"(o[0][0]), "+f"(o[0][1]), "+f"(o[0][2]), "+f"(o[0][3]), "+f"(o[1][0]), "+f"(o[1][1]),
        "+f"(o[1][2]), "+f"(o[1][3]), "+f"(o[2][0]), "+f"(o[2][1]), "+f"(o[2][2]), "+f"(o[2][3]),
        "+f"(o[3][0]), "+f"(o[3][1]), "+f"(o[3][2]), "+f"(o[3][3]), "+f"(o[4][0]), "+f"(o[4][1]),
        "+f"(o[4][2]), "+f"(o[4][3]), "+f"(o[5][0]), "+f"(o[5][1]), "+f"(o[5][2]), "+f"(o[5][3]),
        "+f"(o[6][0]), "+f"(o[6][1]), "+f"(o[6][2]), "+f"(o[6][3]), "+f"(o[7][0]), "+f"(o[7][1]),
        "+f"(o[7][2]), "+f"(o[7][3]), "+f"(o[8][0]), "+f"(o[8][1]), "+f"(o[8][2]), "+f"(o[8][3]),
        "+f"(o[9][0]), "+f"(o[9][1]), "+f"(o[9][2]), "+f"(o[9][3]), "+f"(o[10][0]), "+f"(o[10][1]),
        "+f"(o[10][2]), "+f"(o[10][3]), "+f"(o[11][0]), "+f"(o[11][1]), "+f"(o[11][2]), "+f"(o[11][3]),
        "+f"(o[12][0]), "+f"(o[12][1]), "+f"(o[12][2]), "+f"(o[12][3]), "+f"(o[13][0]), "+f"(o[13][1]),
        "+f"(o[13][2]), "+f"(o[13][3]), "+f"(o[14][0]), "+f"(o[14][1]), "+f"(o[14][2]), "+f"(o[14][3]),
        "+f"(o[15][0]), "+f"(o[15][1]), "+f"(o[15][2]), "+f"(o[15][3]), "+f"(last[0]), "+f"(last[1]),
        "+f"(last[2]), "+f"(last[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor_of(b)));
}

}  // namespace turboquant::kernels::cuda::many
