// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tables.h"
#include "kernels/cuda/attend/many_rows/layout.cuh"
#include "kernels/cuda/attend/many_rows/ptx.cuh"

// Codes of a page in shared memory to tiles of fp16: half of what they stand for (so that the largest scale
// does not overflow), scale * T / 128 with one rounding. A selector is a word whose nibble n is code n of a
// chunk of eight; two byte permutes look up the low and the high bytes of four fp16 at once.
namespace turboquant::kernels::cuda::many {

// T / 128 as fp16, its bytes apart: entry k of 8. Bit 3 of a selector's nibble negates.
struct HalfTable {
  std::uint32_t low[2], high[2];
};

constexpr std::uint32_t half_bits_of(int steps, int half_steps) {
  const int magnitude = steps < 0 ? -steps : steps;
  int exponent = 0;
  while (magnitude >> (exponent + 1) != 0) ++exponent;
  const std::uint32_t fraction = static_cast<std::uint32_t>(magnitude) << (10 - exponent) & 0x3ffu;
  const auto biased = static_cast<std::uint32_t>(exponent + 15 - 7 - (half_steps - 1));
  return (steps < 0 ? 0x8000u : 0u) | biased << 10 | fraction;
}
constexpr HalfTable make_half_table(const core::CodeTable& table) {
  HalfTable out{};
  for (int k = 0; k < 8; ++k) {
    const bool is_signed = table.bits < 4;
    const int magnitude = table.magnitudes[is_signed ? k % table.magnitude_count : k];
    const bool negative = is_signed && (k & table.magnitude_count) != 0;
    const std::uint32_t bits = half_bits_of(negative ? -magnitude : magnitude, table.half_steps);
    out.low[k / 4] |= (bits & 255) << k % 4 * 8;
    out.high[k / 4] |= bits >> 8 << k % 4 * 8;
  }
  return out;
}
static_assert(half_bits_of(128, 1) == 0x3c00 && half_bits_of(-96, 1) == 0xba00 &&
              half_bits_of(11, 2) == 0x2980);

// What a kernel needs of the page format, by value: constants are operands, not registers.
struct PageConstants {
  HalfTable keys, values;
  int k_bits, v_bits;
  int v_codes, k_scales, v_scales, centre;  // offsets
  std::int64_t bytes;
};
inline PageConstants page_constants(const PageFormat& format) {
  return {make_half_table(core::key_table(format.k_bits)),
          make_half_table(core::value_table(format.v_bits)),
          format.k_bits,
          format.v_bits,
          static_cast<int>(format.v_codes_offset()),
          static_cast<int>(format.k_scales_offset()),
          static_cast<int>(format.v_scales_offset()),
          static_cast<int>(format.centre_offset()),
          static_cast<std::int64_t>(format.page_bytes())};
}

// Codes 0..7 as four half2.
__device__ inline uint4 look_up(std::uint32_t selector, const HalfTable& table) {
  const std::uint32_t magnitudes = selector & 0x77777777u, upper = magnitudes >> 16, even = selector << 4;
  const std::uint32_t low0 = permute(table.low[0], table.low[1], magnitudes),
                      low1 = permute(table.low[0], table.low[1], upper);
  // A nibble's sign is bit 7 of its byte, or of the byte of selector << 4.
  const std::uint32_t high0 = permute(table.high[0], table.high[1], magnitudes) ^
                              (permute(even, selector, 0x5140) & 0x80808080u),
                      high1 = permute(table.high[0], table.high[1], upper) ^
                              (permute(even, selector, 0x7362) & 0x80808080u);
  return {permute(low0, high0, 0x5140), permute(low0, high0, 0x7362), permute(low1, high1, 0x5140),
          permute(low1, high1, 0x7362)};
}

__device__ inline std::uint32_t times(std::uint32_t x, std::uint32_t scale) {
  return half2_bits(__hmul2(half2_of(x), half2_of(scale)));
}

// ---- keys

// The selectors of chunk q of row t of a plane of W coordinates: [i] holds coordinates 32 i + 16 h + 4 q + n.
// format.h: "K codes".
template <int W>
struct KeyChunk {
  static constexpr int kCount = W >= 32 ? W / 32 : 1;
  std::uint32_t selector[kCount];
};

template <int W>
__device__ inline KeyChunk<W> read_4_bits(const std::uint8_t* plane, int t, int q) {
  const std::uint8_t* at = plane + t * (W / 2) + q * (W / 8);
  KeyChunk<W> out;
  if constexpr (W == 128) {
    const uint4 w = *reinterpret_cast<const uint4*>(at);
    out.selector[0] = w.x, out.selector[1] = w.y, out.selector[2] = w.z, out.selector[3] = w.w;
  } else if constexpr (W == 64) {
    const uint2 w = *reinterpret_cast<const uint2*>(at);
    out.selector[0] = w.x, out.selector[1] = w.y;
  } else if constexpr (W == 32) {
    out.selector[0] = *reinterpret_cast<const std::uint32_t*>(at);
  } else {
    out.selector[0] = *reinterpret_cast<const std::uint16_t*>(at);
  }
  return out;
}

template <int W>
__device__ inline KeyChunk<W> read_2_bits(const std::uint8_t* plane, int t, int q) {
  const std::uint8_t* at = plane + t * (W / 4) + q * (W / 16);
  KeyChunk<W> out;
  if constexpr (W == 128) {
    const uint2 w = *reinterpret_cast<const uint2*>(at);
    out.selector[0] = w.x & 0x33333333u, out.selector[1] = w.y & 0x33333333u;
    out.selector[2] = w.x >> 2 & 0x33333333u, out.selector[3] = w.y >> 2 & 0x33333333u;
  } else if constexpr (W == 64) {
    const std::uint32_t w = *reinterpret_cast<const std::uint32_t*>(at);
    out.selector[0] = w & 0x33333333u, out.selector[1] = w >> 2 & 0x33333333u;
  } else if constexpr (W == 32) {
    const std::uint32_t w = *reinterpret_cast<const std::uint16_t*>(at);
    out.selector[0] = (w & 0x3333u) | (w >> 2 & 0x3333u) << 16;
  } else {
    const std::uint32_t w = *at;
    out.selector[0] = (w & 0x33u) | (w >> 2 & 0x33u) << 8;
  }
  return out;
}

template <int W>
__device__ inline KeyChunk<W> read_1_bit(const std::uint8_t* plane, int t, int q) {
  const std::uint8_t* at = plane + t * (W / 8) + q * W / 32;
  KeyChunk<W> out;
  if constexpr (W == 128) {
    const std::uint32_t w = *reinterpret_cast<const std::uint32_t*>(at);
    for (int i = 0; i < 4; ++i) out.selector[i] = w >> i & 0x11111111u;
  } else if constexpr (W == 64) {
    const std::uint32_t w = *reinterpret_cast<const std::uint16_t*>(at);
    for (int i = 0; i < 2; ++i) out.selector[i] = (w >> 2 * i & 0x1111u) | (w >> (2 * i + 1) & 0x1111u) << 16;
  } else if constexpr (W == 32) {
    const std::uint32_t w = *at;
    out.selector[0] = (w & 0x11u) | (w >> 1 & 0x11u) << 8 | (w >> 2 & 0x11u) << 16 | (w >> 3 & 0x11u) << 24;
  } else {
    const std::uint32_t w = *at >> 4 * (q & 1) & 15u;
    out.selector[0] = (w & 1u) | (w & 2u) << 3 | (w & 4u) << 6 | (w & 8u) << 9;
  }
  return out;
}

// Coordinates First .. of row t, from the planes of format.h on.
template <int D, int First>
__device__ inline void read_key(const std::uint8_t* area, int bits, int t, int q,
                                std::uint32_t (&selectors)[(D + 31) / 32]) {
  if constexpr (First < D) {
    constexpr int kLeft = D - First;
    constexpr int W = kLeft >= 128 ? 128 : kLeft >= 64 ? 64 : kLeft >= 32 ? 32 : 16;
    KeyChunk<W> chunk;
    if (bits == 4) {
      chunk = read_4_bits<W>(area + First * 32, t, q);
    } else {
      chunk = read_2_bits<W>(area + First * 16, t, q);
      if (bits == 3) {
        const KeyChunk<W> signs = read_1_bit<W>(area + D * 16 + First * 8, t, q);
#pragma unroll
        for (int i = 0; i < KeyChunk<W>::kCount; ++i) chunk.selector[i] |= signs.selector[i] << 2;
      }
    }
#pragma unroll
    for (int i = 0; i < KeyChunk<W>::kCount; ++i) selectors[First / 32 + i] = chunk.selector[i];
    read_key<D, First + W>(area, bits, t, q, selectors);
  }
}

// A page's keys without their centre, and per row 1 where the reference is the centre. A NaN scale makes the
// token's scores NaN by itself; a slot that nobody may see is masked after the product.
template <class L>
__device__ inline void expand_keys(const Crew& crew, const std::uint8_t* page, const PageConstants& constants,
                                   std::uint8_t* keys, float* centred) {
  constexpr int D = L::kDim;
  // A thread's tokens lie 32 or 64 apart: tile_row(t + 32) = tile_row(t) + 32.
  const int t = crew.thread >> 2, q = crew.thread & 3, row = tile_row(t);
  const std::uint8_t* scales = page + constants.k_scales + 2 * (8 * (t & 7) + (t >> 3));
#pragma unroll L::kExpandUnroll
  for (int step = 0; step < kPageTokens; step += crew.threads / 4) {
    std::uint32_t selectors[(D + 31) / 32];
    read_key<D, 0>(page, constants.k_bits, t + step, q, selectors);
    const std::uint32_t stored = *reinterpret_cast<const std::uint16_t*>(scales + step / 4);
    const std::uint32_t scale = (stored & 0x7fffu) * 0x10001u;
#pragma unroll
    for (int i = 0; i < (D + 31) / 32; ++i) {
      uint4 x = look_up(selectors[i], constants.keys);
      x = {times(x.x, scale), times(x.y, scale), times(x.z, scale), times(x.w, scale)};
      if (32 * i + 32 <= D) *reinterpret_cast<uint4*>(keys + L::key_at(row + step, 4 * i + q)) = x;
      else
        *reinterpret_cast<uint2*>(keys + L::key_at(row + step, 4 * i + (q >> 1)) + 8 * (q & 1)) = {x.x, x.y};
    }
    if (q == 0) centred[row + step] = (stored & 0x8000u) != 0 ? 0.0f : 1.0f;
  }
}

// ---- values

// The scales of tokens 32 i + 8 n + 2 q + h as half2 (n, n + 1), [2 h + n / 2]. Those of slots outside
// [begin, end) and NaN ones become 0, so that no row's 0 weight meets a NaN; NaN ones are noted.
__device__ inline uint4 value_scales(const std::uint8_t* scales, int i, int q, int begin, int end,
                                     std::uint32_t* not_finite) {
  const uint2 even = *reinterpret_cast<const uint2*>(scales + 16 * (2 * q) + 8 * i),
              odd = *reinterpret_cast<const uint2*>(scales + 16 * (2 * q + 1) + 8 * i);
  std::uint32_t s[4] = {even.x, even.y, odd.x, odd.y};
  // Scales are not negative: a sum of them is NaN only where one of them is.
  const __half2 sum =
      __hadd2(__hadd2(half2_of(s[0]), half2_of(s[1])), __hadd2(half2_of(s[2]), half2_of(s[3])));
  if (begin > 0 || end < kPageTokens || !__hbeq2(sum, sum)) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int n = k & 3, h = k >> 2, t = 32 * i + 8 * n + 2 * q + h, shift = 16 * (n & 1);
      const std::uint32_t bits = s[2 * h + n / 2] >> shift & 0x7fffu;
      const bool seen = t >= begin && t < end, finite = bits < 0x7c00u;
      if (seen && !finite) atomicOr(not_finite + i, 1u << (t & 31));
      if (!seen || !finite) s[2 * h + n / 2] &= ~(0xffffu << shift);
    }
  }
  return {s[0], s[1], s[2], s[3]};
}

