// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/schedule.cuh"
#include "kernels/cuda/attend/ptx.cuh"
#include "kernels/cuda/encode/code.cuh"
#include "kernels/cuda/encode/pack.cuh"

// The call's own tokens, one a sequence, into pages and fringe: what encode would do after this launch, with
// the same code and so the same bytes. A CTA's append warps do it beside the others, so that nothing waits
// for the microseconds that a vector takes. Of what this launch reads an append changes one thing only: the
// new token takes the fringe's oldest slot. So the CTA that reads this slot stores the token, and its vectors
// of 16 bits wait in shared memory until the CTA's streams have ended. Codes may share bytes with tokens that
// are read, but leave their bits as they are.
namespace turboquant::kernels::cuda::few_rows {

// Both widths are 4, as has_append_kernel() says.
__constant__ const Coder kCoders[2] = {make_coder(core::key_table(4), key_curves(4)),
                                       make_coder(core::value_table(4), value_curves(4))};

// An EncodeCall of which nothing is copied: arguments are read where the kernel's parameters are.
template <int kDim>
struct AppendCall {
  struct Args {
    Pages pages;
    const Basis& basis;
    const Fringe& fringe;
    const Sequences& sequences;
    const Rows &keys, &values;
  };
  Args args;
  float rotation_scale, centre_scale;
  const Coder &key_coder, &value_coder;
};
template <int kDim>
__device__ __forceinline__ AppendCall<kDim> append_call(const Params& p) {
  return {{{{kDim, 4, 4}, p.a.pages.kv_heads, p.a.pages.count, p.a.pages.data},
           p.a.basis,
           p.a.fringe,
           p.a.sequences,
           p.a.keys,
           p.a.values},
          p.out_unit,
          p.centre_unit,
          kCoders[0],
          kCoders[1]};
}

// Shared memory of an append warp.
template <int kDim>
struct AppendArea {
  static constexpr int kN = 32 * coordinates_per_lane(kDim);
  static constexpr int kScratchBytes = (16 + 2 * kN + 4) * 4 + kN;
  struct Vector {
    FringeSlots to;  // where it goes when nobody reads there any more
    std::uint16_t halves[kDim];
  };
  static constexpr int bytes(int vectors) {
    return kScratchBytes + vectors * static_cast<int>(sizeof(Vector));
  }
  static_assert(kScratchBytes % 16 == 0 && bytes(1) % 16 == 0);

  std::uint8_t* data;

