// SPDX-License-Identifier: Apache-2.0
// Random use of a cache against a model of it: each sequence is the list of what happened to it, and a map
// from position to token. Three things must hold of every sequence at any time:
//   1. it decodes as a cache does that got the same calls for this sequence alone;
//   2. what its fringe holds is its own token to fp16, and the rest is what a cache without fringe decodes;
//   3. the pages in use are those that the page numbers name, and no more.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "turboquant/cache.h"
#include "unit/cache/tokens.h"

namespace turboquant {
namespace {

using testing::Decoded;
using testing::decoded;
using testing::Tokens;

constexpr int kFirst = 3, kRecent = 7, kDim = 32;

CacheConfig shape(bool fringe) {
  CacheConfig config;
  config.format = {kDim, 4, 3};
  config.kv_heads = 1;
  config.q_heads = 1;
  config.balance_mode = BalanceMode::kOff;
  config.fringe_first = fringe ? kFirst : 0;
  config.fringe_recent = fringe ? kRecent : 0;
  return config;
}

struct Event {
  bool is_append;
  std::int64_t count;  // tokens appended, or the length truncated to
  std::uint64_t seed;  // of the tokens
};

struct Model {
  std::vector<Event> events;
  std::map<std::int64_t, std::vector<float>> keys;  // by position
  std::map<std::int64_t, std::int64_t> ring;        // slot -> position that was last written there
  std::int64_t length = 0;

  void append(std::int64_t count, std::uint64_t seed) {
    events.push_back({true, count, seed});
    const Tokens tokens(count, shape(true), seed);
    for (std::int64_t i = 0; i < count; ++i, ++length) {
      const auto begin = tokens.keys.begin() + i * kDim;
      keys[length] = {begin, begin + kDim};
      if (length >= kFirst) ring[length % kRecent] = length;
    }
  }
  void truncate(std::int64_t to) {
    events.push_back({false, to, 0});
    length = to;
    keys.erase(keys.lower_bound(to), keys.end());
  }
  bool fringe_holds(std::int64_t p) const {
    const auto slot = ring.find(p % kRecent);
    return p < kFirst || (slot != ring.end() && slot->second == p);
  }
};

void append(PagedCache& cache, const std::vector<NewTokens>& batch, const std::vector<std::uint64_t>& seeds) {
  Tokens all(0, cache.config(), 0);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const Tokens tokens(batch[i].count, cache.config(), seeds[i]);
    all.keys.insert(all.keys.end(), tokens.keys.begin(), tokens.keys.end());
    all.values.insert(all.values.end(), tokens.values.begin(), tokens.values.end());
  }
  const Status status = cache.append(0, batch, all.rows());
  ASSERT_TRUE(status.ok()) << status.error().message;
}

Decoded replayed(const Model& model) {
  PagedCache cache = std::move(PagedCache::create(shape(true)).value());
  const int s = cache.add_sequence().value();
  for (const Event& event : model.events) {
    if (event.is_append) append(cache, {{s, event.count}}, {event.seed});
    else EXPECT_TRUE(cache.truncate(s, event.count).ok());
  }
  return decoded(cache, 0, s);
}

// fp16 rounds y to 2^-11 of itself and rotations in fp32 are exact to far less: 2^-10 of the norm is ample.
void expect_close(const std::vector<float>& token, const float* got) {
  double difference = 0, norm = 0;
  for (std::size_t e = 0; e < kDim; ++e) {
    difference += std::pow(static_cast<double>(token[e]) - static_cast<double>(got[e]), 2);
    norm += std::pow(static_cast<double>(token[e]), 2);
  }
  EXPECT_LE(std::sqrt(difference), 0x1p-10 * std::sqrt(norm));
}

// The cache under test, the same without a fringe, and the model.
struct Trio {
  PagedCache cache = std::move(PagedCache::create(shape(true)).value());
  PagedCache coded = std::move(PagedCache::create(shape(false)).value());
  std::map<int, Model> models;