// The words of a lane's units of a block, for token half i: "V codes" of format.h.
template <int D, int Units>
__device__ inline void value_selectors(const std::uint8_t* area, int bits, int block, int lane, int i,
                                       std::uint32_t (&out)[Units]) {
  const int unit = 128 * block + lane * Units;
  const std::uint8_t* at = area + 4 * unit + (bits == 4 ? 16 * D * i : 0);
  if constexpr (Units == 4) {
    const uint4 w = *reinterpret_cast<const uint4*>(at);
    out[0] = w.x, out[1] = w.y, out[2] = w.z, out[3] = w.w;
  } else {
    const uint2 w = *reinterpret_cast<const uint2*>(at);
    out[0] = w.x, out[1] = w.y;
  }
  if (bits == 4) return;
#pragma unroll
  for (int j = 0; j < Units; ++j) out[j] = out[j] >> 2 * i & 0x33333333u;
  if (bits == 2) return;
  const auto* signs = reinterpret_cast<const std::uint16_t*>(area + 16 * D) + unit;
#pragma unroll
  for (int j = 0; j < Units; ++j) {
    const std::uint32_t w = signs[j];
    out[j] |= (w >> 2 * i & 0x1111u) << 2 | (w >> (2 * i + 1) & 0x1111u) << 18;
  }
}

