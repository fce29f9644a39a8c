// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/layout.h"
#include "kernels/cuda/encode/curve.h"
#include "kernels/cuda/encode/exact.cuh"
#include "kernels/cuda/overlap.cuh"
#include "kernels/cuda/vectors.cuh"
#include "turboquant/attention.h"

// What every encode kernel knows: its arguments, which tokens are a block's, when it may write.
namespace turboquant::kernels::cuda {

inline constexpr int kCentreTokens = 16, kMeanSlots = 16;  // the constants of kernels/encode_rules.h
inline constexpr float kLargest = 0x1p112f;
inline constexpr std::uint32_t kNanScale = 0x7e00;
inline constexpr std::uint32_t kReferenceIsZero = 0x8000;

struct EncodeCall {
  EncodeArgs args;
  float rotation_scale;  // fp32(1 / sqrt(d))
  float centre_scale;    // fp32(sqrt(d))
  Coder key_coder, value_coder;
  bool slot_is_row;  // see find_slot()
};

__device__ inline bool is_finite(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

// core::float_to_half_clamped; a NaN is 0x7e00 (rule 7).
__device__ inline std::uint32_t half_bits_clamped(float x) {
  const std::uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u;
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7e00u;
  const std::uint32_t half = __half_as_ushort(__float2half_rn(x));
  return (half & 0x7fffu) == 0x7c00u && is_finite(x) ? sign | 0x7bffu : half;
}
__device__ inline float float_of_half(std::uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// max |a|, |b|; NaN if one is.
__device__ inline float larger_or_nan(float a, float b) {
  const std::uint32_t x = __float_as_uint(a) & 0x7fffffffu, y = __float_as_uint(b) & 0x7fffffffu;
  return __uint_as_float(max(x, y));
}
// 1 / 2^n.
__device__ inline float one_over_power(float power) {
  return __uint_as_float((254u << 23) - __float_as_uint(power));
}
// Rule 2: a token's weight in a mean next to the least factor of the page: 2^-6, so that 64 tokens' sum is
// fp16.
__device__ inline float weight_of(float factor, float least) {
  return __fmul_rn(0x1p-6f, __fmul_rn(least, one_over_power(factor)));
}
// Rule 2: a centre's step as fp16 bits, and its inverse.
__device__ inline std::uint32_t centre_step_bits(float largest) {
  return half_bits_clamped(__fmul_rn(largest, 1.0f / 127.0f));
}
__device__ inline float inverse_of(float step) {
  return step > 0.0f ? divide_normal(1.0f, step) : 0.0f;
}
// Rule 2: a coordinate of a centre in steps, as pages store it.
__device__ inline int steps_in(float c, float inverse_step) {
  return static_cast<int>(fminf(fmaxf(rintf(__fmul_rn(c, inverse_step)), -127.0f), 127.0f));
}
// Rule 4: a coordinate of the reference, to be rounded to fp16.
__device__ inline float centre_at(float step, float n, float factor) {
  return fminf(fmaxf(__fmul_rn(__fmul_rn(step, n), factor), -65504.0f), 65504.0f);
}
// Rule 1: by what power of two a vector whose largest size is `most` < kLargest is rotated.
__device__ inline float factor_of(float most, int head_dim) {
  const int exponent = static_cast<int>(__float_as_uint(most) >> 23);
  const int above = 127 + 15 - (32 - __clz(head_dim - 1));
  if (exponent < 27 || (exponent >= 127 - 12 && exponent < above)) return 1.0f;
  return __uint_as_float(static_cast<std::uint32_t>(above + 126 - exponent) << 23);
}

// How a vector was rotated: as H (factor signs * x); or it has no codes.
struct Rotated {
  float factor;
  bool finite;
};

// The call's counted tokens in one page of one sequence.
struct Part {
  int sequence;
  std::int64_t page;        // index in the sequence's row of the page table
  std::int64_t row;         // of slot `begin` in keys and values
  std::int64_t start;       // the sequence's
  std::int64_t new_length;  // of the sequence after the call
  int begin, end;           // slots
  bool opens;               // by this call
  bool has_previous;        // the sequence has an earlier page with counted positions
  bool previous_in_call;    // and this call writes into it

  __device__ int tokens() const { return end - begin; }
  __device__ std::int64_t position(int slot) const { return page * kPageTokens + slot; }
  __device__ bool has_own_centre() const {
    return tokens() >= kCentreTokens || (tokens() >= 2 && !has_previous);
  }
  // Rule 2a, where there is a metric: its own mean is moved for one of its keys.
  __device__ bool moves_centre() const { return opens && has_own_centre(); }
  // Its centre comes from the page before, which must have been written.
  __device__ bool follows() const { return opens && has_previous && tokens() < kCentreTokens; }
  __device__ int previous_begin() const {
    const std::int64_t first = start - (page - 1) * kPageTokens;
    return first > 0 ? static_cast<int>(first) : 0;
  }
};

// Page `page` of sequence i; false if the call has no counted token there.
__device__ inline bool find_part(const Sequences& sequences, int i, std::int64_t page, Part& out) {
  const std::int64_t length = sequences.lengths[i], start = start_of(sequences, i);
  const std::int64_t first_row = sequences.token_starts[i];
  const std::int64_t end = length + sequences.token_starts[i + 1] - first_row;
  const std::int64_t page_begin = page * kPageTokens, page_end = page_begin + kPageTokens;
  const std::int64_t counted = start > page_begin ? start : page_begin;
  const std::int64_t from = length > counted ? length : counted, to = end < page_end ? end : page_end;
  if (from >= to) return false;
  out.sequence = i;
  out.page = page;
  out.row = first_row + from - length;
  out.start = start;
  out.new_length = end;
  out.begin = static_cast<int>(from - page_begin);
  out.end = static_cast<int>(to - page_begin);
  out.opens = from == counted;
  out.has_previous = start < page_begin;
  out.previous_in_call = out.has_previous && length < page_begin;
  return true;
}

// Page index `page` of the part's sequence, KV head `head`. Args: EncodeArgs, or what has its members.
template <class Args>
__device__ inline std::uint8_t* page_of(const Args& a, const Part& part, std::int64_t page, int head) {
  return page_of(a.pages, a.sequences, part.sequence, static_cast<int>(page), head,
                 static_cast<std::int64_t>(a.pages.format.page_bytes()));
}

// Blocks do not know lengths when they are launched. n tokens touch at most (n + 126) / 64 pages and at most
// n, so sequence i owns the slots from S_i on, S_i = (token_starts[i] + 126 i) / 64 or, with slot_is_row,
// token_starts[i]; block `slot` works on page slot - S_i of those that the call touches, if it touches so
// many. The host launches S_count blocks, the smaller of the two.
inline constexpr std::int64_t kSlotSlack = 2 * (kPageTokens - 1);

__device__ inline std::int64_t first_slot(const EncodeCall& call, int i) {
  const std::int64_t row = call.args.sequences.token_starts[i];
  return call.slot_is_row ? row : (row + kSlotSlack * i) / kPageTokens;
}

__device__ inline bool find_part_of_slot(const EncodeCall& call, int sequence, std::int64_t slot, Part& out) {
  const Sequences& sequences = call.args.sequences;
  const std::int64_t first_page = sequences.lengths[sequence] > start_of(sequences, sequence)
                                      ? sequences.lengths[sequence] / kPageTokens
                                      : start_of(sequences, sequence) / kPageTokens;
  return find_part(sequences, sequence, first_page + slot - first_slot(call, sequence), out);
}
// A whole warp calls it: each round divides the candidates by 32.
__device__ inline bool find_slot(const EncodeCall& call, std::int64_t slot, Part& out) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  int first = 0, candidates = call.args.sequences.count;  // first .. first + candidates - 1
  while (candidates > 1) {
    const int step = (candidates + 31) / 32, mine = lane * step;
    const bool reached = mine < candidates && first_slot(call, first + mine) <= slot;
    const int last = __popc(__ballot_sync(~0u, reached)) - 1;
    first += last * step;
    candidates = candidates - last * step < step ? candidates - last * step : step;
  }
  return find_part_of_slot(call, first, slot, out);
}
// The same by one thread.
__device__ inline bool find_slot_alone(const EncodeCall& call, std::int64_t slot, Part& out) {
  int first = 0, end = call.args.sequences.count;
  while (end - first > 1) {
    const int middle = first + (end - first) / 2;
    (first_slot(call, middle) <= slot ? first : end) = middle;
  }
  return find_part_of_slot(call, first, slot, out);
}

// The fringe's vectors of position p, [head_dim] keys then [head_dim] values; null: it holds none.
struct FringeSlots {
  std::uint16_t *first, *recent;
};
template <class Args>
__device__ inline FringeSlots fringe_slots(const Args& a, const Part& part, int head, std::int64_t position) {
  const Fringe& fringe = a.fringe;
  FringeSlots out{nullptr, nullptr};
  if (fringe.data == nullptr) return out;
  const std::int64_t slots = fringe.first + fringe.recent, vector = 2 * a.pages.format.head_dim;
  std::uint16_t* base =
      fringe.data + (static_cast<std::int64_t>(part.sequence) * a.pages.kv_heads + head) * slots * vector;
  if (position - part.start < fringe.first) out.first = base + (position - part.start) * vector;
  if (fringe.recent > 0 && position >= part.new_length - fringe.recent)
    out.recent = base + (fringe.first + static_cast<int>(position) % fringe.recent) * vector;
  return out;
}

}  // namespace turboquant::kernels::cuda