  __device__ Block block() const {
    Block out{};
    out.group = {32, 0, static_cast<int>(threadIdx.x & ~31u)};
    out.sums = reinterpret_cast<float*>(data);
    out.centre = out.sums + 16;
    out.scratch = out.centre + kN;
    out.step = reinterpret_cast<std::uint32_t*>(out.scratch + kN);
    out.steps = reinterpret_cast<std::int8_t*>(out.step + 4);
    return out;
  }
  __device__ Vector& vector(int i) const { return reinterpret_cast<Vector*>(data + kScratchBytes)[i]; }
};

// rotate_to_half() to y and rotate_exactly() of x, beside each other: alone, either waits for its shuffles.
template <int C, int kDim, class Call>
__device__ __forceinline__ Rotated rotate_twice(const Call& call, float* scratch, float (&x)[C],
                                                float (&y)[C]) {
  if constexpr (hadamard_base(kDim) != 1) {
    const Rotated scaled = rotate_to_half<C, kDim>(call, x, scratch, y);
    rotate_exactly<C, kDim>(call, scratch, x);
    return scaled;
  } else {
    const Rotated scaled = scale_of(call, x);
#pragma unroll
    for (int j = 0; j < C; ++j) y[j] = scaled.finite ? round_to_half(__fmul_rn(x[j], scaled.factor)) : 0.0f;
#pragma unroll
    for (int h = 1; h < C; h *= 2)
#pragma unroll
      for (int j = 0; j < C; ++j)
        if ((j & h) == 0) {
          const float u = x[j], v = x[j + h], s = y[j], t = y[j + h];
          x[j] = __fadd_rn(u, v);
          x[j + h] = __fsub_rn(u, v);
          y[j] = round_to_half(__fadd_rn(s, t));
          y[j + h] = round_to_half(__fsub_rn(s, t));
        }
#pragma unroll 1
    for (int apart = 1; apart * C < kDim; apart *= 2) {
      const bool high = (lane_id() & apart) != 0;
#pragma unroll
      for (int j = 0; j < C; ++j) {
        const float u = __shfl_xor_sync(~0u, x[j], apart), s = __shfl_xor_sync(~0u, y[j], apart);
        x[j] = __fadd_rn(high ? -x[j] : x[j], u);
        y[j] = round_to_half(__fadd_rn(high ? -y[j] : y[j], s));
      }
    }
    return scaled;
  }
}

// One token's key or value. Codes are stored at once, what the fringe gets is kept. The code is short rather
// than fast: it is in every kernel that appends, and is fetched as it runs.
template <int kDim>
__device__ __forceinline__ void append_vector(const Params& p, AppendArea<kDim> area, int sequence,
                                              int kv_head, bool is_key, int place) {
  constexpr int C = coordinates_per_lane(kDim);
  const AppendCall<kDim> call = append_call<kDim>(p);
  const Sequences& sequences = p.a.sequences;
  auto& kept = area.vector(place);
  cuda::Part part;  // of a page, not a sum
  if (!find_part(sequences, sequence, sequences.lengths[sequence] / kPageTokens, part)) {
    if (lane_id() == 0) kept.to = {nullptr, nullptr};
    return;
  }
  constexpr PageFormat format{kDim, 4, 4};
  const int slot = part.begin;
  std::uint8_t* page = page_of(call.args, part, part.page, kv_head);
  const Target target{page + (is_key ? format.k_codes_offset() : format.v_codes_offset()),
                      page + (is_key ? format.k_scales_offset() : format.v_scales_offset())};
  // All that pages and lengths say comes before the wait for who makes the token.
  FringeSlots to = fringe_slots(call.args, part, kv_head, part.position(slot));
  if (!is_key && to.first != nullptr) to.first += kDim;
  if (!is_key && to.recent != nullptr) to.recent += kDim;
  if (lane_id() == 0) kept.to = to;
  const Block block = area.block();
  if (is_key) prepare_given_centre<C, 8>(call, format, part, kv_head, block);
  if (p.a.settled) wait_for_previous_kernel();
  float x[C];
  load_signed(call, part, is_key, kv_head, slot, x);
  auto* codes = reinterpret_cast<std::uint8_t*>(block.scratch);
  {
    float y[C];
    const Rotated scaled = rotate_twice<C, kDim>(call, block.scratch, x, y);
    if (lane_id() * C < kDim) {
#pragma unroll
      for (int j = 0; j < C; ++j) kept.halves[lane_id() * C + j] = fringe_half(call, x[j]);
    }
    const Coded<C> coded = code_vector<true, kDim>(call, is_key, kv_head, scaled, y, block);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < C; ++j) codes[lane_id() * C + j] = static_cast<std::uint8_t>(coded.codes[j]);
    if (part.opens) {
      zero_16(block.group, target.codes, 8 * kDim * 4);
      zero_16(block.group, target.scales, 2 * kPageTokens);
      if (is_key) store_centre(page, format, block);
    }
    __syncwarp();
    if (lane_id() == 0) store_scale(target, slot, coded.scale);
  }
  if (is_key) {
    pack_key(codes, kDim, 4, slot, target.codes);
  } else {
#pragma unroll 1
    for (int e = lane_id(); e < kDim; e += 32) pack_value(codes[e], kDim, 4, slot, e, target.codes);
  }
}

// Into the fringe.
template <int kDim>
__device__ inline void store_kept(const AppendArea<kDim>& area, int count) {
  __syncwarp();
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const auto& vector = area.vector(i);
    const int lane = lane_id();
#pragma unroll 1
    for (int e = lane; e < kDim; e += 32) {
      if (vector.to.first != nullptr) vector.to.first[e] = vector.halves[e];
      if (vector.to.recent != nullptr) vector.to.recent[e] = vector.halves[e];
    }
  }
  __syncwarp();
}