template <class L, int Units>
__device__ inline void expand_value_block(const std::uint8_t* area, int bits, int block, int lane, int i,
                                          const HalfTable& table, const uint4& scale, std::uint8_t* values) {
  std::uint32_t selectors[Units];
  value_selectors<L::kDim, Units>(area, bits, block, lane, i, selectors);
  const int g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int j = 0; j < Units; ++j) {
    uint4 x = look_up(selectors[j], table);
    x = {times(x.x, scale.x), times(x.y, scale.y), times(x.z, scale.z), times(x.w, scale.w)};
    *reinterpret_cast<uint4*>(values + L::value_at(32 * block + 8 * j + g, 4 * i + q)) = x;
  }
}

template <class L>
__device__ inline void expand_values(const Crew& crew, const std::uint8_t* page,
                                     const PageConstants& constants, int begin, int end, std::uint8_t* values,
                                     std::uint32_t* not_finite) {
  constexpr int D = L::kDim;
  const int lane = L::value_lane(crew.thread & 31), warp = crew.thread >> 5;
  const int i = warp & 1;  // warps are a multiple of 2
  const uint4 scale = value_scales(page + constants.v_scales, i, lane & 3, begin, end, not_finite);
  const std::uint8_t* area = page + constants.v_codes;
#pragma unroll L::kExpandUnroll
  for (int block = warp >> 1; block < (D + 31) / 32; block += crew.threads / 64) {
    if (D % 32 == 0 || block < D / 32)
      expand_value_block<L, 4>(area, constants.v_bits, block, lane, i, constants.values, scale, values);
    else expand_value_block<L, 2>(area, constants.v_bits, block, lane, i, constants.values, scale, values);
  }
}

