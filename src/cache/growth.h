// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace turboquant::cache {

// How large an array of `size` elements becomes that must hold `needed`: by a quarter at least. The copies
// cost 4 writes a byte over a pool's life, and at most a fifth of it is unused: docs/adr/0004.
inline std::int64_t grown(std::int64_t size, std::int64_t needed) {
  return std::max(needed, size + size / 4);
}

// Bytes at a multiple of 128 that can grow; growing moves them.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { ::operator delete(data_, kAlignment); }

  // False where there is no memory: then nothing has changed. What is new is not initialised.
  [[nodiscard]] bool grow(std::size_t bytes) {
    if (bytes <= size_) return true;
    void* const data = ::operator new(bytes, kAlignment, std::nothrow);
    if (!data) return false;
    if (size_ > 0) std::memcpy(data, data_, size_);
    ::operator delete(data_, kAlignment);
    data_ = data;
    size_ = bytes;
    return true;
  }

  std::uint8_t* data() const { return static_cast<std::uint8_t*>(data_); }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{128};

  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace turboquant::cache
