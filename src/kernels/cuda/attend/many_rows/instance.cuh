// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/kernel.cuh"
#include "kernels/cuda/attend/many_rows/launch.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda::many {

template <int D>
Status launch_many_rows(const AttendArgs& args, int min_rows, const Partials& partials, dim3 grid,
                        const Context& context) {
  return launch({"attend: many rows", grid, dim3(Layout<D>::kThreads), Layout<D>::kBytes}, context,
                many_rows_kernel<D>, args, min_rows, partials);
}

}  // namespace turboquant::kernels::cuda::many
