// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/raw_tile.cuh"
#include "kernels/cuda/attend/many_rows/warpgroup/shared.cuh"

// A thread's share of a tile of 16-bit tokens, in registers from one tile to the next.
namespace turboquant::kernels::cuda::many {

struct RawShare {
  using L = WarpgroupLayout;
  static constexpr int kKeyPieces = kPageTokens * (L::kDim / 8) / L::kWarpgroupThreads;  // 8 coordinates
  static constexpr int kValuePieces =
      kPageTokens / 8 * (L::kDim / 4) / L::kWarpgroupThreads;  // 8 tokens of 4
  RawTokens tokens;
  uint4 keys[kKeyPieces];
  uint2 values[kValuePieces][8];

  static __device__ int key_slot(int thread, int piece) { return (thread >> 4) + 8 * piece; }
  static __device__ int key_element(int thread) { return 8 * (thread & 15); }
  static __device__ int chunk(int thread) { return thread & 7; }
  static __device__ int value_element(int thread, int piece) { return 4 * (thread >> 3) + 64 * piece; }
  static_assert(L::kDim == 128 && L::kWarpgroupThreads == 128);

  // Slots from `count` on are 0.
  __device__ void load(int thread, const RawTokens& from, int count) {
    tokens = from;
#pragma unroll
    for (int p = 0; p < kKeyPieces; ++p) {
      const int slot = key_slot(thread, p);
      keys[p] = {};
      if (slot < count) keys[p] = *reinterpret_cast<const uint4*>(tokens.key(slot) + key_element(thread));
    }
#pragma unroll
    for (int p = 0; p < kValuePieces; ++p)
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const int slot = chunk_slot(chunk(thread), k);
        values[p][k] = {};
        if (slot < count)
          values[p][k] = *reinterpret_cast<const uint2*>(tokens.value(slot) + value_element(thread, p));
      }
  }
  // As measure_raw().
  __device__ void measure(int thread, TileNotes& notes) const {
    const std::uint32_t infinity = tokens.bf16 ? 0x7f80u : 0x7c00u;
    std::uint32_t key = 0, value = 0;
#pragma unroll
    for (int p = 0; p < kKeyPieces; ++p) {
      const std::uint32_t k = largest_bits(keys[p]);
      if (k < infinity) key = max(key, k);
    }
#pragma unroll
    for (int p = 0; p < kValuePieces; ++p)
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const std::uint32_t v = largest_bits({values[p][k].x, values[p][k].y, 0, 0});
        const int slot = chunk_slot(chunk(thread), k);
        if (v < infinity) value = max(value, v);
        else atomicOr(notes.not_finite + (slot >> 5), 1u << (slot & 31));
      }
    note_largest(key, value, notes.largest);
  }
  __device__ void store(int thread, const RawUnits& units, std::uint8_t* key_tile,
                        std::uint8_t* value_tile) const {
#pragma unroll
    for (int p = 0; p < kKeyPieces; ++p)
      store_raw_key<L>(keys[p], tokens.bf16, units.key, key_slot(thread, p), key_element(thread), key_tile);
#pragma unroll
    for (int p = 0; p < kValuePieces; ++p)
      store_raw_values<L>(values[p], tokens.bf16, units.value, chunk(thread), value_element(thread, p),
                          value_tile);
  }
};

}  // namespace turboquant::kernels::cuda::many
