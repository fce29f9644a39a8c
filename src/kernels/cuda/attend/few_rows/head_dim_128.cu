// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/few_rows/instance.cuh"

namespace turboquant::kernels::cuda::few_rows {

const Instance kDim128{128, &footprint<128>, &launch_config<128>};

}  // namespace turboquant::kernels::cuda::few_rows
