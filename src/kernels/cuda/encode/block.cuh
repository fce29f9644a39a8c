// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/search.cuh"

// What the threads of encode/pages.cuh share that work on the keys or the values of one Part.
namespace turboquant::kernels::cuda {

// Threads that work on one part together: a whole block, or some of its warps.
struct Group {
  int threads;
  int barrier;  // a hardware barrier of their own; 0: of the whole block
  int first;    // thread of the block

  __device__ void sync() const {
    if (threads == 32) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
  }
  __device__ int thread() const { return static_cast<int>(threadIdx.x) - first; }
};

// Shared memory of a group. n = 32 C, the padded head_dim.
//   direct: a call of few tokens a page. One warp a part, which writes to the page itself; little shared
//   memory and few threads, so that blocks find room beside those of a running attend.
struct BlockPlan {
  bool direct;
  int warps;
  int row_count;  // key vectors that are kept
  int image_bytes;

  __host__ __device__ int bytes(int n) const {
    return image_bytes + n * 4 * ((direct ? 0 : row_count) + 2 + warps) + n + kPageTokens + 16;
  }
};

struct Block {
  Group group;
  std::uint8_t* image;   // [image_bytes] code area, then 64 scales; unused where direct
  float* rows;           // [row_count][n] rotated keys; where direct, the scratch
  float* sums;           // [n]
  float* centre;         // [n] in fp32
  float* scratch;        // [warps][n], each warp its own
  std::int8_t* steps;    // [n] the centre as stored
  std::uint8_t* chosen;  // [64] of rows
  std::uint32_t* step;   // [1] fp16 bits of the centre's step
};

template <int C>
__device__ inline Block carve_block(unsigned char* shared, const BlockPlan& plan) {
  constexpr int n = 32 * C;
  Block block;
  block.group = {32 * plan.warps, 0, 0};
  unsigned char* at = shared;
  block.image = at;
  at += plan.image_bytes;
  block.rows = reinterpret_cast<float*>(at);
  block.sums = block.rows + (plan.direct ? 0 : plan.row_count) * n;
  block.centre = block.sums + n;
  block.scratch = block.centre + n;
  if (plan.direct) block.rows = block.scratch;  // a rotation is done with it when its key is kept
  at = reinterpret_cast<unsigned char*>(block.scratch + plan.warps * n);
  block.step = reinterpret_cast<std::uint32_t*>(at);
  block.chosen = at + 16;
  block.steps = reinterpret_cast<std::int8_t*>(block.chosen + kPageTokens);
  return block;
}

// Where a block's codes go: into its image, or into the page itself.
struct Target {
  std::uint8_t *codes, *scales;
};
__device__ inline void store_scale(const Target& target, int slot, std::uint32_t scale) {
  reinterpret_cast<std::uint16_t*>(target.scales)[core::scale_index(slot)] =
      static_cast<std::uint16_t>(scale);
}

__device__ inline void copy_16(const Group& group, std::uint8_t* to, const std::uint8_t* from, int bytes) {
  for (int at = 16 * group.thread(); at < bytes; at += 16 * group.threads)
    *reinterpret_cast<uint4*>(to + at) = *reinterpret_cast<const uint4*>(from + at);
}
__device__ inline void zero_16(const Group& group, std::uint8_t* to, int bytes) {
  for (int at = 16 * group.thread(); at < bytes; at += 16 * group.threads)
    *reinterpret_cast<uint4*>(to + at) = uint4{0, 0, 0, 0};
}

// Slot `slot`'s key or value, rotated, not yet over sqrt(d).
template <int C>
__device__ inline void load_rotated(const EncodeCall& call, const Part& part, bool is_key, int head, int slot,
                                    float* scratch, float (&y)[C]) {
  const EncodeArgs& a = call.args;
  const int d = a.pages.format.head_dim, first = lane_id() * C;
  const Rows& rows = is_key ? a.keys : a.values;
  load_warp_vector(rows.dtype, rows.data, row_at(rows, part.row + slot - part.begin, head), d, y);
  const float* signs = (is_key ? a.basis.key_signs : a.basis.value_signs) + head * d;
  if (first < d) {
#pragma unroll
    for (int j = 0; j < C; ++j) y[j] = __fmul_rn(y[j], signs[first + j]);
  }
  hadamard(y, a.basis.base, d / a.basis.base, a.basis.base_matrix, false, scratch);
}

// Rule 7: a rotated key or value.
template <int C>
__device__ inline void store_fringe(const FringeSlots& slots, bool is_key, const EncodeCall& call,
                                    const float (&y)[C]) {
  if (slots.first == nullptr && slots.recent == nullptr) return;
  const int first = lane_id() * C, d = call.args.pages.format.head_dim;
  if (first >= d) return;
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const auto half = static_cast<std::uint16_t>(half_bits_clamped(__fmul_rn(y[j], call.rotation_scale)));
    const int at = (is_key ? 0 : d) + first + j;
    if (slots.first != nullptr) slots.first[at] = half;
    if (slots.recent != nullptr) slots.recent[at] = half;
  }
}
template <int C>
__device__ inline void store_fringe(const EncodeCall& call, const Part& part, bool is_key, int head, int slot,
                                    const float (&y)[C]) {
  store_fringe(fringe_slots(call.args, part, head, part.position(slot)), is_key, call, y);
}

}  // namespace turboquant::kernels::cuda
