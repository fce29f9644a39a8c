// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/attend/many_rows/instance.cuh"

template turboquant::Status turboquant::kernels::cuda::many::launch_many_rows<256>(const AttendArgs&, int,
                                                                                   const Partials&,
                                                                                   const Cut&,
                                                                                   const Context&);
