// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/few_rows/instance.cuh"

namespace turboquant::kernels::cuda::few_rows {

const Instance kDim64{64, &footprint<64>, &launch_config<64>};

}  // namespace turboquant::kernels::cuda::few_rows
