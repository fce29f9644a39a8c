// SPDX-License-Identifier: Apache-2.0
// What does a pool that grows cost, by how much it grows each time? (docs/adr/0004)
//   growth/P      a pool of one layer (8 KV heads, head_dim 128, 4/4 bits: 69,632 bytes a page) grows from 1
//   to
//                 1,024 pages (65,536 tokens), a page at a time, by P percent when it is full; P = 0: by 16
//                 pages. copied: bytes moved for each byte of the final pool. slack_mean, slack_max:
//                 allocated over used.
//   append/grows  16,384 tokens through PagedCache in calls of 256, in one layer; append/fixed: with
//   capacity_tokens.
// Run: build/dev/benchmarks/pool_growth --benchmark_out=pool_growth.json --benchmark_out_format=json
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cache/growth.h"
#include "core/random.h"
#include "turboquant/cache.h"

namespace {

using namespace turboquant;

constexpr PageFormat kFormat{128, 4, 4};
constexpr int kKvHeads = 8;
constexpr std::size_t kPageBytes = kFormat.page_bytes() * kKvHeads;

void growth(benchmark::State& state) {
  const std::int64_t percent = state.range(0), pages = 1024;
  double copied = 0, slack_sum = 0, slack_max = 0;
  for (auto _ : state) {
    cache::Buffer pool;
    std::int64_t capacity = 0;
    copied = slack_sum = slack_max = 0;
    for (std::int64_t used = 1; used <= pages; ++used) {
      if (used > capacity) {
        copied += static_cast<double>(capacity);
        capacity = percent == 0 ? capacity + 16 : std::max(used, capacity + capacity * percent / 100);
        if (!pool.grow(static_cast<std::size_t>(capacity) * kPageBytes))
          return state.SkipWithError("no memory");
      }
      std::memset(pool.data() + static_cast<std::size_t>(used - 1) * kPageBytes, 1, kPageBytes);
      const double slack = static_cast<double>(capacity) / static_cast<double>(used);
      slack_sum += slack;
      if (used >= 16) slack_max = std::max(slack_max, slack);
    }
    benchmark::DoNotOptimize(pool.data());
  }
  state.counters["copied"] = copied / static_cast<double>(pages);
  state.counters["slack_mean"] = slack_sum / static_cast<double>(pages);
  state.counters["slack_max"] = slack_max;
  state.SetItemsProcessed(state.iterations() * pages * kPageTokens);
}
BENCHMARK(growth)->Arg(0)->Arg(25)->Arg(50)->Arg(100)->Unit(benchmark::kMillisecond);

void append(benchmark::State& state, std::int64_t capacity_tokens) {
  constexpr std::int64_t kTokens = 16384, kCall = 256;
  CacheConfig config;
  config.format = kFormat;
  config.kv_heads = config.q_heads = kKvHeads;
  config.capacity_tokens = capacity_tokens;
  config.balance_mode = BalanceMode::kOff;
  std::vector<float> vectors(static_cast<std::size_t>(kCall * kKvHeads * 128));
  core::Gaussian gaussian(1);
  for (float& x : vectors) x = static_cast<float>(gaussian.next());
  const Rows rows = contiguous(vectors.data(), kKvHeads, 128);
  for (auto _ : state) {
    Result<PagedCache> made = PagedCache::create(config);
    const int s = made.value().add_sequence().value();
    for (std::int64_t n = 0; n < kTokens; n += kCall)
      if (!made.value().append(0, {s, kCall}, {{}, rows, rows}).ok())
        return state.SkipWithError("append failed");
  }
  state.SetItemsProcessed(state.iterations() * kTokens);
}
BENCHMARK_CAPTURE(append, grows, 0)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(append, fixed, 16384)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
