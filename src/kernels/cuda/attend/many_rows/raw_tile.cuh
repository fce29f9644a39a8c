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

// Of a warp's lanes.
__device__ inline void note_largest(std::uint32_t key, std::uint32_t value, std::uint32_t* largest) {
  key = __reduce_max_sync(0xffffffffu, key), value = __reduce_max_sync(0xffffffffu, value);
  if ((threadIdx.x & 31) != 0) return;
  atomicMax(largest, key);
  atomicMax(largest + 1, value);
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
  note_largest(keys, values, largest);
}

// Two elements times `unit` as fp16.
__device__ inline std::uint32_t rescale(bool bf16, std::uint32_t two, float unit) {
  return pack_half2(widen(bf16, two & 0xffffu) * unit, widen(bf16, two >> 16) * unit);
}

// Coordinates e .. e + 7 of a key are two pieces of a row of the tile.
template <class L>
__device__ inline void store_key(const uint4& x, int e, std::uint8_t* keys, int row) {
  constexpr int D = L::kDim;
  if (e < D / 32 * 32) {
    const int low = stored_position<D>(e), high = stored_position<D>(e + 4);
    *reinterpret_cast<uint2*>(keys + L::key_at(row, low >> 3) + 2 * (low & 7)) = {x.x, x.y};
    *reinterpret_cast<uint2*>(keys + L::key_at(row, high >> 3) + 2 * (high & 7)) = {x.z, x.w};
  } else {
    *reinterpret_cast<uint4*>(keys + L::key_at(row, e >> 3)) = x;
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

// Coordinates e .. e + 7 of the key of `slot`.
template <class L>
__device__ inline void store_raw_key(const uint4& x, bool bf16, float unit, int slot, int e,
                                     std::uint8_t* keys) {
  store_key<L>({rescale(bf16, x.x, unit), rescale(bf16, x.y, unit), rescale(bf16, x.z, unit),
                rescale(bf16, x.w, unit)},
               e, keys, tile_row(slot));
}

// Coordinates e .. e + 3 of the values of the eight tokens of a chunk: token k is slot chunk_slot(chunk, k).
__device__ inline int chunk_slot(int chunk, int k) {
  return tile_token(8 * chunk) + tile_token(k);
}
template <class L>
__device__ inline void store_raw_values(const uint2 (&token)[8], bool bf16, float unit, int chunk, int e,
                                        std::uint8_t* values) {
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    float x[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const std::uint32_t two = c < 2 ? token[k].x : token[k].y;
      x[k] = widen(bf16, c % 2 == 0 ? two & 0xffffu : two >> 16) * unit;
      if (!isfinite(x[k])) x[k] = 0.0f;
    }
    *reinterpret_cast<uint4*>(values + L::value_at(e + c, chunk)) = {
        pack_half2(x[0], x[1]), pack_half2(x[2], x[3]), pack_half2(x[4], x[5]), pack_half2(x[6], x[7])};
  }
}

// The tokens into a tile; slots from `count` on become 0, and values that are not finite too.
template <class L>
__device__ inline void load_raw(const RawTokens& tokens, int count, const RawUnits& units, std::uint8_t* keys,
                                std::uint8_t* values, float* centred) {
  constexpr int D = L::kDim;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int index = thread; index < kPageTokens * (D / 8); index += threads) {
    const int slot = index / (D / 8), e = 8 * (index - slot * (D / 8));
    uint4 x{};
    if (slot < count) x = *reinterpret_cast<const uint4*>(tokens.key(slot) + e);
    store_raw_key<L>(x, tokens.bf16, units.key, slot, e, keys);
  }
  // 8 tokens of 4 coordinates; neighbouring threads write different chunks of one row.
  for (int index = thread; index < kPageTokens / 8 * (D / 4); index += threads) {
    const int chunk = index & 7, e = 4 * (index >> 3);
    uint2 token[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int slot = chunk_slot(chunk, k);
      token[k] = {};
      if (slot < count) token[k] = *reinterpret_cast<const uint2*>(tokens.value(slot) + e);
    }
    store_raw_values<L>(token, tokens.bf16, units.value, chunk, e, values);
  }
  if (thread < kPageTokens) centred[thread] = 0.0f;
}

}  // namespace turboquant::kernels::cuda::many
