// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/few_rows/instance.cuh"

namespace turboquant::kernels::cuda::few_rows {

const Instance kDim256{256, &footprint<256>, &launch_config<256>};

}  // namespace turboquant::kernels::cuda::few_rows
