// SPDX-License-Identifier: Apache-2.0
// encode of many tokens at head_dim 128 from 16-bit rows: the bytes of encode/pages.cuh, eight vectors a
// warp. Bound by instructions and by shared memory, see docs/encode.md.
#include <algorithm>

#include "kernels/cuda/encode/entry.h"
#include "kernels/cuda/encode/prefill_keys.cuh"
#include "kernels/cuda/encode/prefill_values.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

// Tasks are (slot, head), head first: a block takes every gridDim.x-th.
struct Tasks {
  const EncodeCall& call;
  std::int64_t count;

  __device__ int head(std::int64_t at) const { return static_cast<int>(at % call.args.pages.kv_heads); }
  // The first task from `at` on in steps of `step` that is a part of the call; at least `count`: there is
  // none. The part is written to shared memory, this warp's own.
  __device__ std::int64_t find(std::int64_t at, std::int64_t step, bool is_key, Part& out) const {
    for (; at < count; at += step) {
      Part part;
      // The block of the page before also encodes keys that follow it.
      if (!find_slot(call, at / call.args.pages.kv_heads, part) ||
          (is_key && part.follows() && part.previous_in_call))
        continue;
      store(part, out);
      break;
    }
    return at;
  }
  // The page after `part`, if its keys follow.
  __device__ bool find_follower(const Part& part, Part& out) const {
    Part next;
    if (!find_part(call.args.sequences, part.sequence, part.page + 1, next) || !next.follows()) return false;
    store(next, out);
    return true;
  }

 private:
  __device__ static void store(const Part& part, Part& out) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) out = part;
    __syncwarp();
  }
};

// Warps 0 to 7.
__device__ void encode_all_keys(const EncodeCall& call, const Tasks& tasks, PrefillShared& shared) {
  Part* parts = shared.parts[threadIdx.x / 32];
  std::int64_t at = tasks.find(blockIdx.x, gridDim.x, true, parts[0]);
  if (at < tasks.count) fetch_keys(call, parts[0], tasks.head(at), shared);
  for (int turn = 0; at < tasks.count; turn ^= 1) {
    const Part &part = parts[turn], &next = parts[turn ^ 1];
    const int head = tasks.head(at);
    if (!tasks.find_follower(part, parts[turn ^ 1]))
      at = tasks.find(at + gridDim.x, gridDim.x, true, parts[turn ^ 1]);
    encode_keys(call, part, head, shared, [&] {
      if (at < tasks.count) fetch_keys(call, next, tasks.head(at), shared);
    });
  }
}

// Every warp takes the block's next page when it has done one.
__device__ void encode_all_values(const EncodeCall& call, const Tasks& tasks, PrefillShared& shared) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  Part& part = shared.parts[threadIdx.x / 32][0];
  for (;;) {
    const int turn = __shfl_sync(~0u, lane == 0 ? atomicAdd(&shared.next_values, 1) : 0, 0);
    const std::int64_t at = blockIdx.x + static_cast<std::int64_t>(turn) * gridDim.x;
    if (at >= tasks.count) return;
    if (tasks.find(at, tasks.count, false, part) == at) encode_values(call, part, tasks.head(at), shared);
  }
}

__global__ void __launch_bounds__(kPrefillThreads, 1)
    encode_prefill(const __grid_constant__ EncodeCall call, const std::int64_t slots) {
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& shared = *reinterpret_cast<PrefillShared*>(bytes);
  const PageFormat& format = call.args.pages.format;
  fill_table(kLevelTables[level_table_index(format.k_bits, true)].rows, shared.key_table);
  fill_table(kLevelTables[level_table_index(format.v_bits, false)].rows, shared.value_table);
  if (threadIdx.x < kPaddedRow) shared.keys.minus_zeros[threadIdx.x] = -0.0f;
  if (threadIdx.x == 0) shared.next_values = 0;
  wait_for_previous_kernel();
  __syncthreads();
  const Tasks tasks{call, slots * call.args.pages.kv_heads};
  if (threadIdx.x < 32 * kKeyWarps) {
    encode_all_keys(call, tasks, shared);
    Group{32 * kKeyWarps, 1, 0}.sync();
  }
  encode_all_values(call, tasks, shared);
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
  float y[kQuadDim / 32];
  const int in_page = static_cast<int>(p % kPageTokens);
  load_rotated(call, part, is_key, head, in_page, nullptr, y);
  store_fringe(call, part, is_key, head, in_page, y);
}

bool is_aligned(const Rows& rows) {
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.token_stride % 8 == 0 &&
         rows.head_stride % 8 == 0;
}

}  // namespace

bool prefill_serves(const EncodeArgs& args, std::int64_t slots, const DeviceLimits& limits) {
  const std::int64_t pages = slots * args.pages.kv_heads;
  return args.pages.format.head_dim == kQuadDim && args.keys.dtype != DType::kF32 && is_aligned(args.keys) &&
         is_aligned(args.values) && reinterpret_cast<std::uintptr_t>(args.basis.value_signs) % 8 == 0 &&
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
  return launch(how, context, &encode_prefill, call, slots);
}

}  // namespace turboquant::kernels::cuda
