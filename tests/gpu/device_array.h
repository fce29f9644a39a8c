// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// Device memory and streams for tests; a CUDA error is an exception, which GoogleTest reports.
namespace turboquant::gpu {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
#define TQ_CUDA_CHECK(call) ::turboquant::gpu::check(call, #call)

// An array on the device, of exactly its elements: compute-sanitizer sees the first byte read past it.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(std::size_t size) : size_(size) {
    void* data = nullptr;
    if (size > 0) TQ_CUDA_CHECK(cudaMalloc(&data, size * sizeof(T)));
    data_ = static_cast<T*>(data);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { upload(values); }
  DeviceArray(DeviceArray&& other) noexcept { swap(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceArray() { cudaFree(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  // Null where it holds nothing: "absent" to the verbs.
  operator const T*() const { return data_; }

  // Copies that wait for whatever ran before on any stream.
  void upload(const std::vector<T>& values) {
    if (values.size() != size_) throw std::runtime_error("upload of another size");
    if (size_ > 0) TQ_CUDA_CHECK(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
    TQ_CUDA_CHECK(cudaDeviceSynchronize());
  }
  std::vector<T> download() const {
    TQ_CUDA_CHECK(cudaDeviceSynchronize());
    std::vector<T> values(size_);
    if (size_ > 0) TQ_CUDA_CHECK(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  void fill_bytes(int byte) {
    if (size_ > 0) TQ_CUDA_CHECK(cudaMemset(data_, byte, size_ * sizeof(T)));
    TQ_CUDA_CHECK(cudaDeviceSynchronize());
  }

 private:
  void swap(DeviceArray& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

// Of a machine: can a test have as much device memory?
inline bool has_memory(std::size_t bytes) {
  std::size_t free = 0, total = 0;
  TQ_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free >= bytes;
}

// A stream that does not wait for the null stream.
class DeviceStream {
 public:
  DeviceStream() { TQ_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;
  ~DeviceStream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }
  void wait() const { TQ_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace turboquant::gpu
