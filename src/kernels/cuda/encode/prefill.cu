// SPDX-License-Identifier: Apache-2.0
// encode of many tokens at head_dim 128 from 16-bit rows: the bytes of encode/pages.cuh, 32 vectors a warp.
// Bound by instructions and by shared memory, see docs/encode.md.
#include <algorithm>

#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/prefill_keys.cuh"
#include "kernels/cuda/encode/prefill_values.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

// Task `at` = (slot, head), head first, by one thread.
__device__ void make_task(const EncodeCall& call, std::int64_t at, std::int64_t count, PrefillTask& task,
                          PrefillTask& follower) {
  const EncodeArgs& a = call.args;
  task.exists = at < count && find_slot_alone(call, at / a.pages.kv_heads, task.part);
  if (!task.exists) return;
  const Part& part = task.part;
  task.head = static_cast<int>(at % a.pages.kv_heads);
  task.page = page_of(a, part, part.page, task.head);
  task.leads = !(part.follows() && part.previous_in_call);
  task.followed =
      find_part(a.sequences, part.sequence, part.page + 1, follower.part) && follower.part.follows();
  if (!task.followed) return;
  follower.head = task.head;
  follower.page = page_of(a, part, part.page + 1, task.head);
  follower.followed = false;  // it is not full
}

// Every pair of warps takes each fourth of the block's tasks.
template <DType kType>
__device__ void encode_all_keys(const EncodeCall& call, PrefillShared& shared) {
  constexpr int kPairs = kPrefillWarps / 2;
  const Pair pair = this_pair();
  PrefillKeys& keys = shared.keys[pair.number];
  int at = pair.number;
  const auto lead = [&]() -> const PrefillTask* {  // from `at` on
    while (at < kTasks && !(shared.tasks[at].exists && shared.tasks[at].leads)) at += kPairs;
    return at < kTasks ? shared.tasks + at : nullptr;
  };
  PrefillTurn& turn = shared.turns[threadIdx.x / 32];
  const PrefillTask* task = lead();
  if (task != nullptr) fetch_keys(call, *task, pair, keys);
  while (task != nullptr) {
    const PrefillTask* next = shared.followers + at;
    if (!task->followed) {
      at += kPairs;
      next = lead();
    }
    __syncwarp();
    turn = {task, next};
    __syncwarp();
    encode_keys<kType>(call, turn, shared.table, keys);
    task = turn.following();
  }
}

// Every warp takes each eighth.
template <DType kType>
__device__ void encode_all_values(const EncodeCall& call, PrefillShared& shared) {
  int at = static_cast<int>(threadIdx.x / 32);
  PrefillValues& values = shared.values[at];
  PrefillTurn& turn = shared.turns[at];
  const auto existing = [&]() -> const PrefillTask* {
    while (at < kTasks && !shared.tasks[at].exists) at += kPrefillWarps;
    return at < kTasks ? shared.tasks + at : nullptr;
  };
  const PrefillTask* task = existing();
  if (task != nullptr) fetch_values(call, *task, 0, values);
  while (task != nullptr) {
    at += kPrefillWarps;
    const PrefillTask* next = existing();
    __syncwarp();
    turn = {task, next};
    __syncwarp();
    encode_values<kType>(call, turn, shared.table, values);
    task = turn.following();
  }
}

// Blocks take each gridDim.x-th task.
template <DType kType>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    encode_prefill(const __grid_constant__ EncodeCall call, const std::int64_t slots) {
  extern __shared__ __align__(128) unsigned char bytes[];
  auto& shared = *reinterpret_cast<PrefillShared*>(bytes);
  const PageFormat& format = call.args.pages.format;
  const std::int64_t count = slots * call.args.pages.kv_heads;
  const int thread = static_cast<int>(threadIdx.x);
  bool waited = false;
  for (std::int64_t first = blockIdx.x; first < count; first += std::int64_t{kTasks} * gridDim.x) {
    fill_table(kLevelTables[level_table_index(format.k_bits, true)], shared.table);
    if (!waited) wait_for_previous_kernel();
    waited = true;
    if (thread < kTasks)
      make_task(call, first + std::int64_t{thread} * gridDim.x, count, shared.tasks[thread],
                shared.followers[thread]);
    __syncthreads();
    encode_all_keys<kType>(call, shared);
    __syncthreads();
    fill_table(kLevelTables[level_table_index(format.v_bits, false)], shared.table);
    __syncthreads();
    encode_all_values<kType>(call, shared);
    __syncthreads();
  }
}

