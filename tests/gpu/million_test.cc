// SPDX-License-Identifier: Apache-2.0
// One sequence of 2^20 tokens and some: its page table repeats a few pages, so what attention gives is a sum
// over their tokens with multiplicities.
#include "expect_attend.h"

namespace turboquant::gpu {
namespace {

constexpr int kRepeated = 3;             // pages that make up most of the history
constexpr int kLength = (1 << 20) + 37;  // of the history
constexpr int kTablePages = kLength / kPageTokens + 2;
constexpr int kRarePlaces[] = {2, 8192, 16383};  // of pages that stand in the table once, and weigh as much

Shape shape_of(int head_dim, int group) {
  Shape shape;
  shape.format = {head_dim, 4, 4};
  shape.kv_heads = 1;
  shape.group = group;
  shape.sequences = 1;
  shape.max_pages = kRepeated + 3;
  return shape;
}

constexpr int kWindow = (1 << 19) + 5;  // from within the second rare page

// Keys of a rare page have `boost` of a direction of signs more, queries 1: a score higher by about
// log(2^14 pages / 3). Each rare page then has a sixth of the weight, or so.
struct Million {
  explicit Million(const Shape& shape) : world(shape) {
    const int d = world.d();
    for (int e = 0; e < d; ++e) direction.push_back(world.rng() % 2 != 0 ? 1.0f : -1.0f);
    const float boost = std::log(16384.0f / 3) / std::sqrt(static_cast<float>(d));
    World::Call call = world.random_call({shape.max_pages * kPageTokens});
    for (std::size_t i = World::n(kRepeated * kPageTokens * d); i < call.keys.size(); ++i)
      call.keys[i] += boost * direction[i % World::n(d)];
    world.append(kernels::kReference, call);
    for (int p = 0; p < kTablePages; ++p) pages.push_back(p * 7 % kRepeated);
    for (int r = 0; r < 3; ++r) pages[World::n(kRarePlaces[r])] = kRepeated + r;
    const std::size_t size = World::n(world.lengths[0] * d);
    keys.resize(size);
    values.resize(size);
    DecodeArgs all{world.pages(), world.basis(),    world.fringe(), world.sequences(nullptr),
                   DType::kF32,   world.lengths[0], keys.data(),    values.data()};
    kernels::kReference.decode(all, default_executor());
  }

  World::Call call_of(int tokens, DType dtype) {
    World::Call call = world.random_call({tokens});
    for (std::size_t i = 0; i < call.query.size(); ++i) call.query[i] += direction[i % direction.size()];
    round_to(dtype, call);
    return call;
  }

  // How often each token of the few pages is seen from position kLength + t.
  std::vector<int> seen_from(int t, int window) const {
    std::vector<int> times(World::n(world.lengths[0]), 0);
    for (int p = window > 0 ? std::max(0, kLength + t - window + 1) : 0; p < kLength; ++p)
      ++times[World::n(pages[World::n(p / kPageTokens)] * kPageTokens + p % kPageTokens)];
    return times;
  }

  World::Attended expected(const World::Call& call, const AttendArgs& a) const {
    const int d = world.d(), heads = world.q_heads();
    World::Attended result;
    for (int t = 0; t < call.tokens(); ++t) {
      const std::vector<int> times = seen_from(t, a.window);
      for (int h = 0; h < heads; ++h) {
        const float* query = call.query.data() + World::n((t * heads + h) * d);
        double sum = 0;
        std::vector<double> out(World::n(d), 0.0);
        const auto add = [&](const float* key, const float* value, int count) {
          double score = 0;
          for (int e = 0; e < d; ++e) score += static_cast<double>(query[e]) * static_cast<double>(key[e]);
          const double weight = count * std::exp(static_cast<double>(a.scale) * score);
          sum += weight;
          for (int e = 0; e < d; ++e) out[World::n(e)] += weight * static_cast<double>(value[e]);
        };
        for (std::size_t i = 0; i < times.size(); ++i)
          if (times[i] > 0) add(keys.data() + i * World::n(d), values.data() + i * World::n(d), times[i]);
        for (int i = a.window > 0 ? std::max(0, t - a.window + 1) : 0; i <= t; ++i)
          add(call.keys.data() + World::n(i * d), call.values.data() + World::n(i * d), 1);
        for (const double x : out) result.out.push_back(static_cast<float>(x / sum));
        result.lse.push_back(static_cast<float>(std::log(sum)));
      }
    }
    return result;
  }

  World world;
  std::vector<float> direction, keys, values;  // of the few pages, decoded
  std::vector<std::int32_t> pages;             // the table, in pages of the world's only sequence
};

void expect_million(const Shape& shape, const std::vector<int>& tokens, DType dtype) {
  Million million(shape);
  DeviceWorld device(million.world);
  std::vector<std::int32_t> table;
  for (const std::int32_t page : million.pages) table.push_back(million.world.table[World::n(page)]);
  device.table = DeviceArray<std::int32_t>(table);
  device.shape.max_pages = kTablePages;
  device.lengths.upload({kLength});
  for (const int count : tokens)
    for (const int window : {0, kWindow}) {
      const World::Call call = million.call_of(count, dtype);
      const Options options{.window = window};
      AttendArgs host = million.world.attend_args(call);
      apply(options, host, nullptr);
      const DeviceAttended got = attend_on_device(device, DeviceCall(call, dtype), options);
      const std::string what = "head_dim " + std::to_string(million.world.d()) + ", " +
                               turboquant::name_of(dtype) + ", " + std::to_string(count) +
                               " queries, window " + std::to_string(window);
      if (!expect_close(million.world, got.out_floats(), got.lse.download(), million.expected(call, host),
                        allowed(million.world, call, host, dtype, kLength), what))
        return;
    }
}

TEST(Million, AttendAgreesWithFewQueries) {
  for (const int group : {1, 4, 16}) expect_million(shape_of(128, group), {1, 2}, DType::kBF16);
  expect_million(shape_of(64, 4), {1}, DType::kF16);
}

TEST(Million, AttendAgreesWithManyQueries) {
  for (const int d : {64, 128}) expect_million(shape_of(d, 1), {64, 100}, DType::kBF16);
}

TEST(Million, AttendAgreesInFp32AndAtOtherHeadDims) {
  expect_million(shape_of(48, 1), {1, 40}, DType::kBF16);
  expect_million(shape_of(128, 1), {1}, DType::kF32);
}

}  // namespace
}  // namespace turboquant::gpu
