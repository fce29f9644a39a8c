// SPDX-License-Identifier: Apache-2.0
#include <atomic>

#include "kernels/cuda/attend/many_rows/launch.cuh"
#include "kernels/cuda/attend/many_rows/warpgroup/consume.cuh"
#include "kernels/cuda/attend/many_rows/warpgroup/produce.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda::many {
namespace {

__global__ void __launch_bounds__(WarpgroupLayout::kThreads, 1)
    many_rows_warpgroup_kernel(const __grid_constant__ AttendArgs a,
                               const __grid_constant__ PageConstants constants, int min_rows,
                               const __grid_constant__ Partials partials) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using L = WarpgroupLayout;
  extern __shared__ __align__(1024) std::uint8_t many_rows_warpgroup_shared[];
  __shared__ Work w;  // statically: warpgroups_run_on() looks for it
  WarpgroupShared& shared = *reinterpret_cast<WarpgroupShared*>(many_rows_warpgroup_shared);
  const int thread = static_cast<int>(threadIdx.x), group = a.q_heads / a.pages.kv_heads;
  const int split = static_cast<int>(blockIdx.z);

  if (thread < 32) {  // later tiles see more of their own tokens: they go first
    const int index = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    const int2 tile = find_tile(a.sequences, group, min_rows, L::kRows, index);
    if (thread == 0) w = make_work(a, tile, L::kRows, static_cast<int>(blockIdx.y), split, partials.splits);
  } else if (thread == 32) {
    for (int s = 0; s < L::kStages; ++s) {
      barrier_init(shared_address(&shared.made[s]), L::kWarpgroupThreads);
      barrier_init(shared_address(&shared.used[s]), L::kConsumers / 32);
    }
    for (int s = 0; s < L::kSlots; ++s) barrier_init(shared_address(&shared.copied[s]), 1);
    barrier_init_fence();
  } else if (thread >= 64 && thread < 64 + 4) {
    shared.notes[thread - 64] = {};
  }
  __syncthreads();
  if (w.rows == 0) return;
  if (thread < L::kRows)
    shared.row_token[thread] =
        static_cast<int>((w.first_row + (thread < w.rows ? thread : w.rows - 1)) / group);
  __syncthreads();
  if (thread >= L::kConsumers) produce(a, constants, w, shared);
  else consume(a, w, partials, split, shared);
#endif
}

}  // namespace

// Code for sm_90, and for any later device, is without wgmma: its kernel is empty and has no static memory.
bool warpgroups_run_on(int device) {
  static std::atomic<std::uint64_t> known = 0, yes = 0;  // a bit a device
  const auto limits = device_limits(device);
  if (!limits.ok() || limits.value().major != 9 ||
      WarpgroupLayout::kBytes + 2048 > limits.value().shared_bytes)
    return false;
  const std::uint64_t bit = std::uint64_t{1} << device;  // below 64: device_limits()
  if ((known.load(std::memory_order_acquire) & bit) == 0) {
    cudaFuncAttributes attributes = {};
    if (cudaFuncGetAttributes(&attributes, many_rows_warpgroup_kernel) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    if (attributes.sharedSizeBytes > 0) yes.fetch_or(bit, std::memory_order_relaxed);
    known.fetch_or(bit, std::memory_order_release);
  }
  return (yes.load(std::memory_order_relaxed) & bit) != 0;
}

Status launch_many_rows_warpgroup(const AttendArgs& args, int min_rows, const Partials& partials,
                                  const Cut& cut, const Context& context) {
  return launch({"attend: many rows", cut.grid, dim3(WarpgroupLayout::kThreads), WarpgroupLayout::kBytes},
                context, many_rows_warpgroup_kernel, args, page_constants(args.pages.format), min_rows,
                partials);
}

}  // namespace turboquant::kernels::cuda::many
