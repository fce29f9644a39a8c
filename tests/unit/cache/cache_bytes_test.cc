// SPDX-License-Identifier: Apache-2.0
// A cache's account of its memory against the allocator: operator new and delete of this program count the
// bytes that were asked for and are not yet given back.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "turboquant/cache.h"
#include "unit/cache/tokens.h"

namespace {

std::atomic<std::size_t> live_bytes{0};

// A block: its size and where malloc's block begins, then the bytes at their alignment.
struct Header {
  std::size_t bytes;
  void* begin;
};

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  void* const begin = std::malloc(bytes + alignment + sizeof(Header));
  if (begin == nullptr) return nullptr;
  auto address = reinterpret_cast<std::uintptr_t>(begin) + sizeof(Header);
  address = (address + alignment - 1) / alignment * alignment;
  reinterpret_cast<Header*>(address)[-1] = {bytes, begin};
  live_bytes += bytes;
  return reinterpret_cast<void*>(address);
}

void release(void* block) noexcept {
  if (block == nullptr) return;
  const Header header = static_cast<Header*>(block)[-1];
  live_bytes -= header.bytes;
  std::free(header.begin);
}

}  // namespace

// All scalar forms, since a sanitizer brings its own of each. The array forms stay a pair of their own or
// call these.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return allocate(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes) {
  void* const block = allocate(bytes, alignof(std::max_align_t));
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  void* const block = allocate(bytes, static_cast<std::size_t>(alignment));
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
void operator delete(void* block) noexcept {
  release(block);
}
void operator delete(void* block, std::size_t) noexcept {
  release(block);
}
void operator delete(void* block, std::align_val_t) noexcept {
  release(block);
}
void operator delete(void* block, std::size_t, std::align_val_t) noexcept {
  release(block);
}

namespace turboquant {
namespace {

using testing::Tokens;

CacheConfig shape(int layers) {
  CacheConfig config;
  config.format = {80, 3, 2};  // a Hadamard base of its own: base_matrix counts too
  config.layers = layers;
  config.kv_heads = 2;
  config.q_heads = 2;
  return config;
}

TEST(PagedCacheBytes, AreWhatTheAllocatorCounts) {
  for (const int capacity : {0, 2000}) {
    CacheConfig config = shape(3);
    config.capacity_tokens = capacity;
    config.max_sequences = capacity / 200;
    const Tokens many(70, config, 1), one(1, config, 2);
    std::vector<float> out = one.query;
    default_executor().for_each(1, [](std::size_t) {});  // its threads are not the cache's
    const std::size_t before = live_bytes;
    {
      Result<PagedCache> made = PagedCache::create(config);
      PagedCache& cache = made.value();
      const auto expect_exact = [&] { ASSERT_EQ(cache.usage().total_bytes(), live_bytes - before); };
      expect_exact();
      for (int i = 0; i < 6; ++i) {
        EXPECT_EQ(cache.add_sequence().value(), i);
        expect_exact();
        for (int layer = 0; layer < 3; ++layer)
          EXPECT_TRUE(cache.append(layer, {i, 70 - i}, many.rows()).ok());
        expect_exact();
      }
      EXPECT_EQ(cache.fork(3).value(), 6);
      expect_exact();
      const MutableRows out_rows{DType::kF32, out.data(), 160, 80};
      for (int n = 0; n < 130; ++n) EXPECT_TRUE(cache.step(1, {6, 1}, one.rows(), out_rows).ok());
      expect_exact();
      EXPECT_TRUE(cache.reorder(std::vector<int>{0, 1}, std::vector<int>{1, 0}).ok());
      EXPECT_TRUE(cache.truncate(6, 10).ok());
      EXPECT_TRUE(cache.free(2).ok());
      expect_exact();
      EXPECT_FALSE(cache.append(0, {0, 100}, {}).ok());
      expect_exact();
      cache.reset();
      expect_exact();
      const PagedCache moved = std::move(cache);
      ASSERT_EQ(moved.usage().total_bytes(), live_bytes - before);
    }
    EXPECT_EQ(live_bytes, before);
  }
}

TEST(PagedCacheBytes, OfAPageAreTheFormats) {
  CacheConfig config = shape(3);
  config.capacity_tokens = 640;
  config.max_sequences = 2;
  PagedCache cache = std::move(PagedCache::create(config).value());
  CacheUsage u = cache.usage();
  const std::size_t page = 3 * 2 * config.format.page_bytes();
  EXPECT_EQ(u.pages, 10);
  EXPECT_EQ(u.pool_bytes, 10 * page);
  EXPECT_EQ(u.fringe_bytes, 2u * 3 * 2 * 32 * 2 * 80 * 2);
  EXPECT_EQ(u.used_bytes, 0u);

  const int s = cache.add_sequence().value();
  const Tokens tokens(65, config, 1);
  for (int layer = 0; layer < 3; ++layer) EXPECT_TRUE(cache.append(layer, {s, 65}, tokens.rows()).ok());
  EXPECT_EQ(cache.fork(s).value(), 1);
  u = cache.usage();
  EXPECT_EQ(u.used_pages, 2);
  EXPECT_EQ(u.used_bytes, 2 * page);
  EXPECT_EQ(u.shared_bytes, 2 * page);
  EXPECT_EQ(u.baseline_bytes, 2u * 65 * 3 * 2 * 80 * 2 * 2);  // two sequences, keys and values, 2 bytes
}

TEST(PagedCacheBytes, OfAGrowingPoolAreAtMostAQuarterMoreThanItsPages) {
  CacheConfig config = shape(1);
  PagedCache cache = std::move(PagedCache::create(config).value());
  const int s = cache.add_sequence().value();
  const Tokens tokens(64, config, 1);
  for (int n = 1; n <= 50; ++n) {
    ASSERT_TRUE(cache.append(0, {s, 64}, tokens.rows()).ok());
    const CacheUsage u = cache.usage();
    EXPECT_EQ(u.used_pages, n);
    EXPECT_LE(4 * u.pool_bytes, 5 * u.used_bytes);
  }
}

}  // namespace
}  // namespace turboquant