  void expect_consistent() const {
    std::set<std::int32_t> pages;
    std::size_t references = 0;
    for (const auto& [s, model] : models) {
      ASSERT_EQ(cache.length(s), model.length);
      const Decoded got = decoded(cache, 0, s), from_pages = decoded(coded, 0, s);
      ASSERT_EQ(got, replayed(model)) << "sequence " << s;
      for (std::int64_t p = 0; p < model.length; ++p) {
        const std::size_t at = static_cast<std::size_t>(p) * kDim;
        if (model.fringe_holds(p)) {
          expect_close(model.keys.at(p), got.keys.data() + at);
        } else {
          for (std::size_t e = at; e < at + kDim; ++e) ASSERT_EQ(got.keys[e], from_pages.keys[e]);
          for (std::size_t e = at; e < at + kDim; ++e) ASSERT_EQ(got.values[e], from_pages.values[e]);
        }
      }
      const auto numbers = cache.page_numbers(s);
      pages.insert(numbers.begin(), numbers.end());
      references += numbers.size();
    }
    const CacheUsage u = cache.usage();
    const std::size_t page_bytes = cache.config().format.page_bytes();
    EXPECT_EQ(u.used_bytes, pages.size() * page_bytes);
    EXPECT_EQ(u.shared_bytes, (references - pages.size()) * page_bytes);
    EXPECT_EQ(cache.sequences(), static_cast<int>(models.size()));
  }
};

TEST(PagedCacheProperties, RandomUseKeepsEverySequenceApart) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    core::SplitMix64 random(seed);
    const auto below = [&](std::int64_t n) {
      return static_cast<std::int64_t>(random.next() % static_cast<std::uint64_t>(n));
    };
    Trio t;
    const auto any = [&] {
      auto it = t.models.begin();
      std::advance(it, below(static_cast<std::int64_t>(t.models.size())));
      return it->first;
    };
    for (int step = 0; step < 60; ++step) {
      const std::int64_t what = below(10);
      if (t.models.empty() || (what == 0 && t.models.size() < 5)) {
        const int s = t.cache.add_sequence().value();
        ASSERT_EQ(t.coded.add_sequence().value(), s);
        t.models[s] = {};
      } else if (what == 1 && t.models.size() < 5) {
        const int source = any(), s = t.cache.fork(source).value();
        ASSERT_EQ(t.coded.fork(source).value(), s);
        t.models[s] = Model(t.models.at(source));
      } else if (what <= 3) {
        const int s = any();
        Model& model = t.models.at(s);
        // Often a few tokens (a draft that was refused), sometimes many.
        const std::int64_t to = std::max<std::int64_t>(0, model.length - below(what == 2 ? 12 : 120));
        EXPECT_TRUE(t.cache.truncate(s, to).ok());
        EXPECT_TRUE(t.coded.truncate(s, to).ok());
        model.truncate(to);
      } else if (what == 4 && t.models.size() > 2) {
        const int s = any();
        EXPECT_TRUE(t.cache.free(s).ok());
        EXPECT_TRUE(t.coded.free(s).ok());
        t.models.erase(s);
      } else if (what == 5) {
        std::vector<int> targets, sources;
        for (const auto& entry : t.models) {
          if (below(3) == 0) continue;
          targets.push_back(entry.first);
          sources.push_back(any());
        }
        EXPECT_TRUE(t.cache.reorder(targets, sources).ok());
        EXPECT_TRUE(t.coded.reorder(targets, sources).ok());
        const std::map<int, Model> old = t.models;
        for (std::size_t i = 0; i < targets.size(); ++i) t.models.at(targets[i]) = old.at(sources[i]);
      } else {
        std::vector<NewTokens> batch;
        std::vector<std::uint64_t> seeds;
        for (const auto& entry : t.models) {
          if (below(2) == 0) continue;
          batch.push_back({entry.first, below(3) == 0 ? below(100) : below(4)});
          seeds.push_back(random.next());
        }
        append(t.cache, batch, seeds);
        append(t.coded, batch, seeds);
        for (std::size_t i = 0; i < batch.size(); ++i)
          t.models.at(batch[i].sequence).append(batch[i].count, seeds[i]);
      }
      if (step % 4 == 3) t.expect_consistent();
      if (HasFatalFailure()) return;
    }
    t.expect_consistent();
  }
}

TEST(PagedCacheProperties, AForkOfATruncatedSequenceGoesOnAsItsSourceWould) {
  Trio t;
  const int a = t.cache.add_sequence().value();
  EXPECT_EQ(t.coded.add_sequence().value(), a);
  const auto append_both = [&](int s, std::int64_t count, std::uint64_t seed) {
    append(t.cache, {{s, count}}, {seed});
    append(t.coded, {{s, count}}, {seed});
    t.models[s].append(count, seed);
  };
  append_both(a, 130, 1);
  for (const std::int64_t to : {128, 126, 64, 63, 2}) {
    EXPECT_TRUE(t.cache.truncate(a, to).ok());
    EXPECT_TRUE(t.coded.truncate(a, to).ok());
    t.models[a].truncate(to);
    const int b = t.cache.fork(a).value();
    EXPECT_EQ(t.coded.fork(a).value(), b);
    t.models[b] = Model(t.models.at(a));
    t.expect_consistent();
    append_both(b, 1, 2);
    append_both(a, 3, 3);
    append_both(b, 20, 4);
    t.expect_consistent();
  }
}

}  // namespace
}  // namespace turboquant
