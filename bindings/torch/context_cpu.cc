// SPDX-License-Identifier: Apache-2.0
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "call.h"

namespace turboquant::ops {
namespace {

// Runs loops on torch's own threads, so that torch.set_num_threads holds and no second pool competes.
class TorchExecutor final : public Executor {
 public:
  int threads() const override { return static_cast<int>(torch::stable::get_num_threads()); }

  // torch would cut [0, tasks) into one equal range a thread; our tasks differ in length (a decode
  // batch is ragged), so its threads take them one by one instead.
  void run(std::size_t tasks, Task task, void* context) override {
    std::atomic<std::size_t> next{0};
    const auto take_all = [&](std::int64_t, std::int64_t) {
      for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(context, i);
    };
    const std::size_t workers = std::min(tasks, static_cast<std::size_t>(threads()));
    if (workers <= 1) take_all(0, 1);
    else torch::stable::parallel_for(0, static_cast<std::int64_t>(workers), 1, take_all);
  }
};

}  // namespace

Context context_of(int) {
  static TorchExecutor executor;
  return {.device = {}, .stream = {}, .executor = &executor};
}

}  // namespace turboquant::ops
