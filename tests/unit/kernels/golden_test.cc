// SPDX-License-Identifier: Apache-2.0
// The bytes of format v1 are frozen: tests/golden/page_v1_*.bin. TQ_WRITE_GOLDEN=1 writes the files anew,
// which only a new kFormatVersion may ask for.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "unit/kernels/world.h"

namespace turboquant::kernels {
namespace {

// Inputs that no library computes: multiples of 1/64 from a linear congruential generator, with a common
// component for keys and a token of NaN, one of zeros, one of large values.
std::vector<float> vectors(int tokens, int d, std::uint32_t seed, float common) {
  std::vector<float> out;
  for (int t = 0; t < tokens; ++t)
    for (int e = 0; e < d; ++e) {
      seed = seed * 1664525u + 1013904223u;
      const float noise = static_cast<float>(static_cast<int>(seed >> 24) - 128) / 64.0f;
      out.push_back(t == 7 ? 0.0f : t == 9 ? noise * 65536.0f : noise + (e % 5 == 0 ? common : 0.0f));
    }
  out[World::n(11 * d + 3)] = NAN;
  return out;
}

// Two pages of one sequence: a prefill of 70 tokens and five appended one by one.
std::vector<std::uint8_t> encode_golden(const KernelTable& kernels, const PageFormat& format, bool metric) {
  Shape shape;
  shape.format = format;
  shape.kv_heads = shape.group = shape.sequences = 1;
  shape.max_pages = 2;
  World world(shape);
  const int d = format.head_dim;
  for (int e = 0; e < d; ++e) {
    const auto at = World::n(e);
    world.key_signs[at] = (e * e % 7 < 3 ? 1.0f : -1.0f) * (1.0f + static_cast<float>(e % 4) / 4.0f);
    world.value_signs[at] = e * e % 11 < 5 ? 1.0f : -1.0f;
  }
  if (metric) {
    std::vector<int> f;
    for (int e = 0; e < d; ++e) f.push_back(e * e % 15 - 7);
    world.add_metric(f);
  }
  world.table = {0, 1};
  const auto keys = vectors(75, d, 1, 3.0f), values = vectors(75, d, 2, 0.0f);
  for (int token = 0; token < 75; token += token == 0 ? 70 : 1) {
    const int count = token == 0 ? 70 : 1;
    const auto begin = token * d, end = (token + count) * d;
    World::Call call{{0, count},
                     {},
                     {keys.begin() + begin, keys.begin() + end},
                     {values.begin() + begin, values.begin() + end}};
    world.append(kernels, call);
  }
  return world.page_bytes;
}

void expect_golden(const PageFormat& format, bool metric) {
  const std::string path = TQ_GOLDEN_DIR "/page_v1_" + std::to_string(format.head_dim) + "_" +
                           std::to_string(format.k_bits) + std::to_string(format.v_bits) +
                           (metric ? "_metric.bin" : ".bin");
  if (std::getenv("TQ_WRITE_GOLDEN") != nullptr) {
    const auto bytes = encode_golden(kReference, format, metric);
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  std::ifstream file(path, std::ios::binary);
  const std::vector<std::uint8_t> expected{std::istreambuf_iterator<char>(file), {}};
  ASSERT_EQ(expected.size(), 2 * format.page_bytes()) << path;
  for (const KernelTable* kernels : all()) {
    if (!kernels->runs_here()) continue;
    EXPECT_EQ(encode_golden(*kernels, format, metric), expected) << kernels->name << ", " << path;
  }
}

TEST(Golden, PagesOfFormatV1KeepTheirBytes) {
  for (const PageFormat format :
       {PageFormat{128, 4, 4}, PageFormat{64, 3, 2}, PageFormat{80, 2, 3}, PageFormat{144, 4, 3}})
    expect_golden(format, false);
}

TEST(Golden, PagesWithAMetricKeepTheirBytes) {
  for (const PageFormat format : {PageFormat{128, 4, 4}, PageFormat{64, 3, 2}}) expect_golden(format, true);
}

}  // namespace
}  // namespace turboquant::kernels
