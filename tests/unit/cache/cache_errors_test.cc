// SPDX-License-Identifier: Apache-2.0
// What bad input gets: an error that names the value and the remedy, and a cache that is as it was.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "turboquant/cache.h"
#include "unit/cache/tokens.h"

namespace turboquant {
namespace {

using testing::Tokens;

CacheConfig full() {  // 4 pages, 3 sequences
  CacheConfig config;
  config.format = {32, 4, 4};
  config.layers = 2;
  config.kv_heads = 1;
  config.q_heads = 2;
  config.capacity_tokens = 4 * 64;
  config.max_sequences = 3;
  config.balance_mode = BalanceMode::kOff;
  return config;
}

// Everything a caller can see of a cache, bytes of free pages excepted.
std::vector<std::uint8_t> state(const PagedCache& cache) {
  std::vector<std::uint8_t> all;
  const auto add = [&](const void* data, std::size_t bytes) {
    const auto* begin = static_cast<const std::uint8_t*>(data);
    all.insert(all.end(), begin, begin + bytes);
  };
  const CacheUsage u = cache.usage();
  for (const std::size_t n : {u.pool_bytes, u.fringe_bytes, u.used_bytes, u.shared_bytes, u.baseline_bytes})
    add(&n, sizeof n);
  for (int s = 0; s < 8; ++s) {
    const bool known = cache.contains(s);
    add(&known, sizeof known);
    if (!known) continue;
    for (const std::int32_t page : cache.page_numbers(s)) add(&page, sizeof page);
    for (int layer = 0; layer < cache.config().layers; ++layer) {
      const testing::Decoded d = testing::decoded(cache, layer, s);
      add(d.keys.data(), d.keys.size() * sizeof(float));
      add(d.values.data(), d.values.size() * sizeof(float));
      const Pages pages = cache.pages(layer);
      const std::size_t page_bytes = pages.format.page_bytes() * static_cast<std::size_t>(pages.kv_heads);
      for (const std::int32_t page : cache.page_numbers(s))
        add(pages.data + static_cast<std::size_t>(page) * page_bytes, page_bytes);
      const Basis basis = cache.basis(layer);
      add(basis.key_signs, 32 * sizeof(float));
      add(basis.query_signs, 32 * sizeof(float));
    }
  }
  return all;
}

void expect_refused(const Status& status, const std::string& message, Code code = Code::kInvalidArgument) {
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().message, message);
  EXPECT_EQ(status.error().code, code);
}

TEST(PagedCacheErrors, ConfigurationsAreRefusedBeforeAnythingIsAllocated) {
  const auto refusal = [](auto change) {
    CacheConfig config = full();
    change(config);
    const Result<PagedCache> cache = PagedCache::create(config);
    return cache.ok() ? std::string("accepted") : cache.error().message;
  };
  EXPECT_EQ(refusal([](CacheConfig& c) { c.format.k_bits = 5; }),
            "k_bits=5 is not a page width; use 2, 3 or 4");
  EXPECT_EQ(refusal([](CacheConfig& c) { c.layers = 0; }), "layers=0; use at least 1");
  EXPECT_EQ(refusal([](CacheConfig& c) { c.kv_heads = 0; }), "kv_heads=0; use at least 1");
  EXPECT_EQ(refusal([](CacheConfig& c) { c.kv_heads = 2, c.q_heads = 3; }),
            "q_heads=3 is not a multiple of kv_heads=2");
  EXPECT_EQ(refusal([](CacheConfig& c) { c.capacity_tokens = -1; }),
            "capacity_tokens=-1 is out of range; use 0 for a cache that grows, or up to 2147483647");
  EXPECT_EQ(refusal([](CacheConfig& c) { c.max_sequences = -2; }),
            "max_sequences=-2; use 0 for a cache that grows, or more");
  EXPECT_EQ(refusal([](CacheConfig& c) { c.fringe_recent = -1; }),
            "fringe_first=4, fringe_recent=-1; each is 0 to 4096 tokens");
  EXPECT_EQ(
      refusal([](CacheConfig& c) { c.balance = {1.0f}; }),
      "balance has 1 entries; give 0 ([layers, kv_heads, head_dim] with BalanceMode::kGiven, else none)");
  EXPECT_EQ(refusal([](CacheConfig& c) {
              c.balance_mode = BalanceMode::kGiven;
              c.balance.assign(64, 1.0f);
              c.balance[3] = 0.0f;
            }),
            "balance[3]=0.000000; each entry is positive and finite");
  EXPECT_EQ(
      refusal([](CacheConfig& c) { c.context.device.type = DeviceType::kCuda; }),
      "PagedCache keeps its pages on the CPU; for CUDA, call the verbs of attention.h on pages of yours");
}

class FilledCache : public ::testing::Test {
 protected:
  FilledCache() : cache_(std::move(PagedCache::create(full()).value())), tokens_(65, full(), 1) {
    for (const std::int64_t count : {65, 40}) {
      const int s = cache_.add_sequence().value();
      for (int layer = 0; layer < 2; ++layer)
        EXPECT_TRUE(cache_.append(layer, {s, count}, Tokens(count, full(), 7).rows()).ok());
    }
    before_ = state(cache_);
  }
  void TearDown() override { EXPECT_EQ(state(cache_), before_); }

