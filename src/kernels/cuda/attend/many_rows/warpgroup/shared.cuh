// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/warpgroup/layout.cuh"
#include "kernels/cuda/attend/many_rows/work.cuh"
#include "kernels/cuda/attend/ptx.cuh"

// What the warpgroups of a CTA leave each other, and when.
namespace turboquant::kernels::cuda::many {

// Beside a tile.
struct alignas(16) TileFacts {
  float centred[kPageTokens];  // by row: 1 where the key's reference is the centre
  float centre_step;           // of half a centre, as tiles hold half of a key
  float key_unit, value_unit;  // of a raw tile: raw_units()
};
struct alignas(16) TileNotes {  // of tile n in [n % 4]
  std::uint32_t not_finite[2];  // 64 bits by token: values that are NaN or infinite
  std::uint32_t largest[2];     // of a raw tile: the bits of the largest |key|, |value|
};

struct WarpgroupShared {
  using L = WarpgroupLayout;
  // The phase of a barrier's tile n ends when ...
  std::uint64_t made[L::kStages];   // ... the tile is in shared memory
  std::uint64_t used[L::kStages];   // ... every consumer is done with it
  std::uint64_t copied[L::kSlots];  // ... the packed page has arrived
  TileNotes notes[4];
  TileFacts facts[L::kStages];
  float row_scale[L::kRows];
  int row_token[L::kRows];

  __device__ std::uint8_t* base() { return reinterpret_cast<std::uint8_t*>(this); }
  __device__ std::uint8_t* queries() { return base() + L::kQueries; }
  __device__ std::uint8_t* keys(int stage) { return base() + L::kTiles + stage * L::kTileBytes; }
  __device__ std::uint8_t* values(int stage) { return keys(stage) + L::kValues; }
  __device__ std::uint8_t* packed(int slot) { return base() + L::kPacked + slot * L::kPackedBytes; }
};
static_assert(sizeof(WarpgroupShared) <= WarpgroupLayout::kQueries);

// Tile n of a ring of kCount: its place, and the parity of its phase.
template <int kCount>
struct Ring {
  int at = 0;
  std::uint32_t parity = 0;
  __device__ void next() {
    if (++at == kCount) at = 0, parity ^= 1;
  }
};

// A barrier of `threads` threads that are whole warps; 0 is __syncthreads()'s.
__device__ inline void named_barrier(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
constexpr int kProducerBarrier = 1, kConsumerBarrier = 2;  // and 3

}  // namespace turboquant::kernels::cuda::many
