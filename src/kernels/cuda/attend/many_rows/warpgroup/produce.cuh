// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/expand.cuh"
#include "kernels/cuda/attend/many_rows/warpgroup/raw.cuh"

// The warpgroup that makes tiles: pages are copied two ahead by the copy engine and expanded, the fringe's
// and the call's own tokens are loaded and rounded.
namespace turboquant::kernels::cuda::many {

// Copies the split's pages in order; used by one thread. The page table is read one further ahead.
struct PageCopies {
  using L = WarpgroupLayout;
  const std::int32_t* entries;  // of the next page
  const std::uint8_t* pages;    // of the KV head
  std::int64_t pitch;           // bytes from pool page to pool page
  std::uint32_t bytes;          // of a page, up to its centre's step
  int left;                     // pages that are still to be copied
  std::int32_t entry;

  __device__ PageCopies(const AttendArgs& a, const PageConstants& constants, const Work& w, int count)
      : entries(a.sequences.page_table + std::int64_t{w.sequence} * a.sequences.max_pages + w.page_begin +
                w.begin),
        pages(a.pages.data + constants.bytes * w.head),
        pitch(constants.bytes * a.pages.kv_heads),
        bytes(static_cast<std::uint32_t>(constants.centre + L::kDim + 16)),
        left(count),
        entry(left > 0 ? *entries : 0) {}
  __device__ void copy(std::uint8_t* to, std::uint64_t& barrier) {
    if (left <= 0) return;
    const std::uint32_t at = shared_address(&barrier);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(pages + entry * pitch), "r"(bytes), "r"(at)
        : "memory");
    ++entries;
    if (--left > 0) entry = *entries;
  }
};

// The centre as integers, which fp16 holds exactly, in the order of a row of keys.
__device__ inline void expand_centre(const Crew& crew, const std::uint8_t* centre, std::uint8_t* keys,
                                     float& step) {
  using L = WarpgroupLayout;
  const int x = 2 * crew.thread;
  if (x < L::kDim) {
    const std::uint32_t two = *reinterpret_cast<const std::uint16_t*>(centre + stored_coordinate<L::kDim>(x));
    // x + 128 in the last bits of 1024 + ..
    const std::uint32_t biased = __byte_perm(two ^ 0x8080u, 0x64646464u, 0x4140);
    *reinterpret_cast<std::uint32_t*>(keys + L::key_at(L::kCentreRow, x >> 3) + 2 * (x & 7)) =
        half2_bits(__hsub2(half2_of(biased), half2_of(0x64806480u)));
  } else if (x == L::kDim) {
    step = 0.5f * __half2float(*reinterpret_cast<const __half*>(centre + L::kDim));
  }
}

// What no tile changes: seven rows of keys and the ones.
__device__ inline void fill_constant_rows(const Crew& crew, WarpgroupShared& shared) {
  using L = WarpgroupLayout;
  for (int stage = 0; stage < L::kStages; ++stage) {
    for (int index = crew.thread; index < 8 * 16; index += crew.threads)
      *reinterpret_cast<uint4*>(shared.keys(stage) + L::key_at(L::kCentreRow + index / 16, index % 16)) = {};
    constexpr std::uint32_t kOnes = 0x3c003c00u;
    for (int index = crew.thread; index < 8 * 8; index += crew.threads)
      *reinterpret_cast<uint4*>(shared.values(stage) + L::value_at(L::kOnesRow + index / 8, index % 8)) = {
          kOnes, kOnes, kOnes, kOnes};
  }
}

// The thread's part of a tile is in shared memory, and products will see it.
__device__ inline void say_made(std::uint64_t& made) {
  shared_proxy_fence();
  barrier_arrive(shared_address(&made));
}

__device__ inline void produce(const AttendArgs& a, const PageConstants& constants, const Work& w,
                               WarpgroupShared& shared) {
  using L = WarpgroupLayout;
  const Crew crew{static_cast<int>(threadIdx.x) - L::kConsumers, L::kWarpgroupThreads};
  const int begin = w.begin, end = w.end, pages_end = end < w.pages_end ? end : w.pages_end;
  PageCopies copies(a, constants, w, pages_end - begin);
  if (crew.thread == 0)
    for (int slot = 0; slot < L::kSlots; ++slot) copies.copy(shared.packed(slot), shared.copied[slot]);
  const auto meet = [&] { named_barrier(kProducerBarrier, crew.threads); };
  fill_constant_rows(crew, shared);
  meet();

  // The ring's place of tile n = item - begin is free; so are the notes of n - 3, which become those of n
  // + 1. All producers meet before they note something there.
  static_assert(L::kStages == 3);
  Ring<L::kStages> ring;
  const auto take_place = [&](int item) {
    barrier_wait(shared_address(&shared.used[ring.at]), ring.parity ^ 1);
    if (crew.thread == 0) shared.notes[(item - begin + 1) & 3] = {};
  };
  int item = begin;
  Ring<L::kSlots> slots;
#pragma unroll 1
  for (; item < pages_end; ++item, ring.next(), slots.next()) {
    TileFacts& facts = shared.facts[ring.at];
    std::uint8_t *keys = shared.keys(ring.at), *packed = shared.packed(slots.at);
    take_place(item);
    barrier_wait(shared_address(&shared.copied[slots.at]), slots.parity);
    TileSpan tile{0, 0, kPageTokens};
    if (item < w.whole_begin || item >= w.whole_end) tile = tile_span(w, item);
    expand_keys<L>(crew, packed, constants, keys, facts.centred);
    expand_centre(crew, packed + constants.centre, keys, facts.centre_step);
    expand_values<L>(crew, packed, constants, tile.begin, tile.end, shared.values(ring.at),
                     shared.notes[(item - begin) & 3].not_finite);
    say_made(shared.made[ring.at]);
    meet();
    if (crew.thread == 0) copies.copy(packed, shared.copied[slots.at]);
  }
  if (item >= end) return;

  RawShare share;
  const auto load = [&] {
    const TileSpan tile = tile_span(w, item);
    share.load(crew.thread, raw_tokens<L::kDim>(a, w, item, tile), tile.end);
  };
  load();
#pragma unroll 1
  for (;;) {
    TileFacts& facts = shared.facts[ring.at];
    TileNotes& notes = shared.notes[(item - begin) & 3];
    share.measure(crew.thread, notes);
    take_place(item);
    meet();
    const RawUnits units = raw_units(item < w.recent_end, share.tokens.bf16, notes.largest);
    share.store(crew.thread, units, shared.keys(ring.at), shared.values(ring.at));
    if (crew.thread == 0) facts.key_unit = units.key, facts.value_unit = units.value;
    say_made(shared.made[ring.at]);
    if (++item >= end) return;
    ring.next();
    load();
  }
}

}  // namespace turboquant::kernels::cuda::many
