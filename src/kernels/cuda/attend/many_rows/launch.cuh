// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/merge.cuh"

namespace turboquant::kernels::cuda::many {

// How a call is cut: warps a CTA, stages of shared memory, and the grid: row tiles, KV heads, splits.
struct Cut {
  int warps, stages;
  dim3 grid;
};

// One file a head_dim instantiates it.
template <int D>
Status launch_many_rows(const AttendArgs& args, int min_rows, const Partials& partials, const Cut& cut,
                        const Context& context);

// head_dim 128 where warpgroups multiply (sm_90a); cut's warps and stages are its own.
bool warpgroups_run_on(int device);
Status launch_many_rows_warpgroup(const AttendArgs& args, int min_rows, const Partials& partials,
                                  const Cut& cut, const Context& context);

}  // namespace turboquant::kernels::cuda::many
