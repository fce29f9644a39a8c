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
//   memory and few threads, so that blocks find room beside those of a running attend. What values need is
//   their scratch.
struct BlockPlan {
  bool direct;
  int warps;
  int row_count;  // key vectors that are kept
  int image_bytes;

  __host__ __device__ constexpr int bytes(int n) const {  // of a group of keys; of values too, unless direct
    return image_bytes + n * 4 * ((direct ? 0 : row_count) + 5 + warps) + n + 5 * kPageTokens + 16;
  }
};

struct Block {
  Group group;
  std::uint8_t* image;   // [image_bytes] code area, then 64 scales; unused where direct
  float* rows;           // [row_count][n] rotated keys; where direct, the scratch
  float* sums;           // [4][n]
  float* centre;         // [n] before it is rounded
  float* scratch;        // [warps][n], each warp its own
  std::int8_t* steps;    // [n] the centre as stored
  float* factors;        // [64] of slots
  std::uint8_t* chosen;  // [64] of slots
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
  block.centre = block.sums + 4 * n;
  block.scratch = block.centre + n;
  if (plan.direct) block.rows = block.scratch;  // a rotation is done with it when its key is kept
  at = reinterpret_cast<unsigned char*>(block.scratch + plan.warps * n);
  block.step = reinterpret_cast<std::uint32_t*>(at);
  block.factors = reinterpret_cast<float*>(at + 16);
  block.chosen = at + 16 + 4 * kPageTokens;
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

// Slot `slot`'s key or value times its signs. Call, here and below: EncodeCall, or what has its members.
template <int C, class Call>
__device__ inline void load_signed(const Call& call, const Part& part, bool is_key, int head, int slot,
                                   float (&x)[C]) {
  const auto& a = call.args;
  const int d = a.pages.format.head_dim, first = lane_id() * C;
  const Rows& rows = is_key ? a.keys : a.values;
  load_warp_vector(rows.dtype, rows.data, row_at(rows, part.row + slot - part.begin, head), d, x);
  const float* signs = (is_key ? a.basis.key_signs : a.basis.value_signs) + head * d;
  if (first < d) {
#pragma unroll
    for (int j = 0; j < C; ++j) x[j] = __fmul_rn(x[j], signs[first + j]);
  }
}
// x <- H x. A kDim that is not 0 is the head_dim, for shorter code.
template <int C, int kDim, class Call, class Round>
__device__ inline void rotate_by(const Call& call, float* scratch, const Round& round, float (&x)[C]) {
  const auto& a = call.args;
  const int base = kDim == 0 ? a.basis.base : hadamard_base(kDim),
            d = kDim == 0 ? a.pages.format.head_dim : kDim;
  hadamard(x, base, d / base, a.basis.base_matrix, false, scratch, round);
}
// Rule 7's rotation.
template <int C, int kDim = 0, class Call>
__device__ inline void rotate_exactly(const Call& call, float* scratch, float (&x)[C]) {
  rotate_by<C, kDim>(call, scratch, Unrounded{}, x);
}
// Rule 1: how x will be rotated.
template <int C, class Call>
__device__ inline Rotated scale_of(const Call& call, const float (&x)[C]) {
  const float most = largest_of(x);
  const bool finite = most < kLargest;
  return {finite ? factor_of(most, call.args.pages.format.head_dim) : 1.0f, finite};
}
// y = H (factor x) in fp16 numbers; 0 of a vector that is not finite.
template <int C, int kDim = 0, class Call>
__device__ inline Rotated rotate_to_half(const Call& call, const float (&x)[C], float* scratch,
                                         float (&y)[C]) {
  const Rotated scaled = scale_of(call, x);
#pragma unroll
  for (int j = 0; j < C; ++j) y[j] = scaled.finite ? round_to_half(__fmul_rn(x[j], scaled.factor)) : 0.0f;
  rotate_by<C, kDim>(call, scratch, RoundedToHalf{}, y);
  return scaled;
}
template <int C>
__device__ inline Rotated load_rotated(const EncodeCall& call, const Part& part, bool is_key, int head,
                                       int slot, float* scratch, float (&y)[C]) {
  float x[C];
  load_signed(call, part, is_key, head, slot, x);
  return rotate_to_half(call, x, scratch, y);
}

// Rule 7 of an exactly rotated key or value.
template <class Call>
__device__ inline std::uint16_t fringe_half(const Call& call, float y) {
  return static_cast<std::uint16_t>(half_bits_clamped(__fmul_rn(y, call.rotation_scale)));
}
template <int C>
__device__ inline void store_fringe(const FringeSlots& slots, bool is_key, const EncodeCall& call,
                                    const float (&y)[C]) {
  if (slots.first == nullptr && slots.recent == nullptr) return;
  const int first = lane_id() * C, d = call.args.pages.format.head_dim;
  if (first >= d) return;
#pragma unroll
  for (int j = 0; j < C; ++j) {
    const std::uint16_t half = fringe_half(call, y[j]);
    const int at = (is_key ? 0 : d) + first + j;
    if (slots.first != nullptr) slots.first[at] = half;
    if (slots.recent != nullptr) slots.recent[at] = half;
  }
}
// The same of a token that may not be the fringe's.
template <int C>
__device__ inline void make_fringe(const EncodeCall& call, const Part& part, bool is_key, int head, int slot,
                                   float* scratch) {
  const FringeSlots slots = fringe_slots(call.args, part, head, part.position(slot));
  if (slots.first == nullptr && slots.recent == nullptr) return;
  float x[C];
  load_signed(call, part, is_key, head, slot, x);
  rotate_exactly(call, scratch, x);
  store_fringe(slots, is_key, call, x);
}

}  // namespace turboquant::kernels::cuda
