// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/schedule.cuh"
#include "kernels/cuda/attend/ptx.cuh"
#include "kernels/cuda/vectors.cuh"

// Pages and fringe pieces on their way into shared memory: a ring of slots a stream of warps, filled in the
// order of its units, so that no warp ever waits for another stream. From sm_90 on the copy engine moves a
// page as one bulk copy; before, the lanes of a warp copy 16 bytes at a time.
namespace turboquant::kernels::cuda::few_rows {

// Brings the page table into the L2, a line a thread: the first CTAs that start do it for all.
__device__ __forceinline__ void prefetch_page_table(const Params& p) {
  const Sequences& s = p.a.sequences;
  const std::int64_t cta = static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const std::int64_t entry = (cta * blockDim.x + threadIdx.x) * 32;
  if (entry < static_cast<std::int64_t>(s.count) * s.max_pages) prefetch_l2(s.page_table + entry);
}

template <class S>
struct Ring {
#if __CUDA_ARCH__ >= 900
  static constexpr int kFillers = 1;  // threads that arrive at a slot's barrier when they have filled it
#else
  static constexpr int kFillers = 32;
#endif

  const Params& p;
  const int* sums;
  int kv_head, begin, end;        // the stream's units
  std::uint8_t* slots;            // [stages][slot_bytes]
  std::uint32_t full, empty;      // [stages] barriers: has arrived; has been read by all sharing warps
  bool issues;                    // this warp fills the ring
  int issued = 0, next_slot = 0;  // of the warp that fills it
  int used = 0;                   // units that this warp has read
  int slot = 0;                   // to be read next
  std::uint32_t parity = 0;
  // Lane i, of unit begin + (issued rounded down to 32) + i: where it is copied from, and how much. 0:
  // nothing.
  const std::uint8_t* from = nullptr;
  int bytes = 0;

  __device__ int lane() const {
    return static_cast<int>(threadIdx.x & 31);
  }

  __device__ void init() {
    if (lane() < p.stages && issues) {
      barrier_init(full + static_cast<std::uint32_t>(lane()) * 8, kFillers);
      barrier_init(empty + static_cast<std::uint32_t>(lane()) * 8, S::kSharing);
    }
    barrier_init_fence();
  }

  // Looks 32 units up at once, a lane each.
  __device__ void look_up() {
    const int unit = begin + issued + lane();
    bytes = 0;
    if (unit >= end || !issues) return;
    Sequence sequence;
    const Segment segment = segment_of<S>(p, sums, unit, sequence);
    const int in_segment = unit - segment.begin, piece = in_segment - sequence.pages;
    const std::int64_t heads = p.a.pages.kv_heads;
    if (piece < 0) {
      const std::int64_t page =
          __ldg(p.a.sequences.page_table + static_cast<std::int64_t>(segment.i) * p.a.sequences.max_pages +
                sequence.page_begin + in_segment);
      from = p.a.pages.data + (page * heads + kv_head) * p.page_bytes;
      bytes = p.page_bytes;
    } else if (piece < sequence.pieces) {
      const int slots = p.a.fringe.first + p.a.fringe.recent, slot = piece * kExactTokens;
      from = reinterpret_cast<const std::uint8_t*>(p.a.fringe.data) +
             ((segment.i * heads + kv_head) * slots + slot) * 4 * S::kDim;
      bytes = min(kExactTokens, slots - slot) * 4 * S::kDim;
    }
  }

  // Starts the copy of the next unit, if there is one, into the slot after the last one filled.
  __device__ void issue() {
    if (!issues || begin + issued >= end) return;
    if (issued % 32 == 0 && issued > 0) look_up();
    const auto source = reinterpret_cast<const std::uint8_t*>(
        __shfl_sync(~0u, reinterpret_cast<std::uint64_t>(from), issued % 32));
    const int size = __shfl_sync(~0u, bytes, issued % 32);
    const std::uint32_t to = shared_address(slots + next_slot * p.slot_bytes);
    const std::uint32_t barrier = full + static_cast<std::uint32_t>(next_slot) * 8;
#if __CUDA_ARCH__ >= 900
    if (lane() == 0) {
      if (size > 0) bulk_copy(to, source, static_cast<std::uint32_t>(size), barrier, evict_first_policy());
      else barrier_arrive(barrier);
    }
#else
#pragma unroll 4
    for (int at = lane() * 16; at < size; at += 512)
      async_copy16(to + static_cast<std::uint32_t>(at), source + at);
    async_copy_arrive(barrier);
#endif
    ++issued;
    next_slot = next_slot + 1 == p.stages ? 0 : next_slot + 1;
  }

  // Brings the units behind the first one into the L2, about an eighth of the range: the previous kernel
  // still runs, and its last CTAs leave much of the bandwidth.
  __device__ void prefetch() const {
#if __CUDA_ARCH__ >= 900
    if (lane() > 0 && lane() <= min(p.prefetched, (end - begin + 4) / 8) && bytes > 0)
      bulk_prefetch_l2(from, static_cast<std::uint32_t>(bytes));
#endif
  }

  // Waits for the next unit's bytes.
  __device__ std::uint8_t* wait() {
    barrier_wait(full + static_cast<std::uint32_t>(slot) * 8, parity);
    return slots + slot * p.slot_bytes;
  }

  // The slot has been read: fill it again, if there is more. `written`: by the warp, too.
  __device__ void release(bool written) {
    if (begin + p.stages + used++ < end) {
      if (written) shared_proxy_fence();
      __syncwarp();
      if constexpr (S::kSharing > 1) {
        const std::uint32_t barrier = empty + static_cast<std::uint32_t>(slot) * 8;
        if (lane() == 0) barrier_arrive(barrier);
        if (issues) barrier_wait(barrier, parity);
      }
      issue();
    }
    if (++slot == p.stages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

}  // namespace turboquant::kernels::cuda::few_rows
