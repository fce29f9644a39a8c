// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/few_rows/instance.cuh"

namespace turboquant::kernels::cuda::few_rows {

const Instance kDim192{192, &footprint<192>, &launch_config<192>};

}  // namespace turboquant::kernels::cuda::few_rows
