// SPDX-License-Identifier: Apache-2.0
// encode of many tokens at head_dim 128 from 16-bit rows: the bytes of encode/pages.cuh, 16 vectors a warp.
// Bound by instructions, see docs/encode.md.
#include <algorithm>

#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/prefill_page.cuh"
#include "kernels/cuda/encode/prefill_tasks.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

// The team's share of the block's keys.
template <DType kType>
__device__ void encode_team_keys(const EncodeCall& call, PrefillShared& shared) {
  int task = find_task(shared, 0, this_team().number);
  if (is_for_warp(task != kNoTask)) fetch_keys(call, shared, task);
  while (is_for_warp(task != kNoTask)) {
    shared.begin_turn(task, 0, shared.tasks[task].next);
    encode_keys<kType>(call, shared);
    task = shared.next();
  }
}
// A warp takes units of the block's values until none is left.
template <DType kType>
__device__ void encode_some_values(const EncodeCall& call, PrefillShared& shared) {
  int unit = shared.take_values();
  if (is_for_warp(unit != kNoTask)) fetch_values(call, shared, unit);
  while (is_for_warp(unit != kNoTask)) {
    shared.begin_turn(unit / kTeamWarps, unit % kTeamWarps, shared.take_values());
    encode_values<kType>(call, shared, [&] {
      if (is_for_warp(shared.next() != kNoTask)) fetch_values(call, shared, shared.next());
    });
    unit = shared.next();
  }
}

// Blocks take each gridDim.x-th task.
template <DType kType>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    encode_prefill(const __grid_constant__ EncodeCall call, const std::int64_t slots) {
  extern __shared__ __align__(128) unsigned char bytes[];
  auto& shared = *reinterpret_cast<PrefillShared*>(bytes);
  const std::int64_t count = slots * call.args.pages.kv_heads;
  const int thread = static_cast<int>(threadIdx.x);

  if (thread < kSidePairs) shared.zeros[thread] = 0;
  if (thread < kPageTokens)
    shared.value_tokens[thread / kWarpVectors][thread % kWarpVectors] = static_cast<std::uint8_t>(
        value_token(call.args.pages.format.v_bits, thread / kWarpVectors, thread % kWarpVectors));
  wait_for_previous_kernel();
  let_next_kernel_start();

  for (std::int64_t first = blockIdx.x; first < count; first += std::int64_t{kTasks} * gridDim.x) {
    if (thread < kTasks) {
      make_task(call, first + std::int64_t{thread} * gridDim.x, count, shared.tasks[thread],
                shared.tasks[kTasks + thread]);
      note_leading(shared, thread);
    }
    __syncthreads();
    if (thread < kTasks) link_task(shared, thread);
    if (thread == 0) shared.value_units = 0;
    __syncthreads();
    encode_team_keys<kType>(call, shared);
    encode_some_values<kType>(call, shared);
    __syncthreads();
  }
}

// Rule 7 by itself: the few tokens that the fringe keeps, rotated once more, a warp each. Grid: (sequences,
// fringe slots by warp, 2 kv_heads); only x may be larger than 65,535.
constexpr int kFringeWarps = 4;
__device__ void encode_fringe_slot(const EncodeCall& call, int slot) {
  const EncodeArgs& a = call.args;
  const int i = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.z / 2);
  const bool is_key = blockIdx.z % 2 == 0;
  const std::int64_t length = a.sequences.lengths[i], start = start_of(a.sequences, i);
  const std::int64_t end = length + a.sequences.token_starts[i + 1] - a.sequences.token_starts[i];
  // The first `first` counted positions, then the newest `recent`; who is both is stored twice, alike.
  const std::int64_t p = slot < a.fringe.first ? start + slot : end - a.fringe.recent + slot - a.fringe.first;
  Part part;
  if (slot >= a.fringe.first + a.fringe.recent || p < start || p < length || p >= end ||
      !find_part(a.sequences, i, p / kPageTokens, part))
    return;
  make_fringe<kPrefillDim / 32>(call, part, is_key, head, static_cast<int>(p % kPageTokens), nullptr);
}
// Launched behind encode_prefill, which begins it once it has waited itself. Neither reads what the other
// writes, so blocks run wherever a multiprocessor is done, and wait only before they end.
__global__ void __launch_bounds__(32 * kFringeWarps) encode_fringe(const __grid_constant__ EncodeCall call) {
  encode_fringe_slot(call, static_cast<int>(blockIdx.y) * kFringeWarps + static_cast<int>(threadIdx.x / 32));
  wait_for_previous_kernel();
}

bool is_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}
bool is_aligned(const Rows& rows) {
  return is_aligned(rows.data) && rows.token_stride % 8 == 0 && rows.head_stride % 8 == 0;
}

// Of a sequence and head's slots.
std::int64_t fringe_blocks(const Fringe& fringe) {
  return (std::int64_t{fringe.first} + fringe.recent + kFringeWarps - 1) / kFringeWarps;
}

}  // namespace

bool prefill_serves(const EncodeArgs& args, std::int64_t slots, const DeviceLimits& limits) {
  const std::int64_t pages = slots * args.pages.kv_heads;
  return args.pages.format.head_dim == kPrefillDim && args.keys.dtype != DType::kF32 &&
         is_aligned(args.keys) && is_aligned(args.values) && is_aligned(args.basis.key_signs) &&
         is_aligned(args.basis.value_signs) &&
         static_cast<std::size_t>(limits.shared_bytes) >= sizeof(PrefillShared) && pages >= limits.sm_count &&
         args.sequences.tokens >= 16 * slots && fringe_blocks(args.fringe) < 65536;  // along y of its grid
}

Status launch_prefill(const EncodeCall& call, std::int64_t slots, const DeviceLimits& limits,
                      const Context& context) {
  const Fringe& fringe = call.args.fringe;
  const auto heads = static_cast<unsigned>(call.args.pages.kv_heads);
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(slots * heads, limits.sm_count));
  const Launch how{"encode", dim3(blocks), dim3(kPrefillThreads), sizeof(PrefillShared), true};
  const Status status = call.args.basis.key_metric != nullptr
                            ? launch_prefill_turns(call, slots, blocks, context)
                            : launch(how, context,
                                     call.args.keys.dtype == DType::kBF16 ? &encode_prefill<DType::kBF16>
                                                                          : &encode_prefill<DType::kF16>,
                                     call, slots);
  if (!status.ok() || fringe.data == nullptr) return status;
  const dim3 grid(static_cast<unsigned>(call.args.sequences.count),
                  static_cast<unsigned>(fringe_blocks(fringe)), 2 * heads);
  return launch({"encode", grid, dim3(32 * kFringeWarps), 0, true}, context, &encode_fringe, call);
}

}  // namespace turboquant::kernels::cuda
