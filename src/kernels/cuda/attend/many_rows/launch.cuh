// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/merge.cuh"

namespace turboquant::kernels::cuda::many {

// One file a head_dim instantiates it. grid: row tiles, KV heads, splits.
template <int D>
Status launch_many_rows(const AttendArgs& args, int min_rows, const Partials& partials, dim3 grid,
                        const Context& context);

}  // namespace turboquant::kernels::cuda::many
