// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/schedule.cuh"
#include "kernels/cuda/encode/code.cuh"
#include "kernels/cuda/encode/pack.cuh"

// The call's own tokens, one a sequence, into pages and fringe: what encode would do after this launch, with
// the same code and so the same bytes. A CTA's append warps do it beside the others, so that nothing waits
// for the microseconds that a vector takes. Of what this launch reads an append changes one thing only: the
// new token takes the fringe's oldest slot. So the CTA that reads this slot stores the token, and its vectors
// of 16 bits wait in shared memory until the CTA's streams have ended. Codes may share bytes with tokens that
// are read, but leave their bits as they are.
namespace turboquant::kernels::cuda::few_rows {

constexpr Coder coder_of(int bits, bool is_key) {
  return is_key ? make_coder(core::key_table(bits), key_curves(bits))
                : make_coder(core::value_table(bits), value_curves(bits));
}
__constant__ const Coder kCoders[2][3] = {{coder_of(2, true), coder_of(3, true), coder_of(4, true)},
                                          {coder_of(2, false), coder_of(3, false), coder_of(4, false)}};

// Shared memory of an append warp.
template <int kDim>
struct AppendArea {
  static constexpr int kN = 32 * coordinates_per_lane(kDim);
  static constexpr int kScratchBytes = (16 + 2 * kN + 4) * 4 + kN;
  struct Vector {
    FringeSlots to;  // where it goes when nobody reads there any more
    std::uint16_t halves[kDim];
  };
  static constexpr int kCallBytes = (static_cast<int>(sizeof(EncodeCall)) + 15) / 16 * 16;
  static constexpr int bytes(int vectors) {
    return kScratchBytes + kCallBytes + vectors * static_cast<int>(sizeof(Vector));
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
  // As a parameter of the kernel, all launches would take longer for its 500 bytes.
  __device__ EncodeCall& call() const { return *reinterpret_cast<EncodeCall*>(data + kScratchBytes); }
  __device__ Vector& vector(int i) const {
    return reinterpret_cast<Vector*>(data + kScratchBytes + kCallBytes)[i];
  }

  __device__ void make_call(const Params& p) const {
    EncodeCall& out = call();
    if (lane_id() == 0) {
      out.args.pages = p.a.pages;
      out.args.basis = p.a.basis;
      out.args.fringe = p.a.fringe;
      out.args.sequences = p.a.sequences;
      out.args.keys = p.a.keys;
      out.args.values = p.a.values;
      out.rotation_scale = p.out_unit;
      out.centre_scale = __fsqrt_rn(static_cast<float>(kDim));
    }
    const int* coders[2] = {reinterpret_cast<const int*>(&kCoders[0][p.a.pages.format.k_bits - 2]),
                            reinterpret_cast<const int*>(&kCoders[1][p.a.pages.format.v_bits - 2])};
    for (int i = lane_id(); i < static_cast<int>(sizeof(Coder) / 4); i += 32) {
      reinterpret_cast<int*>(&out.key_coder)[i] = coders[0][i];
      reinterpret_cast<int*>(&out.value_coder)[i] = coders[1][i];
    }
    __syncwarp();
  }
};

// One token's key or value. Codes are stored at once, what the fringe gets is kept. The code is short rather
// than fast: it is in every kernel that appends, and is fetched as it runs.
template <int kDim>
__device__ __forceinline__ void append_vector(AppendArea<kDim> area, int sequence, int kv_head, bool is_key,
                                              int place) {
  constexpr int C = coordinates_per_lane(kDim);
  const EncodeCall& call = area.call();
  const Sequences& sequences = call.args.sequences;
  auto& kept = area.vector(place);
  if (lane_id() == 0) kept.to = {nullptr, nullptr};
  __syncwarp();
  cuda::Part part;  // of a page, not a sum
  if (!find_part(sequences, sequence, sequences.lengths[sequence] / kPageTokens, part)) return;
  PageFormat format = call.args.pages.format;
  format.head_dim = kDim;
  const int bits = is_key ? format.k_bits : format.v_bits, slot = part.begin;
  std::uint8_t* page = page_of(call.args, part, part.page, kv_head);
  const Target target{page + (is_key ? format.k_codes_offset() : format.v_codes_offset()),
                      page + (is_key ? format.k_scales_offset() : format.v_scales_offset())};
  const Block block = area.block();
  float x[C];
  load_signed(call, part, is_key, kv_head, slot, x);
  auto* codes = reinterpret_cast<std::uint8_t*>(block.scratch);
  {
    float y[C];
    const Rotated scaled = rotate_to_half<C, kDim>(call, x, block.scratch, y);
    if (is_key) prepare_given_centre<C, 8>(call, format, part, kv_head, block);
    const Coded<C> coded = code_vector<false>(call, is_key, kv_head, scaled, y, block);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < C; ++j) codes[lane_id() * C + j] = static_cast<std::uint8_t>(coded.codes[j]);
    if (part.opens) {
      zero_16(block.group, target.codes, 8 * kDim * bits);
      zero_16(block.group, target.scales, 2 * kPageTokens);
      if (is_key) store_centre(page, format, block);
    }
    __syncwarp();
    if (lane_id() == 0) store_scale(target, slot, coded.scale);
  }
  if (is_key) {
    pack_key(codes, kDim, bits, slot, target.codes);
  } else {
#pragma unroll 1
    for (int e = lane_id(); e < kDim; e += 32) pack_value(codes[e], kDim, bits, slot, e, target.codes);
  }
  FringeSlots to = fringe_slots(call.args, part, kv_head, part.position(slot));
  if (to.first == nullptr && to.recent == nullptr) return;
  __syncwarp();
  rotate_exactly<C, kDim>(call, block.scratch, x);
  if (!is_key && to.first != nullptr) to.first += kDim;
  if (!is_key && to.recent != nullptr) to.recent += kDim;
  if (lane_id() == 0) kept.to = to;
  if (lane_id() * C < kDim) {
#pragma unroll
    for (int j = 0; j < C; ++j) kept.halves[lane_id() * C + j] = fringe_half(call, x[j]);
  }
  __syncwarp();
}

// Into the fringe.
template <int kDim>
__device__ inline void store_kept(const AppendArea<kDim>& area, int count) {
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

inline constexpr int kKeptVectors = 8;  // of a CTA, while its streams read
template <class S>
constexpr int append_warp_bytes() {
  if constexpr (S::kAppendWarps == 0) return 0;
  else return AppendArea<S::kDim>::bytes(kKeptVectors / S::kAppendWarps);
}
template <class S>
constexpr int append_bytes() {
  return S::kAppendWarps * append_warp_bytes<S>();
}

// A warp has read all that it reads of pages and fringe: said by warps of streams, waited for by append
// warps.
template <class S>
__device__ __forceinline__ void say_read() {
  asm volatile("bar.arrive 6, %0;" ::"n"(32 * (kWarps + S::kAppendWarps)) : "memory");
}
template <class S>
__device__ __forceinline__ void wait_for_reads() {
  asm volatile("bar.sync 6, %0;" ::"n"(32 * (kWarps + S::kAppendWarps)) : "memory");
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

// All that an append warp does: vector v, a sequence's key or value, is for warp v (mod kAppendWarps).
// shared: of all append warps.
template <class S>
__device__ __forceinline__ void append_tokens(const Params& p, const int* sums, int kv_head, int begin,
                                              int end, std::uint8_t* shared) {
  const int first = uniform(static_cast<int>(threadIdx.x >> 5)) - kWarps;
  const AppendArea<S::kDim> area{shared + first * append_warp_bytes<S>()};
  const auto sequence_of_vector = [&](int v) { return appended_sequence<S>(p, sums, begin, end, v / 2); };
  int i = sequence_of_vector(first), kept = 0;
  if (i >= 0) area.make_call(p);
  bool read = false;
  if (p.a.settled) wait_for_previous_kernel();
#pragma unroll 1
  for (int v = first;; v += S::kAppendWarps) {
    if (i < 0 || kept == kKeptVectors / S::kAppendWarps) {
      if (!read) wait_for_reads<S>();
      read = true;
      store_kept<S::kDim>(area, kept);
      kept = 0;
    }
    if (i < 0) break;
    append_vector<S::kDim>(area, i, kv_head, v % 2 == 0, kept++);
    i = sequence_of_vector(v + S::kAppendWarps);
  }
}

}  // namespace turboquant::kernels::cuda::few_rows
