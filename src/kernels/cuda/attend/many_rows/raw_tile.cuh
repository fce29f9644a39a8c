// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/queries.cuh"

// Tiles of 16-bit tokens: the fringe's (rotated, as pages) and the call's own (raw). Both become fp16; where
// that could lose a bf16's range, a power of two for the whole tile takes them there.
namespace turboquant::kernels::cuda::many {

// Where the tokens of a tile lie; addresses in elements.
struct RawTokens {
  bool bf16;
  const std::uint16_t *keys, *values;  // of slot 0
  std::int64_t key_stride, value_stride;
  int wrap, wrap_by;  // from slot `wrap` on tokens lie wrap_by slots earlier: the recent fringe is a ring

  __device__ const std::uint16_t* key(int slot) const {
    return keys + (slot >= wrap ? slot - wrap_by : slot) * key_stride;
  }
  __device__ const std::uint16_t* value(int slot) const {
    return values + (slot >= wrap ? slot - wrap_by : slot) * value_stride;
  }
};

template <int D>
__device__ inline RawTokens raw_tokens(const AttendArgs& a, const Work& w, int item, const TileSpan& tile) {
  if (item >= w.recent_end) {
    const std::int64_t row = w.first_token + (tile.position - w.length);
    return {a.keys.dtype == DType::kBF16,
            static_cast<const std::uint16_t*>(a.keys.data) + row_at(a.keys, row, w.head),
            static_cast<const std::uint16_t*>(a.values.data) + row_at(a.values, row, w.head),
            a.keys.token_stride,
            a.values.token_stride,
            kPageTokens,
            0};
  }
  const std::int64_t slots = a.fringe.first + a.fringe.recent;
  const std::int64_t base = (std::int64_t{w.sequence} * a.pages.kv_heads + w.head) * slots;
  int slot = static_cast<int>(tile.position - w.start), wrap = kPageTokens;
  if (item >= w.first_end) {  // at most `recent` tokens: they wrap once
    const int in_ring = static_cast<int>(tile.position % a.fringe.recent);
    slot = a.fringe.first + in_ring, wrap = a.fringe.recent - in_ring;
  }
  const std::uint16_t* keys = a.fringe.data + (base + slot) * 2 * D;
  return {false, keys, keys + D, 2 * D, 2 * D, wrap, a.fringe.recent};
}

__device__ inline std::uint32_t largest_bits(const uint4& x) {
  const std::uint32_t m = __vmaxu2(__vmaxu2(x.x & 0x7fff7fffu, x.y & 0x7fff7fffu),
                                   __vmaxu2(x.z & 0x7fff7fffu, x.w & 0x7fff7fffu));
  return max(m & 0xffffu, m >> 16);
}

// largest[0], [1]: the bits of the largest |key| and |value| of the tokens that are finite, in the tokens'
// dtype; not_finite: the tokens whose values are not.
template <int D>
__device__ inline void measure_raw(const RawTokens& tokens, int count, std::uint32_t* largest,
                                   std::uint32_t* not_finite) {
  const std::uint32_t infinity = tokens.bf16 ? 0x7f80u : 0x7c00u;
  std::uint32_t keys = 0, values = 0;
  for (int index = static_cast<int>(threadIdx.x); index < count * (D / 8);
       index += static_cast<int>(blockDim.x)) {
    const int slot = index / (D / 8), e = 8 * (index - slot * (D / 8));
    const std::uint32_t k = largest_bits(*reinterpret_cast<const uint4*>(tokens.key(slot) + e)),
                        v = largest_bits(*reinterpret_cast<const uint4*>(tokens.value(slot) + e));
    if (k < infinity) keys = max(keys, k);
    if (v < infinity) values = max(values, v);
    else atomicOr(not_finite + (slot >> 5), 1u << (slot & 31));
  }
  keys = __reduce_max_sync(0xffffffffu, keys), values = __reduce_max_sync(0xffffffffu, values);
  if ((threadIdx.x & 31) == 0) {
    atomicMax(largest, keys);
    atomicMax(largest + 1, values);
  }
}

// Two elements times `unit` as fp16.
__device__ inline std::uint32_t rescale(bool bf16, std::uint32_t two, float unit) {
  return pack_half2(widen(bf16, two & 0xffffu) * unit, widen(bf16, two >> 16) * unit);
}

// Coordinates e .. e + 7 of a key are two pieces of a row of the tile.
template <int D>
__device__ inline void store_key(const uint4& x, int e, std::uint8_t* row) {
  if (e < D / 32 * 32) {
    *reinterpret_cast<uint2*>(row + 2 * stored_position<D>(e)) = {x.x, x.y};
    *reinterpret_cast<uint2*>(row + 2 * stored_position<D>(e + 4)) = {x.z, x.w};
  } else {
    *reinterpret_cast<uint4*>(row + 2 * e) = x;
  }
}

// The powers of two that a tile's keys and values are multiplied by. The fringe's are as pages: values
// halved.
struct RawUnits {
  float key, value;
};
__device__ inline RawUnits raw_units(bool rotated, bool bf16, const std::uint32_t* largest) {
  if (rotated) return {1.0f, 0.5f};
  const float key = widen(bf16, largest[0]);
  return {key > 32768.0f ? fp16_unit(key) : 1.0f, fp16_unit(widen(bf16, largest[1]))};
}

// The tokens into a tile; slots from `count` on become 0, and values that are not finite too.
template <int D>
__device__ inline void load_raw(const RawTokens& tokens, int count, const RawUnits& units, std::uint8_t* keys,
                                std::uint8_t* values, float* centred) {
  using L = Layout<D>;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const bool bf16 = tokens.bf16;
  for (int index = thread; index < kPageTokens * (D / 8); index += threads) {
    const int slot = index / (D / 8), e = 8 * (index - slot * (D / 8));
    uint4 x{};
    if (slot < count) x = *reinterpret_cast<const uint4*>(tokens.key(slot) + e);
    store_key<D>({rescale(bf16, x.x, units.key), rescale(bf16, x.y, units.key), rescale(bf16, x.z, units.key),
                  rescale(bf16, x.w, units.key)},
                 e, keys + tile_row(slot) * L::kPitch);
  }
  // 8 tokens of 4 coordinates; neighbouring threads write different chunks of one row.
  for (int index = thread; index < kPageTokens / 8 * (D / 4); index += threads) {
    const int chunk = index & 7, e = 4 * (index >> 3);
    std::uint32_t token[8][2];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int slot = tile_token(8 * chunk) + tile_token(k);
      uint2 two{};
      if (slot < count) two = *reinterpret_cast<const uint2*>(tokens.value(slot) + e);
      token[k][0] = two.x, token[k][1] = two.y;
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float x[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        x[k] = widen(bf16, c % 2 == 0 ? token[k][c / 2] & 0xffffu : token[k][c / 2] >> 16) * units.value;
        if (!isfinite(x[k])) x[k] = 0.0f;
      }
      *reinterpret_cast<uint4*>(values + (e + c) * L::kValuePitch + (chunk ^ value_swizzle(e + c)) * 16) = {
          pack_half2(x[0], x[1]), pack_half2(x[2], x[3]), pack_half2(x[4], x[5]), pack_half2(x[6], x[7])};
    }
  }
  if (thread < kPageTokens) centred[thread] = 0.0f;
}

}  // namespace turboquant::kernels::cuda::many
