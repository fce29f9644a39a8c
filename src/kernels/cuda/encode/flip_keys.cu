// SPDX-License-Identifier: Apache-2.0
// Rule 5a behind the prefill kernel, which has coded all keys but pivots without it: each one's levels once
// more, and its codes moved. Keys whose centre is the mean of such a page's are encoded anew. Bound by
// instructions, see docs/encode.md.
#include <algorithm>

#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/flip_errors.cuh"
#include "kernels/cuda/encode/flip_moves.cuh"
#include "kernels/cuda/encode/launch_pages.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kQuarters = kPageTokens / kWarpVectors;

// Slot `slot` of the head, by one thread.
__device__ inline void make_flip_task(const EncodeCall& call, std::int64_t slot, int head, FlipTask& task) {
  const EncodeArgs& a = call.args;
  const Part& part = task.part;
  task.exists = find_slot_alone(call, slot, task.part) && !(part.follows() && part.previous_in_call);
  if (!task.exists) return;
  task.page = page_of(a, part, part.page, head);
  task.keys = static_cast<const std::uint16_t*>(a.keys.data) + row_at(a.keys, part.row - part.begin, head);
  Part next;
  task.followed = find_part(a.sequences, part.sequence, part.page + 1, next) && next.follows();
}

// The list's keys, a quarter of a page at a time: each 8th one is a warp's.
template <DType kType>
__device__ inline void flip_list(const EncodeCall& call, int count, int head, uint2 magnitudes,
                                 FlipShared& shared) {
  const PageFormat& format = call.args.pages.format;
  FlipWarp& own = shared.own();
  const int lane = this_thread() & 31, q = lane % 4;
  int at = this_thread() / 32;
  const auto find = [&] {
    for (; at < kQuarters * count; at += kFlipWarps) {
      const FlipTask& task = shared.tasks[at / kQuarters];
      const int first = kWarpVectors * (at % kQuarters);
      if (task.exists && task.part.begin < first + kWarpVectors && task.part.end > first) return;
    }
  };
  const auto fetch_rows = [&] {
    if (at >= kQuarters * count) return;
    const FlipTask& task = shared.tasks[at / kQuarters];
    fetch(task.keys, call.args.keys.token_stride, call.args.basis.key_signs + head * kPrefillDim, task.part,
          kWarpVectors * (at % kQuarters) + (this_thread() & 31) / 4, 8, own.input);
  };
  find();
  fetch_rows();
  while (at < kQuarters * count) {
    const FlipTask& task = shared.tasks[at / kQuarters];
    const int quarter = at % kQuarters, first = kWarpVectors * quarter;
    const FlipScale scale = prepare_errors<kType>(call, task, quarter, magnitudes, shared, [&] {
      at += kFlipWarps;
      find();
      fetch_rows();
    });
#pragma unroll 1
    for (int key = 0; key < kWarpVectors; key += kRoundKeys) {
      move_codes(key, magnitudes, shared, own);
      const int mine = key + lane / 4;
      if (own.ratio[mine] != 0.0f)
        store_chunk(*reinterpret_cast<const uint4*>(&own.codes[mine][4 * q]), format.k_bits, first + mine, q,
                    task.page);
    }
    const float root = square_root(divide_normal(__uint2float_rn(scale.has_codes ? scale.sum_n : 1u),
                                                 __uint2float_rn(own.squares[lane % kWarpVectors])));
    if (scale.has_codes && lane < kWarpVectors)
      reinterpret_cast<std::uint16_t*>(task.page +
                                       format.k_scales_offset())[core::scale_index(first + lane)] =
          static_cast<std::uint16_t>(half_bits_clamped(__fmul_rn(scale.unit, root)) | scale.reference);
    __syncwarp();
  }
}

// Keys that wait for those of the list's pages, by the whole block, whose warps are done with their memory.
static_assert(kFlipThreads == 32 * kPageWarps);
static_assert(plan_of({kPrefillDim, 4, 4}, kPrefillDim, false).bytes(kPrefillDim) <=
              static_cast<int>(sizeof(FlipShared::warps)));
__device__ inline void encode_followers(const EncodeCall& call, int count, int head, const BlockPlan& plan,
                                        FlipShared& shared) {
  const Block block = carve_block<kPrefillDim / 32>(reinterpret_cast<unsigned char*>(shared.warps), plan);
  for (int i = 0; i < count; ++i) {
    const FlipTask& task = shared.tasks[i];
    if (!task.exists || !task.followed) continue;
    Part part = task.part;
    while (find_part(call.args.sequences, part.sequence, part.page + 1, part) && part.follows()) {
      __syncthreads();
      encode_part<true, kPrefillDim / 32>(call, part, true, head, plan, block);
    }
  }
}

// A block takes a run of the call's (head, slot), head by head.
template <DType kType>
__global__ void __launch_bounds__(kFlipThreads, 1)
    flip_keys(const __grid_constant__ EncodeCall call, const BlockPlan plan, const std::int64_t slots) {
  extern __shared__ __align__(128) unsigned char bytes[];
  auto& shared = *reinterpret_cast<FlipShared*>(bytes);
  const int thread = this_thread();
  const std::int64_t count = slots * call.args.pages.kv_heads;
  const uint2 magnitudes = flip_magnitudes(call.key_coder);
  if (thread < kSidePairs) shared.zeros[thread] = 0;
  if (thread < kPrefillDim) shared.rows[kNoRow][thread] = shared.shifted[kNoRow][thread] = 0.0f;
  if (thread < 8)
    shared.magnitudes[thread] =
        static_cast<float>((thread < 4 ? magnitudes.x : magnitudes.y) >> (8 * (thread % 4)) & 255u);
  wait_for_previous_kernel();
  let_next_kernel_start();

  std::int64_t at = count * blockIdx.x / gridDim.x;
  const std::int64_t end = count * (blockIdx.x + 1) / gridDim.x;
  int loaded = -1;
  while (at < end) {
    const int head = static_cast<int>(at / slots);
    const std::int64_t slot = at % slots;
    const int tasks =
        static_cast<int>(std::min<std::int64_t>(std::min<std::int64_t>(slots - slot, end - at), kFlipTasks));
    if (head != loaded)
      load_metric(call.args.basis.key_metric + std::int64_t{head} * kPrefillDim * kPrefillDim, shared);
    loaded = head;
    if (thread < tasks) make_flip_task(call, slot + thread, head, shared.tasks[thread]);
    __syncthreads();
    flip_list<kType>(call, tasks, head, magnitudes, shared);
    __syncthreads();
    encode_followers(call, tasks, head, plan, shared);
    __syncthreads();
    at += tasks;
  }
}

}  // namespace

bool flip_keys_serve(const DeviceLimits& limits) {
  return static_cast<std::size_t>(limits.shared_bytes) >= sizeof(FlipShared);
}

Status launch_flip_keys(const EncodeCall& call, std::int64_t slots, const DeviceLimits& limits,
                        const Context& context) {
  const BlockPlan plan = plan_of(call.args.pages.format, kPrefillDim, false);
  const auto blocks =
      static_cast<unsigned>(std::min<std::int64_t>(slots * call.args.pages.kv_heads, limits.sm_count));
  const Launch how{"encode", dim3(blocks), dim3(kFlipThreads), sizeof(FlipShared), true};
  return launch(how, context,
                call.args.keys.dtype == DType::kBF16 ? &flip_keys<DType::kBF16> : &flip_keys<DType::kF16>,
                call, plan, slots);
}

}  // namespace turboquant::kernels::cuda
