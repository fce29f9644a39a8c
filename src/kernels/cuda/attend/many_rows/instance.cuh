// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/kernel.cuh"
#include "kernels/cuda/attend/many_rows/launch.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda::many {

template <int D>
Status launch_many_rows(const AttendArgs& args, int min_rows, const Partials& partials, const Cut& cut,
                        const Context& context) {
  const auto threads = static_cast<unsigned>(32 * cut.warps);
  const auto bytes = static_cast<std::size_t>(Layout<D>::bytes(cut.warps, cut.stages));
  return launch({"attend: many rows", cut.grid, dim3(threads), bytes}, context, many_rows_kernel<D>, args,
                page_constants(args.pages.format), cut.stages, min_rows, partials);
}

}  // namespace turboquant::kernels::cuda::many