// ---- a thread's share of a page, in two halves, while its warp multiplies

// The words of one half, keys or values, of a thread of a CTA of 8 warps: read_..(), then expand() of each
// word wherever instructions are free.
template <int D>
struct Share {
  static constexpr bool kExists = D % 32 == 0;
  static constexpr int kWords = D <= 128 ? 4 : 8;
  std::uint32_t selectors[kWords];
  std::uint32_t scales[4];
  HalfTable table;
  std::uint32_t to;  // word x: to + (x % 4) * step + x / 4 * leap
  int step, leap, count;

  __device__ void none() {
    count = 0;
#pragma unroll
    for (int x = 0; x < kWords; ++x) selectors[x] = 0;
  }
  __device__ void read_keys(const std::uint8_t* page, const PageConstants& constants, std::uint8_t* keys,
                            float* centred) {
    const int thread = static_cast<int>(threadIdx.x), t = thread >> 2, q = thread & 3, row = tile_row(t);
    std::uint32_t codes[D / 32];
    read_key<D, 0>(page, constants.k_bits, t, q, codes);
#pragma unroll
    for (int x = 0; x < kWords; ++x) selectors[x] = x < D / 32 ? codes[x < D / 32 ? x : 0] : 0;
    const std::uint32_t stored =
        *reinterpret_cast<const std::uint16_t*>(page + constants.k_scales + 2 * (8 * (t & 7) + (t >> 3)));
#pragma unroll
    for (int k = 0; k < 4; ++k) scales[k] = (stored & 0x7fffu) * 0x10001u;
    if (q == 0) centred[row] = (stored & 0x8000u) != 0 ? 0.0f : 1.0f;
    table = constants.keys;
    to = shared_address(keys) + row * Layout<D>::kPitch + 16 * q;
    step = 64, leap = 256, count = D / 32;
  }
  __device__ void read_values(const std::uint8_t* page, const PageConstants& constants, int begin, int end,
                              std::uint8_t* values, std::uint32_t* not_finite) {
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5);
    const int g = lane >> 2, q = lane & 3, i = warp & 1, first = warp >> 1;
    const uint4 s = value_scales(page + constants.v_scales, i, q, begin, end, not_finite);
    scales[0] = s.x, scales[1] = s.y, scales[2] = s.z, scales[3] = s.w;
    count = 0;
#pragma unroll
    for (int x = 0; x < kWords; x += 4) {
      std::uint32_t codes[4] = {};
      if (first + x < D / 32) {
        value_selectors<D, 4>(page + constants.v_codes, constants.v_bits, first + x, lane, i, codes);
        count = x + 4;
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) selectors[x + k] = codes[k];
    }
    table = constants.values;
    to = shared_address(values) + (32 * first + g) * Layout<D>::kValuePitch +
         ((4 * i + q) ^ value_swizzle(g)) * 16;
    step = 8 * Layout<D>::kValuePitch, leap = 4 * 32 * Layout<D>::kValuePitch;
  }
  __device__ void expand(int x) const {
    const uint4 w = look_up(selectors[x], table);
    store_shared_if(
        x < count, to + x % 4 * step + x / 4 * leap,
        {times(w.x, scales[0]), times(w.y, scales[1]), times(w.z, scales[2]), times(w.w, scales[3])});
  }
};

}  // namespace turboquant::kernels::cuda::many
