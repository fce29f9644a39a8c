// SPDX-License-Identifier: Apache-2.0
// Prints what a chat of 500 tokens takes in a model of 4 layers with 8 KV heads of 128.
#include <turboquant/turboquant.h>

#include <cstdio>
#include <vector>

int main() {
  constexpr int kLayers = 4, kKvHeads = 8, kHeadDim = 128, kTokens = 500;
  auto cache = turboquant::PagedCache::create(
      {.format = {kHeadDim, 4, 4}, .layers = kLayers, .kv_heads = kKvHeads, .q_heads = kKvHeads});
  if (!cache.ok()) return std::fprintf(stderr, "%s\n", cache.error().message.c_str()), 1;
  const int chat = cache.value().add_sequence().value();

  const std::vector<float> rows(std::size_t{kTokens} * kKvHeads * kHeadDim, 1.0f);
  std::vector<float> out(rows.size());
  const auto in = turboquant::contiguous(rows.data(), kKvHeads, kHeadDim);
  for (int layer = 0; layer < kLayers; ++layer) {
    const turboquant::Status status =
        cache.value().step(layer, {chat, kTokens}, {.query = in, .keys = in, .values = in},
                           turboquant::contiguous_out(out.data(), kKvHeads, kHeadDim));
    if (!status.ok()) return std::fprintf(stderr, "%s\n", status.error().message.c_str()), 1;
  }
  const turboquant::CacheUsage usage = cache.value().usage();
  std::printf("turboquant %s: %d tokens in %zu KiB, %zu KiB as bf16\n", turboquant::version(), kTokens,
              (usage.used_bytes + usage.fringe_bytes) / 1024, usage.baseline_bytes / 1024);
}
