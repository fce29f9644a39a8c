// SPDX-License-Identifier: Apache-2.0
#pragma once

// Programmatic dependent launch (Launch::overlap) from a kernel's side; nothing before sm_90.
namespace turboquant::kernels::cuda {

// Returns when the stream's previous kernel has ended and its writes are seen. Every thread block calls it
// before it reads what that kernel may write, and before it writes anything. One launch calls it last: the
// fringe of a prefill, behind the prefill's own launch (docs/adr/0005).
__device__ inline void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start. Only after the wait: else it could overlap with the kernel before this one. A
// settled encode does so at once all the same; the promises of turboquant/attention.h know of it.
__device__ inline void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace turboquant::kernels::cuda
