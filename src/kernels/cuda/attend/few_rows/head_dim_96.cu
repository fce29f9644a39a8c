// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/few_rows/instance.cuh"

namespace turboquant::kernels::cuda::few_rows {

const Instance kDim96{96, &footprint<96>, &launch_config<96>};

}  // namespace turboquant::kernels::cuda::few_rows