  PagedCache cache_;
  Tokens tokens_;
  std::vector<std::uint8_t> before_;
};

TEST_F(FilledCache, NamesTheCapacityAndTheRemedyWhenThePoolIsFull) {
  const std::string message =
      "129 new tokens need 2 pages, but 1 of the capacity of 4 (capacity_tokens=256) are free; "
      "free or truncate sequences, or create the cache with a larger capacity";
  const Tokens many(129, full(), 2);
  expect_refused(cache_.append(0, {0, 129}, many.rows()), message);
  Tokens step = many;
  expect_refused(cache_.step(0, {0, 129}, many.rows(), step.out_rows()), message);
  EXPECT_EQ(step.out, std::vector<float>(step.out.size(), 0.0f));  // not even attended
}

TEST_F(FilledCache, RefusesBatchesThatItCannotPlace) {
  const BatchRows rows = tokens_.rows();
  const std::string remedy = "; use a number that add_sequence or fork gave and that was not freed";
  expect_refused(cache_.append(0, {2, 1}, rows), "sequence 2 is unknown: the cache has 2" + remedy);
  expect_refused(cache_.append(0, {-1, 1}, rows), "sequence -1 is unknown: the cache has 2" + remedy);
  expect_refused(cache_.append(2, {0, 1}, rows), "layer=2 is out of range; the cache has layers 0 to 1");
  expect_refused(cache_.append(0, {0, -1}, rows), "sequence 0 has count=-1 new tokens; use 0 or more");
  expect_refused(cache_.append(0, std::vector<NewTokens>{{0, 1}, {0, 1}}, rows),
                 "sequence 0 is in the batch twice; name each once");
  expect_refused(cache_.append(0, {0, std::numeric_limits<std::int64_t>::max()}, rows),
                 "count=9223372036854775807 new tokens of sequence 0 of length 65; positions and rows end at "
                 "2147483583");
}

TEST_F(FilledCache, IsAsItWasAfterRowsThatEncodeRefuses) {
  BatchRows rows = tokens_.rows();
  rows.values.data = nullptr;
  EXPECT_FALSE(cache_.append(0, {0, 64}, rows).ok());
  rows = tokens_.rows();
  rows.values.dtype = DType::kF16;
  expect_refused(cache_.append(1, {1, 30}, rows), "keys are float32 but values are float16; pass one dtype");
  EXPECT_TRUE(cache_.append(0, {0, 0}, {}).ok());  // nothing to append is no error
  EXPECT_TRUE(cache_.append(0, std::vector<NewTokens>{}, {}).ok());
}

TEST_F(FilledCache, AForkThatCouldNotWriteKeepsItsSharedPage) {
  const int copy = cache_.fork(1).value();
  BatchRows rows = tokens_.rows();
  rows.keys.data = nullptr;
  EXPECT_FALSE(cache_.append(0, {copy, 1}, rows).ok());
  EXPECT_EQ(cache_.page_numbers(copy)[0], cache_.page_numbers(1)[0]);
  EXPECT_EQ(cache_.usage().used_pages, 3);
  EXPECT_TRUE(cache_.free(copy).ok());
}

TEST_F(FilledCache, RefusesLengthsReordersAndSequencesOutOfRange) {
  expect_refused(cache_.truncate(0, 66), "length=66 is out of range; sequence 0 has 65 tokens");
  expect_refused(cache_.truncate(0, -1), "length=-1 is out of range; sequence 0 has 65 tokens");
  EXPECT_FALSE(cache_.truncate(5, 0).ok());
  EXPECT_FALSE(cache_.free(5).ok());
  EXPECT_FALSE(cache_.fork(5).ok());
  const std::vector<int> both{0, 1}, twice{0, 0}, one{0}, unknown{0, 2};
  expect_refused(cache_.reorder(both, one), "2 targets but 1 sources; give each target a source");
  expect_refused(cache_.reorder(twice, both), "sequence 0 is a target twice; name each once");
  EXPECT_FALSE(cache_.reorder(both, unknown).ok());
  EXPECT_FALSE(cache_.reorder(unknown, both).ok());

  EXPECT_EQ(cache_.add_sequence().value(), 2);
  const Result<int> fourth = cache_.add_sequence();
  ASSERT_FALSE(fourth.ok());
  EXPECT_EQ(fourth.error().message,
            "all of max_sequences=3 are in use; free one, or create the cache with more");
  EXPECT_FALSE(cache_.fork(0).ok());
  EXPECT_TRUE(cache_.free(2).ok());
}

TEST_F(FilledCache, RefusesToDecodeIntoTooLittleRoom) {
  std::vector<float> out(64 * 32);
  EXPECT_FALSE(cache_.decode(0, 0, DType::kF32, 64, out.data(), out.data()).ok());
  EXPECT_FALSE(cache_.decode(0, 3, DType::kF32, 64, out.data(), out.data()).ok());
  EXPECT_FALSE(cache_.decode(9, 0, DType::kF32, 64, out.data(), out.data()).ok());
}

TEST(PagedCacheErrors, TheFirstTokensOfAMeasuredBalanceNeedTheirQueries) {
  CacheConfig config = full();
  config.balance_mode = BalanceMode::kFirstCall;
  PagedCache cache = std::move(PagedCache::create(config).value());
  EXPECT_EQ(cache.add_sequence().value(), 0);
  Tokens tokens(10, config, 1);
  BatchRows rows = tokens.rows();
  rows.query.data = nullptr;
  expect_refused(cache.append(1, {0, 10}, rows),
                 "layer 1 has no balance yet and its first tokens come without query; pass their queries, or "
                 "create the cache with BalanceMode::kOff or kGiven");
  rows = tokens.rows();
  rows.values.data = nullptr;  // fails after the balance was measured: it must not stay
  EXPECT_FALSE(cache.append(1, {0, 10}, rows).ok());
  EXPECT_EQ(cache.basis(1).query_signs[0] * cache.basis(1).query_signs[0], 1.0f);
  EXPECT_EQ(cache.usage().used_pages, 0);
  EXPECT_TRUE(cache.append(1, {0, 10}, tokens.rows()).ok());
  rows = tokens.rows();
  rows.query.data = nullptr;
  EXPECT_TRUE(cache.append(1, {0, 10}, rows).ok());  // it stands now
}

}  // namespace
}  // namespace turboquant
