// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/flip_shared.cuh"

// What rule 5a begins with, of 16 keys of a page by a warp: how far their levels are off their codes.
namespace turboquant::kernels::cuda {

// A lane's chunk of codes of one key, out of a page and into it: four words of nibbles.
__device__ inline uint4 load_chunk(const std::uint8_t* area, int bits, int token, int q) {
  if (bits == 4) return *reinterpret_cast<const uint4*>(area + 64 * token + 16 * q);
  const uint2 low = *reinterpret_cast<const uint2*>(area + 32 * token + 8 * q);
  uint4 out{low.x & 0x33333333u, low.y & 0x33333333u, low.x >> 2 & 0x33333333u, low.y >> 2 & 0x33333333u};
  if (bits == 2) {
    const auto spread = [](std::uint32_t w) { return (w & 0x11111111u) | (w & 0x22222222u) << 2; };
    return {spread(out.x), spread(out.y), spread(out.z), spread(out.w)};
  }
  const std::uint32_t top =
      *reinterpret_cast<const std::uint32_t*>(area + 16 * kPrefillDim + 16 * token + 4 * q);
  out.x |= (top & 0x11111111u) << 3;
  out.y |= (top >> 1 & 0x11111111u) << 3;
  out.z |= (top >> 2 & 0x11111111u) << 3;
  out.w |= (top >> 3 & 0x11111111u) << 3;
  return out;
}
__device__ inline void store_chunk(const uint4& codes, int bits, int token, int q, std::uint8_t* area) {
  if (bits == 4) {
    *reinterpret_cast<uint4*>(area + 64 * token + 16 * q) = codes;
    return;
  }
  const auto narrow = [bits](std::uint32_t w) {
    return bits == 3 ? w & 0x33333333u : (w & 0x11111111u) | (w >> 2 & 0x22222222u);
  };
  *reinterpret_cast<uint2*>(area + 32 * token + 8 * q) =
      uint2{narrow(codes.x) | narrow(codes.z) << 2, narrow(codes.y) | narrow(codes.w) << 2};
  if (bits == 3)
    *reinterpret_cast<std::uint32_t*>(area + 16 * kPrefillDim + 16 * token + 4 * q) =
        (codes.x >> 3 & 0x11111111u) | (codes.y >> 2 & 0x22222222u) | (codes.z >> 1 & 0x44444444u) |
        (codes.w & 0x88888888u);
}

// What a key's new scale is made of.
struct FlipScale {
  float unit;
  std::uint32_t sum_n, reference;
  bool has_codes;
};

// The lane's side of its fetched key, rotated.
template <DType kType>
__device__ inline Rotated load_key(const WarpInput& input, SideVector& y) {
  load_products<kType>(input, y);
  side_hadamard(y);
  Rotated out{1.0f, true};
  if (!__all_sync(~0u, is_unscaled(side_largest(y)))) out = rotate_scaled<kType>(input, y);
  __syncwarp();
  return out;
}

// Fetched rows to errors and ratios of the warp's keys; then the next rows are fetched. A pivot has its
// codes: it is left alone, and its mark taken away.
template <DType kType, class FetchNext>
__device__ inline FlipScale prepare_errors(const EncodeCall& call, const FlipTask& task, int quarter,
                                           uint2 magnitudes, FlipShared& shared,
                                           const FetchNext& fetch_next) {
  const PageFormat& format = call.args.pages.format;
  FlipWarp& own = shared.own();
  const int lane = this_thread() & 31, first = kWarpVectors * quarter;
  const int v = lane % kWarpVectors, token = first + v;
  const std::uint32_t old_scale =
      reinterpret_cast<const std::uint16_t*>(task.page + format.k_scales_offset())[core::scale_index(token)];
  const std::uint8_t* centre = task.page + format.centre_offset();
  const std::uint32_t step = *reinterpret_cast<const std::uint32_t*>(centre + kPrefillDim);
  const Stored stored{reinterpret_cast<const std::uint32_t*>(centre)[lane], step & 0xffffu};
  const int pivot = task.part.moves_centre() ? marked_pivot(step) : -1;
  uint4 chunks[2];
#pragma unroll
  for (int round = 0; round < 2; ++round)
    chunks[round] = load_chunk(task.page, format.k_bits, first + kRoundKeys * round + lane / 4, lane % 4);
#pragma unroll
  for (int round = 0; round < 2; ++round)
    *reinterpret_cast<uint4*>(&own.codes[kRoundKeys * round + lane / 4][4 * (lane % 4)]) = chunks[round];

  SideVector y;
  wait_for_fetch();
  Rotated scaled = load_key<kType>(own.input, y);
  fetch_next();
  float n[4];
  find_steps(stored, n);
  const Measure measure = take_centre(stored, n, call.centre_scale, own.centre);
  find_pairs(n, measure, own.centre);
  const bool present = token >= task.part.begin && token < task.part.end && token != pivot;
  const bool centred = present && scaled.finite && (old_scale & kReferenceIsZero) == 0;
  subtract_centre(y, centred, scaled.factor, measure, own.centre, shared.zeros);
  float m = side_largest(y);
  // As code_side() does it.
  if (!__all_sync(~0u, m >= 0x1p-7f)) {
#pragma unroll 1
    for (int turn = 0; turn < 2; ++turn) {
      const float by = m < 0x1p-7f ? 0x1p12f : 1.0f;
      const __half2 pair = __float2half2_rn(by);
#pragma unroll
      for (std::uint32_t& two : y) two = bits_of(__hmul2_rn(as_half2(two), pair));
      m *= by;
      scaled.factor *= by;
    }
  }
  if (token == pivot)  // all lanes have read it
    *reinterpret_cast<std::uint16_t*>(task.page + format.centre_step_offset() + 2) = 0;
  FlipScale out;
  out.has_codes = present && scaled.finite && m > 0.0f;
  out.reference = old_scale & kReferenceIsZero;
  const std::uint32_t levels_per_unit = bits_of(
      __half2half2(__float2half_rn(divide_normal(static_cast<float>(core::kMaxLevel), m > 0.0f ? m : 1.0f))));
  out.unit = __fmul_rn(__fmul_rn(__fmul_rn(m, one_over_power(scaled.factor)), call.rotation_scale),
                       call.key_coder.unit);

  std::uint32_t pairs[kSideWords][4], indices[kSideWords], sum_n = 0, sum_b = 0;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const uint2 two = *reinterpret_cast<const uint2*>(&own.codes[v][4 * q + 2 * this_side()]);
    indices[2 * q] = two.x & 0x77777777u;
    indices[2 * q + 1] = two.y & 0x77777777u;
  }
#pragma unroll
  for (int w = 0; w < kSideWords; ++w) {
#pragma unroll
    for (int k = 0; k < 4; ++k) pairs[w][k] = levels_of(y[KeyOrder::pair(w, k)], levels_per_unit);
    const std::uint32_t low = permute(pairs[w][0], pairs[w][1], 0x6240),
                        high = permute(pairs[w][2], pairs[w][3], 0x6240);
    sum_n = __dp4a(low, low, __dp4a(high, high, sum_n));
    const std::uint32_t low_t = permute(magnitudes.x, magnitudes.y, indices[w]),
                        high_t = permute(magnitudes.x, magnitudes.y, indices[w] >> 16);
    sum_b = __dp4a(low_t, low_t, __dp4a(high_t, high_t, sum_b));
  }
  out.sum_n = sum_n + other_side(sum_n);
  sum_b += other_side(sum_b);
  const float ratio =
      square_root(divide_normal(__uint2float_rn(out.has_codes ? out.sum_n : 1u), __uint2float_rn(sum_b)));
  if (this_side() == 0) own.ratio[v] = out.has_codes ? ratio : 0.0f;

