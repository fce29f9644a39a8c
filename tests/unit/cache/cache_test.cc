// SPDX-License-Identifier: Apache-2.0
#include "turboquant/cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "unit/cache/tokens.h"

namespace turboquant {
namespace {

using testing::Decoded;
using testing::decoded;
using testing::Tokens;

CacheConfig small() {
  CacheConfig config;
  config.format = {32, 4, 4};
  config.layers = 2;
  config.kv_heads = 2;
  config.q_heads = 4;
  config.balance_mode = BalanceMode::kOff;
  return config;
}

PagedCache make(const CacheConfig& config) {
  Result<PagedCache> cache = PagedCache::create(config);
  EXPECT_TRUE(cache.ok()) << cache.error().message;
  return std::move(cache.value());
}

void expect_ok(const Status& status) {
  EXPECT_TRUE(status.ok()) << status.error().message;
}

void append(PagedCache& cache, int sequence, const Tokens& tokens) {
  for (int layer = 0; layer < cache.config().layers; ++layer)
    expect_ok(cache.append(layer, {sequence, tokens.count}, tokens.rows()));
}

TEST(PagedCache, StepsThroughAPrefillAndADecodeInAllLayers) {
  CacheConfig config = small();
  config.balance_mode = BalanceMode::kFirstCall;
  PagedCache cache = make(config);
  const int s = cache.add_sequence().value();
  for (const std::int64_t count : {100, 1, 1}) {
    Tokens tokens(count, config, static_cast<std::uint64_t>(count));
    for (int layer = 0; layer < config.layers; ++layer)
      expect_ok(cache.step(layer, {s, count}, tokens.rows(), tokens.out_rows()));
  }
  EXPECT_EQ(cache.length(s), 102);
  EXPECT_EQ(cache.length(s, 1), 102);
  EXPECT_EQ(cache.page_numbers(s).size(), 2u);
}

TEST(PagedCache, StepIsAttendThenAppend) {
  const CacheConfig config = small();
  PagedCache a = make(config), b = make(config);
  const int s = a.add_sequence().value();
  EXPECT_EQ(b.add_sequence().value(), s);
  for (const std::int64_t count : {70, 3, 1, 1}) {
    Tokens tokens(count, config, static_cast<std::uint64_t>(count)), same = tokens;
    expect_ok(a.step(0, {s, count}, tokens.rows(), tokens.out_rows()));
    expect_ok(b.attend(0, {s, count}, same.rows(), same.out_rows()));
    expect_ok(b.append(0, {s, count}, same.rows()));
    EXPECT_EQ(tokens.out, same.out);
    EXPECT_EQ(decoded(a, 0, s), decoded(b, 0, s));
  }
}

TEST(PagedCache, GivesASequenceTheSameBytesAloneAndInABatchInAnyOrder) {
  const CacheConfig config = small();
  PagedCache together = make(config), alone = make(config);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(together.add_sequence().value(), i);
    EXPECT_EQ(alone.add_sequence().value(), i);
  }
  // Ascending with gaps, descending, mixed, with an empty one: one run, three runs, two runs.
  const std::vector<std::vector<NewTokens>> batches = {
      {{0, 70}, {2, 5}, {4, 64}}, {{4, 1}, {2, 60}, {0, 1}}, {{1, 2}, {3, 0}, {0, 1}, {4, 3}}};
  // Kernels may add up in another order in a larger batch: two sums of at most 140 terms below 6 in fp32.
  constexpr float kRounding = 2 * 140 * 6 * 0x1p-24f;
  std::uint64_t seed = 1;
  for (const auto& batch : batches) {
    std::int64_t total = 0;
    for (const NewTokens& tokens : batch) total += tokens.count;
    Tokens tokens(total, config, ++seed), one = tokens;
    std::vector<float> lse(static_cast<std::size_t>(total * config.q_heads)), lse_alone(lse.size());
    AttendOptions options;
    options.lse = lse.data();
    expect_ok(together.step(0, batch, tokens.rows(), tokens.out_rows(), options));
    std::int64_t row = 0;
    for (const auto& [sequence, count] : batch) {
      BatchRows rows = one.rows();
      MutableRows out = one.out_rows();
      const auto move = [&](auto& r) {
        r.data = static_cast<float*>(const_cast<void*>(r.data)) + row * r.token_stride;
      };
      move(rows.query);
      move(rows.keys);
      move(rows.values);
      move(out);
      options.lse = lse_alone.data() + row * config.q_heads;
      expect_ok(alone.step(0, {sequence, count}, rows, out, options));
      row += count;
    }
    for (std::size_t i = 0; i < lse.size(); ++i) EXPECT_NEAR(lse[i], lse_alone[i], kRounding);
    for (std::size_t i = 0; i < one.out.size(); ++i) EXPECT_NEAR(tokens.out[i], one.out[i], kRounding);
    for (int s = 0; s < 5; ++s) EXPECT_EQ(decoded(together, 0, s), decoded(alone, 0, s));
  }
}

TEST(PagedCache, AForkSharesPagesUntilOneWrites) {
  PagedCache cache = make(small());
  const int a = cache.add_sequence().value();
  append(cache, a, Tokens(100, cache.config(), 1));
  const std::size_t used = cache.usage().used_bytes;
  const int b = cache.fork(a).value();
  EXPECT_EQ(decoded(cache, 1, a), decoded(cache, 1, b));
  EXPECT_EQ(cache.usage().used_bytes, used);
  EXPECT_EQ(cache.usage().shared_bytes, used);

  const Decoded before = decoded(cache, 1, a);
  append(cache, b, Tokens(10, cache.config(), 2));
  EXPECT_EQ(decoded(cache, 1, a), before);
  EXPECT_EQ(cache.page_numbers(a)[0], cache.page_numbers(b)[0]);
  EXPECT_NE(cache.page_numbers(a)[1], cache.page_numbers(b)[1]);
  EXPECT_EQ(cache.usage().used_bytes, used / 2 * 3);
  EXPECT_EQ(cache.usage().shared_bytes, used / 2);
}

TEST(PagedCache, ForksInTheMiddleOfAModelsStep) {
  // Layer 0 has the new tokens, layer 1 has not: each branch then gets them in layer 1.
  const CacheConfig config = small();
  PagedCache cache = make(config);
  const int a = cache.add_sequence().value();
  const Tokens first(100, config, 1), second(40, config, 2);
  append(cache, a, first);
  expect_ok(cache.append(0, {a, second.count}, second.rows()));
  const int b = cache.fork(a).value();
  EXPECT_EQ(cache.length(b, 0), 140);
  EXPECT_EQ(cache.length(b, 1), 100);
  expect_ok(cache.append(1, {b, second.count}, second.rows()));
  EXPECT_EQ(cache.length(a, 1), 100);
  expect_ok(cache.append(1, {a, second.count}, second.rows()));

  PagedCache plain = make(config);
  const int s = plain.add_sequence().value();
  append(plain, s, first);
  append(plain, s, second);
  for (int layer = 0; layer < config.layers; ++layer) {
    EXPECT_EQ(decoded(cache, layer, a), decoded(plain, layer, s));
    EXPECT_EQ(decoded(cache, layer, b), decoded(plain, layer, s));
  }
}

TEST(PagedCache, ReordersBeamsByAssignment) {
  PagedCache cache = make(small());
  std::vector<Decoded> was;
  for (int i = 0; i < 4; ++i) {
    const int s = cache.add_sequence().value();
    append(cache, s, Tokens(60 + i, cache.config(), static_cast<std::uint64_t>(i)));
    was.push_back(decoded(cache, 0, s));
  }
  const std::vector<int> targets{0, 1, 2, 3}, sources{3, 0, 0, 3};
  expect_ok(cache.reorder(targets, sources));
  for (std::size_t i = 0; i < 4; ++i)
    EXPECT_EQ(decoded(cache, 0, targets[i]), was[static_cast<std::size_t>(sources[i])]);
  EXPECT_EQ(cache.usage().used_pages, 2);
}

TEST(PagedCache, OfAStepThatFailedBetweenLayersTruncateFreesTheRest) {
  PagedCache cache = make(small());
  const int s = cache.add_sequence().value();
  append(cache, s, Tokens(64, cache.config(), 1));
  const Tokens more(1, cache.config(), 2);
  expect_ok(cache.append(0, {s, 1}, more.rows()));
  EXPECT_FALSE(cache.append(1, {s, 1}, BatchRows{}).ok());
  EXPECT_EQ(cache.usage().used_pages, 2);
  expect_ok(cache.truncate(s, 64));
  EXPECT_EQ(cache.length(s, 0), 64);
  EXPECT_EQ(cache.length(s, 1), 64);
  EXPECT_EQ(cache.usage().used_pages, 1);
}

TEST(PagedCache, MeasuresTheBalanceOnceALayerAndAgainAfterReset) {
  CacheConfig config = small();
  config.balance_mode = BalanceMode::kFirstCall;
  PagedCache cache = make(config);
  const int s = cache.add_sequence().value();
  const Tokens tokens(128, config, 1);
  const std::size_t n = tokens.keys.size() / 128;
  std::vector<float> wanted(n);
  const std::int32_t token_starts[] = {0, 128};
  BalanceArgs args;
  args.kv_heads = config.kv_heads;
  args.q_heads = config.q_heads;
  args.head_dim = config.format.head_dim;
  args.sequence_count = 1;
  args.token_starts = token_starts;
  args.query = tokens.rows().query;
  args.keys = tokens.rows().keys;
  args.balance = wanted.data();
  expect_ok(balance(args));

  const auto measured = [&](int layer) {
    const Basis basis = cache.basis(layer);
    std::vector<float> s_of(n);
    for (std::size_t i = 0; i < n; ++i) {
      s_of[i] = std::fabs(basis.query_signs[i]);
      EXPECT_EQ(basis.key_signs[i], std::copysign(1.0f, basis.query_signs[i]) / s_of[i]);
    }
    return s_of;
  };
  const std::vector<float> ones(n, 1.0f);
  append(cache, s, tokens);
  EXPECT_EQ(measured(0), wanted);
  EXPECT_EQ(measured(1), wanted);
  append(cache, s, Tokens(128, config, 2));
  EXPECT_EQ(measured(0), wanted);  // frozen
  expect_ok(cache.free(s));
  EXPECT_EQ(measured(0), wanted);
  cache.reset();
  EXPECT_EQ(measured(0), ones);
  EXPECT_EQ(cache.add_sequence().value(), 0);
  append(cache, 0, Tokens(128, config, 3));
  EXPECT_NE(measured(0), wanted);
  EXPECT_NE(measured(0), ones);
}

TEST(PagedCache, TakesAGivenBalance) {
  CacheConfig config = small();
  config.balance_mode = BalanceMode::kGiven;
  config.balance.assign(2 * 2 * 32, 2.0f);
  config.balance[0] = 0.5f;
  PagedCache cache = make(config);
  EXPECT_EQ(std::fabs(cache.basis(0).query_signs[0]), 0.5f);
  EXPECT_EQ(std::fabs(cache.basis(0).key_signs[0]), 2.0f);
  EXPECT_EQ(std::fabs(cache.basis(1).query_signs[0]), 2.0f);
  append(cache, cache.add_sequence().value(), Tokens(3, config, 1));  // no queries needed
}

TEST(PagedCache, KeepsItsTokensWhenThePoolsAndFringesMove) {
  const CacheConfig config = small();
  PagedCache grows = make(config);
  CacheConfig fixed_config = config;
  fixed_config.capacity_tokens = 20 * 64;
  fixed_config.max_sequences = 8;
  PagedCache fixed = make(fixed_config);
  for (int i = 0; i < 8; ++i) {
    const int s = grows.add_sequence().value();
    EXPECT_EQ(fixed.add_sequence().value(), s);
    for (int part = 0; part < 2; ++part) {
      const Tokens tokens(50, config, static_cast<std::uint64_t>(2 * i + part));
      append(grows, s, tokens);
      append(fixed, s, tokens);
    }
  }
  for (int s = 0; s < 8; ++s) EXPECT_EQ(decoded(grows, 1, s), decoded(fixed, 1, s));
}

TEST(PagedCache, AttendsToNothingWithZeros) {
  const CacheConfig config = small();
  PagedCache cache = make(config);
  const int s = cache.add_sequence().value();
  Tokens tokens(2, config, 1);
  tokens.out.assign(tokens.out.size(), 7.0f);
  std::vector<float> lse(8);
  AttendOptions options;
  options.lse = lse.data();
  const BatchRows history_only{tokens.rows().query, {}, {}};
  expect_ok(cache.attend(0, {s, 2}, history_only, tokens.out_rows(), options));
  EXPECT_EQ(tokens.out, std::vector<float>(tokens.out.size(), 0.0f));
  for (const float x : lse) EXPECT_EQ(x, -INFINITY);
  EXPECT_EQ(cache.length(s), 0);
}

TEST(PagedCache, ConfinesNaNToItsToken) {
  const CacheConfig config = small();
  PagedCache cache = make(config);
  const int s = cache.add_sequence().value();
  Tokens tokens(20, config, 1);
  tokens.keys[5 * 64] = std::nanf("");  // token 5, KV head 0
  append(cache, s, tokens);
  const Decoded d = decoded(cache, 0, s);
  for (std::size_t i = 0; i < d.keys.size(); ++i) {
    const bool of_the_token = i / 32 == 5;  // [kv_heads, 20, 32]
    EXPECT_EQ(std::isnan(d.keys[i]), of_the_token);
    EXPECT_FALSE(std::isnan(d.values[i]));
  }
}

}  // namespace
}  // namespace turboquant
