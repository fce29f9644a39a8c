// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/exact.cuh"
#include "kernels/cuda/encode/levels.cuh"
#include "kernels/cuda/quads.cuh"

// Rules 4 and 5 for the eight vectors of a warp (quads.cuh). What it costs per coordinate of a lane, in
// instructions: 3 for the address of its table row, 1 load, 5 byte permutes that turn four rows (a coordinate
// each) into ten columns (a search scale each, and the level), 1.6 tensor-core products that make A and B of
// the columns, and 3 for the code.
namespace turboquant::kernels::cuda {

// The level table eight times over, so that the eight lanes that shared memory serves at once never meet in
// a bank: row r of copy c is at 8 r + c.
inline constexpr int kTableCopies = 8;
using ReplicatedTable = uint4[kLevelRows * kTableCopies];

__device__ inline void fill_table(const LevelRow* rows, uint4* out) {
  for (int at = static_cast<int>(threadIdx.x); at < kLevelRows * kTableCopies;
       at += static_cast<int>(blockDim.x))
    out[at] = *reinterpret_cast<const uint4*>(rows + at / kTableCopies);
}

// d += a b: a 16 x 32 bytes, b 32 x 8 bytes; PTX mma.m16n8k32.
__device__ inline void multiply_bytes(std::uint32_t (&d)[4], std::uint32_t a0, std::uint32_t a1,
                                      std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                      std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// d += a b: a 16 x 16 bytes, b 16 x 8 bytes; PTX mma.m16n8k16.
__device__ inline void multiply_four_bytes(std::uint32_t (&d)[4], std::uint32_t a0, std::uint32_t a1,
                                           std::uint32_t b0) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(b0));
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

struct QuadScores {  // of a warp, in shared memory: A' = sum level T and B for each search scale
  alignas(16) std::uint32_t of_vector[8][20];
};

struct QuadCodes {
  std::uint32_t words[4];  // nibble codes: kOrder says of which coordinates
  float best_norm;         // B of the winning scale
};

// Which of a lane's coordinates fill word w, nibbles 0..3 and 4..7: first(w) + n and second(w) + n.
struct KeyOrder {  // chunk q of a row: word i is the lane's
  static constexpr int first(int w) { return 4 * w; }
  static constexpr int second(int w) { return 16 + 4 * w; }
};
struct ValueOrder {  // in order
  static constexpr int first(int w) { return 8 * w; }
  static constexpr int second(int w) { return 8 * w + 4; }
};

// Four rows of the level table into columns: the magnitudes of scale s = 0..8, and the levels.
__device__ inline void transpose_rows(const uint4 (&rows)[4], std::uint32_t (&columns)[10]) {
  const auto transpose = [](std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d,
                            std::uint32_t* out) {
    const std::uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    out[0] = __byte_perm(ab, cd, 0x5410);
    out[1] = __byte_perm(ab, cd, 0x7632);
  };
  const auto transpose_high = [](std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d,
                                 std::uint32_t* out) {
    const std::uint32_t ab = __byte_perm(a, b, 0x7362), cd = __byte_perm(c, d, 0x7362);
    out[0] = __byte_perm(ab, cd, 0x5410);
    out[1] = __byte_perm(ab, cd, 0x7632);
  };
  transpose(rows[0].x, rows[1].x, rows[2].x, rows[3].x, columns);
  transpose_high(rows[0].x, rows[1].x, rows[2].x, rows[3].x, columns + 2);
  transpose(rows[0].y, rows[1].y, rows[2].y, rows[3].y, columns + 4);
  transpose_high(rows[0].y, rows[1].y, rows[2].y, rows[3].y, columns + 6);
  transpose(rows[0].z, rows[1].z, rows[2].z, rows[3].z, columns + 8);
}

// Bytes 0 and 1: a's and b's sign, eight times. PTX prmt: bit 3 of a selector replicates a byte's sign.
__device__ inline std::uint32_t top_signs(float a, float b) {
  std::uint32_t out;
  asm("prmt.b32 %0, %1, %2, 0xfbfb;" : "=r"(out) : "r"(__float_as_uint(a)), "r"(__float_as_uint(b)));
  return out;
}

// The signs of eight coordinates as the top bits of a word's nibbles. No coordinate is -0.
__device__ inline std::uint32_t sign_nibbles(const float* first, const float* second) {
  const auto bytes = [](float a, float b, float c, float d) {
    return __byte_perm(top_signs(a, b), top_signs(c, d), 0x5410);
  };
  const std::uint32_t even = bytes(first[0], first[2], second[0], second[2]);
  const std::uint32_t odd = bytes(first[1], first[3], second[1], second[3]);
  return (even & 0x08080808u) | (odd & 0x80808080u);
}

// u of the warp's eight vectors, each of norm `norm`; `table` is this lane's copy of row 0. A vector whose
// norm is below kSmallestNorm or not finite gets nonsense. All lanes call it.
template <class Order>
__device__ inline QuadCodes quad_search(const float (&u)[kQuadLane], float norm, float levels_numerator,
                                        const uint4* table, int bits, QuadScores& scores) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, q = lane & 3;
  const float per_unit = __fmul_rn(divide_normal(levels_numerator, norm), 0x1p-8f);
  std::uint32_t products[core::kSearchScales][4] = {}, sums[4] = {};
  std::uint32_t indices[kQuadLane], signs[4];
  // A row of the table is a ready operand, whose bytes this one picks: column n of the sums gets byte n & 3
  // of its first word in rows 0..7 (T_0..T_3, twice), of its second in rows 8..15 (T_4..T_7 in columns 4..7),
  // and column 0 also T_8 in rows 0..7.
  const std::uint32_t pick0 = 1u << (8 * (g & 3)), pick1 = g == 0 ? 1u : 0u;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j0 = half == 0 ? Order::first(w) : Order::second(w);
      uint4 rows[4];
      std::uint32_t columns[10];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        rows[k] = table[level_of(clamped_product(u[j0 + k], per_unit)) * kTableCopies];
        indices[j0 + k] = rows[k].w;
      }