  std::uint32_t s[8];  // 1024 + step as fp16 bits
#pragma unroll
  for (int k = 0; k < 8; ++k)
    s[k] = (__float_as_uint(__fadd_rn(__fmul_rn(ratio, shared.magnitudes[k]), 0x1p23f)) & 0x3ffu) + 0x6400u;
  std::uint32_t low[2], high[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t a = permute(s[4 * half], s[4 * half + 1], 0x5410),
                        b = permute(s[4 * half + 2], s[4 * half + 3], 0x5410);
    low[half] = permute(a, b, 0x6420);
    high[half] = permute(a, b, 0x7531);
  }
  const std::uint32_t keep = out.has_codes ? ~0u : 0u;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      std::uint32_t words[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int w = 2 * q + i;
        const std::uint32_t selector = h == 0 ? indices[w] : indices[w] >> 16;
        const std::uint32_t low_bytes = permute(low[0], low[1], selector),
                            high_bytes = permute(high[0], high[1], selector);
        std::uint32_t off[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const std::uint32_t step = permute(low_bytes, high_bytes, k == 0 ? 0x6240 : 0x7351);
          __half2 x = __hsub2_rn(as_half2(pairs[w][2 * h + k]), as_half2(step));
          x = __hmin2(__hmax2(x, as_half2(0xd7f0d7f0u)), as_half2(0x57f057f0u));  // 127
          const std::uint32_t sign = y[KeyOrder::pair(w, 2 * h + k)] & 0x80008000u;
          off[k] = bits_of(__hadd2_rn(as_half2(bits_of(x) ^ sign), as_half2(0x66006600u)));
        }
        words[q] = permute(off[0], off[1], 0x6240) & keep;
      }
      *reinterpret_cast<uint4*>(&own.errors[v][kSideDim * this_side() + 32 * i + 16 * h]) =
          uint4{words[0], words[1], words[2], words[3]};
    }
  __syncwarp();
  return out;
}

}  // namespace turboquant::kernels::cuda
