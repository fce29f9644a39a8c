// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "device_array.h"

namespace turboquant::gpu {

// What `record` launches on a stream, as a CUDA graph.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& record) {
    TQ_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    record();
    TQ_CUDA_CHECK(cudaStreamEndCapture(stream, &graph_));
    TQ_CUDA_CHECK(cudaGraphInstantiate(&executable_, graph_, 0));
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }
  void launch(cudaStream_t stream) { TQ_CUDA_CHECK(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace turboquant::gpu
