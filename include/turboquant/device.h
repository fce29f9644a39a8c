// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace turboquant {

// Element types of queries, keys, values and outputs.
enum class DType : std::uint8_t { kF32, kF16, kBF16 };

constexpr std::size_t size_of(DType dtype) {
  return dtype == DType::kF32 ? 4 : 2;
}
constexpr const char* name_of(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

enum class DeviceType : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;
};

// A CUDA stream (cudaStream_t) on kCuda, ignored on kCpu.
struct Stream {
  void* handle = nullptr;
};

// Who runs a parallel loop on the CPU. The library starts no OpenMP: a host with a
// pool of its own (torch) passes it in, everyone else uses default_executor().
class Executor {
 public:
  using Task = void (*)(void* context, std::size_t index);

  virtual ~Executor() = default;
  virtual int threads() const = 0;
  // Calls task(context, i) once for every i in [0, tasks), in any order, on any threads;
  // returns when all are done. Tasks do not throw and do not call run() again.
  virtual void run(std::size_t tasks, Task task, void* context) = 0;

  // The same for a callable: executor.for_each(n, [&](std::size_t i) { ... });
  template <class F>
  void for_each(std::size_t tasks, F&& body) {
    run(
        tasks, [](void* context, std::size_t i) { (*static_cast<F*>(context))(i); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }
};

// A pool of std::thread workers, one a hardware thread (TQ_THREADS=<n> overrides), made at first use.
Executor& default_executor();

}  // namespace turboquant