// Rule 7 by itself: the few tokens that the fringe keeps, rotated once more, a warp each. Grid: (fringe slots
// by warp, sequences, 2 kv_heads).
constexpr int kFringeWarps = 4;
__global__ void __launch_bounds__(32 * kFringeWarps) encode_fringe(const __grid_constant__ EncodeCall call) {
  wait_for_previous_kernel();
  const EncodeArgs& a = call.args;
  const int slot = static_cast<int>(blockIdx.x) * kFringeWarps + static_cast<int>(threadIdx.x / 32);
  const int i = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.z / 2);
  const bool is_key = blockIdx.z % 2 == 0;
  const std::int64_t length = a.sequences.lengths[i], start = start_of(a.sequences, i);
  const std::int64_t end = length + a.sequences.token_starts[i + 1] - a.sequences.token_starts[i];
  // The first `first` counted positions, then the newest `recent`; who is both is stored twice, alike.
  const std::int64_t p = slot < a.fringe.first ? start + slot : end - a.fringe.recent + slot - a.fringe.first;
  Part part;
  if (slot >= a.fringe.first + a.fringe.recent || p < start || p < length || p >= end ||
      !find_part(a.sequences, i, p / kPageTokens, part))
    return;
  float y[kLaneDim / 32];
  const int in_page = static_cast<int>(p % kPageTokens);
  load_rotated(call, part, is_key, head, in_page, nullptr, y);
  store_fringe(call, part, is_key, head, in_page, y);
}

bool is_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}
bool is_aligned(const Rows& rows) {
  return is_aligned(rows.data) && rows.token_stride % 8 == 0 && rows.head_stride % 8 == 0;
}

}  // namespace

bool prefill_serves(const EncodeArgs& args, std::int64_t slots, const DeviceLimits& limits) {
  const std::int64_t pages = slots * args.pages.kv_heads;
  return args.pages.format.head_dim == kLaneDim && args.keys.dtype != DType::kF32 && is_aligned(args.keys) &&
         is_aligned(args.values) && is_aligned(args.basis.key_signs) && is_aligned(args.basis.value_signs) &&
         static_cast<std::size_t>(limits.shared_bytes) >= sizeof(PrefillShared) && pages >= limits.sm_count &&
         args.sequences.tokens >= 16 * slots;
}

Status launch_prefill(const EncodeCall& call, std::int64_t slots, const DeviceLimits& limits,
                      const Context& context) {
  const Fringe& fringe = call.args.fringe;
  const auto heads = static_cast<unsigned>(call.args.pages.kv_heads);
  if (fringe.data != nullptr) {
    const dim3 grid(static_cast<unsigned>((fringe.first + fringe.recent + kFringeWarps - 1) / kFringeWarps),
                    static_cast<unsigned>(call.args.sequences.count), 2 * heads);
    const Launch how{"encode", grid, dim3(32 * kFringeWarps), 0, true};
    if (const Status status = launch(how, context, &encode_fringe, call); !status.ok()) return status;
  }
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(slots * heads, limits.sm_count));
  const Launch how{"encode", dim3(blocks), dim3(kPrefillThreads), sizeof(PrefillShared), true};
  return launch(
      how, context,
      call.args.keys.dtype == DType::kBF16 ? &encode_prefill<DType::kBF16> : &encode_prefill<DType::kF16>,
      call, slots);
}

}  // namespace turboquant::kernels::cuda
