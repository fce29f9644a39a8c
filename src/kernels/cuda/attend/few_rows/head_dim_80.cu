// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/few_rows/instance.cuh"

namespace turboquant::kernels::cuda::few_rows {

const Instance kDim80{80, &footprint<80>, &launch_config<80>};

}  // namespace turboquant::kernels::cuda::few_rows