#pragma unroll
      for (int k = 0; k < 4; ++k)
        multiply_bytes(sums, rows[k].x, rows[k].y, rows[k].z, rows[k].w, pick0, pick1);
      transpose_rows(rows, columns);
      // Rows 0..7 and the columns are the vectors: the diagonal is sum T^2; rows 8..15: sum level T.
#pragma unroll
      for (int s = 0; s < core::kSearchScales; ++s)
        multiply_four_bytes(products[s], columns[s], columns[9], columns[s]);
    }
    signs[w] = sign_nibbles(u + Order::first(w), u + Order::second(w));
  }

  // The diagonal lies in one lane of each four: element (g & 1) of both rows.
  std::uint32_t* mine = scores.of_vector[g];
  if (q == g >> 1) {
    std::uint32_t pairs[2 * core::kSearchScales];
#pragma unroll
    for (int s = 0; s < core::kSearchScales; ++s) {
      pairs[2 * s] = (g & 1) != 0 ? products[s][3] : products[s][2];
      pairs[2 * s + 1] = (g & 1) != 0 ? products[s][1] : products[s][0];
    }
#pragma unroll
    for (int s = 0; s < core::kSearchScales; ++s)
      *reinterpret_cast<uint2*>(mine + 2 * s) = uint2{pairs[2 * s], pairs[2 * s + 1]};
  }
  const std::uint32_t first = __shfl_sync(~0u, sums[0], 4 * g + 2);  // column 4: T_0 alone
  const std::uint32_t sum8 = __shfl_sync(~0u, sums[0], 4 * g) - first;
  const std::uint32_t sum0 = q == 0 ? first : q == 1 ? sums[0] : sums[2];  // of scale 2 q
  const std::uint32_t sum1 = q < 2 ? sums[1] : sums[3];                    // of scale 2 q + 1
  __syncwarp();
  // Lane q scores scales 2 q and 2 q + 1; all of them score the ninth.
  const auto score = [](std::uint32_t with_level, std::uint32_t sum, std::uint32_t b) {
    const float a = static_cast<float>(static_cast<int>(2 * with_level + sum));
    return divide_normal(__fmul_rn(a, a), static_cast<float>(static_cast<int>(b)));
  };
  const uint4 two = *reinterpret_cast<const uint4*>(mine + 4 * q);
  const uint2 ninth = *reinterpret_cast<const uint2*>(mine + 16);
  float best = score(two.x, sum0, two.y);
  const float next = score(two.z, sum1, two.w);
  int winner = 2 * q;
  if (next > best) {
    best = next;
    winner = 2 * q + 1;
  }
#pragma unroll
  for (int apart = 1; apart < 4; apart *= 2) {
    const float other = __shfl_xor_sync(~0u, best, apart);
    const int others = __shfl_xor_sync(~0u, winner, apart);
    if (other > best || (other == best && others < winner)) {
      best = other;
      winner = others;
    }
  }
  if (score(ninth.x, sum8, ninth.y) > best) winner = 8;

  QuadCodes out;
  out.best_norm = static_cast<float>(static_cast<int>(mine[2 * winner + 1]));
  __syncwarp();  // before the next call overwrites the scores
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    std::uint32_t word = signs[w] >> (4 - bits);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const std::uint32_t index = indices[(n < 4 ? Order::first(w) : Order::second(w)) + n % 4];
      word |= __funnelshift_l(index, index, 4 * n - 3 * winner) & (7u << (4 * n));
    }
    out.words[w] = word;
  }
  return out;
}

}  // namespace turboquant::kernels::cuda
