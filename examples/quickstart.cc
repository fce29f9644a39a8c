// SPDX-License-Identifier: Apache-2.0
// A layer of a model with random numbers for its queries, keys and values: 1,000 tokens of prompt, then ten
// more, one at a time. Built with the tests: build/dev/examples/quickstart
#include <turboquant/cache.h>

#include <cstdio>
#include <random>
#include <vector>

namespace tq = turboquant;

constexpr int kHeadDim = 128, kKvHeads = 8, kQueryHeads = 32;

int main() {
  auto made = tq::PagedCache::create(
      {.format = {kHeadDim, 4, 4}, .layers = 1, .kv_heads = kKvHeads, .q_heads = kQueryHeads});
  if (!made.ok()) return std::fprintf(stderr, "%s\n", made.error().message.c_str()), 1;
  tq::PagedCache& cache = made.value();
  const int chat = cache.add_sequence().value();

  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const int tokens : {1000, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}) {
    const auto vectors = [&](int heads) {
      std::vector<float> x(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(heads * kHeadDim));
      for (float& value : x) value = normal(random);
      return x;
    };
    const auto q = vectors(kQueryHeads), k = vectors(kKvHeads), v = vectors(kKvHeads);
    std::vector<float> out(q.size());
    const tq::Status status = cache.step(0, {chat, tokens},
                                         {.query = tq::contiguous(q.data(), kQueryHeads, kHeadDim),
                                          .keys = tq::contiguous(k.data(), kKvHeads, kHeadDim),
                                          .values = tq::contiguous(v.data(), kKvHeads, kHeadDim)},
                                         tq::contiguous_out(out.data(), kQueryHeads, kHeadDim));
    if (!status.ok()) return std::fprintf(stderr, "%s\n", status.error().message.c_str()), 1;
  }

  const tq::CacheUsage usage = cache.usage();
  std::printf(
      "%lld tokens: %zu bytes in pages and fringe, %zu as bf16: %.2f x smaller\n",
      static_cast<long long>(cache.length(chat)), usage.used_bytes + usage.fringe_bytes, usage.baseline_bytes,
      static_cast<double>(usage.baseline_bytes) / static_cast<double>(usage.used_bytes + usage.fringe_bytes));
}