inline constexpr int kKeptVectors = 4;  // of a warp, while the CTA's streams read
template <class S>
constexpr int append_warp_bytes() {
  return AppendArea<S::kDim>::bytes(kKeptVectors);
}

// A warp has read all that it reads of pages and fringe: said by warps of streams, waited for by append
// warps.
__device__ __forceinline__ void say_read() {
  asm volatile("bar.arrive 6, %0;" ::"r"(blockDim.x) : "memory");
}
__device__ __forceinline__ void wait_for_reads() {
  asm volatile("bar.sync 6, %0;" ::"r"(blockDim.x) : "memory");
}

// The unit of a sequence whose bytes hold the slot that its next token takes, or its last unit.
__device__ __forceinline__ int unit_of_slot(const Params& p, const Sequence& sequence) {
  if (sequence.pieces == 0 || p.a.fringe.recent == 0) return sequence.units() - 1;
  return sequence.pages + (p.a.fringe.first + sequence.length % p.a.fringe.recent) / kExactTokens;
}

// The n-th sequence whose token the CTA with units [begin, end) stores, or -1.
template <class S>
__device__ inline int appended_sequence(const Params& p, const int* sums, int begin, int end, int n) {
  const int count = p.a.sequences.count;
  int first = 0, high = count - 1;
#pragma unroll 1
  while (first < high) {
    const int middle = (first + high + 1) / 2;
    if (sums[middle] <= begin) first = middle;
    else high = middle - 1;
  }
#pragma unroll 1
  for (; first < count && sums[first] < end; first += 32) {
    const int i = first + static_cast<int>(threadIdx.x & 31);
    bool mine = false;
    if (i < count) {
      const int unit = sums[i] + unit_of_slot(p, sequence_of<S>(p, i));
      mine = unit >= begin && unit < end;
    }
    std::uint32_t all = __ballot_sync(~0u, mine);
    const int here = __popc(all);
    if (n < here) {
#pragma unroll 1
      for (; n > 0; --n) all &= all - 1;
      return first + __ffs(static_cast<int>(all)) - 1;
    }
    n -= here;
  }
  return -1;
}

// Brings a head's metric into the L2. The L1 may not have it: whoever made it may be the previous kernel.
template <int kDim>
__device__ __forceinline__ void prefetch_metric(const Params& p, int kv_head) {
  if (p.a.basis.key_metric == nullptr) return;
  const std::int8_t* metric = p.a.basis.key_metric + std::int64_t{kv_head} * kDim * kDim;
#pragma unroll 1
  for (int at = 128 * lane_id(); at < kDim * kDim; at += 128 * 32) prefetch_l2(metric + at);
}

// All that an append warp does: vector v, a sequence's key or value, is for warp v (mod the warps).
// shared: of all append warps.
template <class S>
__device__ __forceinline__ void append_tokens(const Params& p, const int* sums, int kv_head, int begin,
                                              int end, std::uint8_t* shared) {
  const int first = uniform(static_cast<int>(threadIdx.x >> 5)) - kWarps, warps = p.append_warps;
  const AppendArea<S::kDim> area{shared + first * append_warp_bytes<S>()};
  const auto sequence_of_vector = [&](int v) { return appended_sequence<S>(p, sums, begin, end, v / 2); };
  int i = sequence_of_vector(first), kept = 0;
  if (i >= 0 && first == 1) prefetch_metric<S::kDim>(p, kv_head);
  bool read = false;
#pragma unroll 1
  for (int v = first, n = 0;; v += warps, ++n) {
    if (i < 0 && v == first) return say_read();
    if (i < 0 || kept == kKeptVectors) {
      if (!read) wait_for_reads();
      read = true;
      store_kept<S::kDim>(area, kept);
      kept = 0;
    }
    if (i < 0) break;
    append_vector<S::kDim>(p, area, i, kv_head, (first + n) % 2 == 0, kept++);
    i = sequence_of_vector(v + warps);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
