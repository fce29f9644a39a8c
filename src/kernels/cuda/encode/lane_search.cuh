// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/exact.cuh"
#include "kernels/cuda/encode/lane_vector.cuh"
#include "kernels/cuda/encode/search.cuh"

// Rules 4 and 5 for a vector in each lane. Per coordinate: 3 instructions for the address of its row of
// errors, 1 load and 2 sums of the eight errors; then, once the scale is known, 3 for its code.
namespace turboquant::kernels::cuda {

// A level table as often as lanes need it to never meet in a bank: rows of errors eight times (shared memory
// serves eight lanes' 16 bytes at once), indices once a lane.
inline constexpr int kErrorCopies = 8;
struct LaneTable {
  uint4 errors[kLevelRows][kErrorCopies];
  std::uint32_t indices[kLevelRows][32];
};
// A row's two places are always as far apart: one offset leads from one to the other.
static_assert(sizeof(uint4) * kErrorCopies == sizeof(std::uint32_t) * 32);

__device__ inline void fill_table(const LevelTable& from, LaneTable& out) {
  for (int at = static_cast<int>(threadIdx.x); at < kLevelRows * 32; at += static_cast<int>(blockDim.x)) {
    const int row = at / 32, word = at % 32;
    reinterpret_cast<std::uint32_t*>(out.errors[row])[word] = from.errors[row].words[word % 4];
    out.indices[row][word] = from.indices[row];
  }
}

// min(x, 256) of x = |u| levels_per_unit, over 256: products with 2^-8 are exact.
__device__ inline float clamped_product(float u, float levels_per_unit_256) {
  float out;
  asm("mul.rn.sat.f32 %0, %1, %2;" : "=f"(out) : "f"(fabsf(u)), "f"(levels_per_unit_256));
  return out;
}
// floor(256 x): truncated to the unit of the subnormal numbers, which is the integer's bit pattern.
__device__ inline std::uint32_t level_of(float x) {
  return __float_as_uint(__fmul_rz(x, 0x1p-141f));
}

struct LaneCodes {
  std::uint32_t words[16];  // nibble codes: Order says of which coordinates
  float best_norm;          // B of the winning scale
};

// Which coordinate is nibble n of word w.
struct KeyOrder {  // word 4 q + i: nibble 4 h + n of chunk q
  static constexpr int coordinate(int w, int n) { return 32 * (w % 4) + 16 * (n / 4) + 4 * (w / 4) + n % 4; }
};
struct ValueOrder {  // in order
  static constexpr int coordinate(int w, int n) { return 8 * w + n; }
};

__device__ inline uint4 load_shared_16(std::uint32_t at) {
  uint4 out;
  asm("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
      : "r"(at));
  return out;
}
__device__ inline std::uint32_t load_shared_4(std::uint32_t at) {
  std::uint32_t out;
  asm("ld.shared.u32 %0, [%1];" : "=r"(out) : "r"(at));
  return out;
}

// u of norm `norm`, no coordinate -0. A vector whose norm is below kSmallestNorm or not finite gets nonsense.
template <class Order>
__device__ inline LaneCodes lane_search(const LaneVector& u, float norm, float levels_numerator,
                                        const LaneTable& table, const Magnitudes& magnitudes, int bits) {
  const std::uint32_t lane = threadIdx.x & 31;
  const float per_unit = __fmul_rn(divide_normal(levels_numerator, norm), 0x1p-8f);
  const auto errors_at =
      static_cast<std::uint32_t>(__cvta_generic_to_shared(&table.errors[0][lane % kErrorCopies]));
  const auto indices_at = static_cast<std::uint32_t>(__cvta_generic_to_shared(&table.indices[0][lane]));
  std::uint32_t at[kLaneDim], signs[16], errors[4] = {};
#pragma unroll
  for (int w = 0; w < 16; ++w) {
    std::uint32_t sign = 0;
#pragma unroll
    for (int n = 7; n >= 0; n -= 2) {  // two rows are one addition of three terms
      uint4 rows[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int e = Order::coordinate(w, n - k);
        sign = __funnelshift_l(__float_as_uint(u[e]), sign, 4);  // the sign bit tops nibble n at last
        at[e] = (level_of(clamped_product(u[e], per_unit)) << 7) + errors_at;
        rows[k] = load_shared_16(at[e]);
      }
      errors[0] += rows[0].x + rows[1].x;
      errors[1] += rows[0].y + rows[1].y;
      errors[2] += rows[0].z + rows[1].z;
      errors[3] += rows[0].w + rows[1].w;
    }
    signs[w] = sign;
  }
  // Its nibble of a word of indices lies in byte winner / 2, in the upper half of it where winner is odd.
  const std::uint32_t winner = least_of(errors), to_indices = indices_at - errors_at;
  const std::uint32_t two_bytes = winner / 2 * 0x11u + 0x40u, shift = 4 * (winner & 1);
  LaneCodes out;
  std::uint32_t squares = 0;
#pragma unroll
  for (int w = 0; w < 16; ++w) {
    const auto bytes = [&](int n) {  // of the nibbles n, n + 2, n + 4, n + 6
      std::uint32_t indices[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        indices[k] = load_shared_4(at[Order::coordinate(w, n + 2 * k)] + to_indices);
      return __byte_perm(__byte_perm(indices[0], indices[1], two_bytes),
                         __byte_perm(indices[2], indices[3], two_bytes), 0x5410);
    };
    const std::uint32_t word = (bytes(0) >> shift & 0x0f0f0f0fu) | (bytes(1) << (4 - shift) & 0xf0f0f0f0u);
    const std::uint32_t low = magnitudes_at(magnitudes, word), high = magnitudes_at(magnitudes, word >> 16);
    squares = __dp4a(high, high, __dp4a(low, low, squares));
    out.words[w] = word | (signs[w] & 0x88888888u) >> (4 - bits);
  }
  out.best_norm = static_cast<float>(static_cast<int>(squares));
  return out;
}

}  // namespace turboquant::kernels::cuda
