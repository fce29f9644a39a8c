// SPDX-License-Identifier: Apache-2.0
// Every kernel's territory: widths, head dims, groups, numbers of queries, batches.
#include <cmath>

#include "expect_attend.h"
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(Attend, AgreesAtEveryPairOfWidthsAndFastHeadDim) {
  int turn = 0;
  for (const int d : {64, 80, 96, 128, 192, 256})
    for (int k = 2; k <= 4; ++k)
      for (int v = 2; v <= 4; ++v) {
        Shape shape;
        shape.format = {d, k, v};
        shape.group = 4;
        for (const auto& own : {std::vector{1, 1}, {9, 70}})
          expect_attend(shape, {{300, 17}}, own,
                        name_of(shape.format) + ", " + std::to_string(own[0]) + " queries",
                        kDTypes[turn++ % 3]);
      }
}

TEST(Attend, AgreesAtEveryHeadDim) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16) {
    Shape shape;
    shape.format = {d, 2 + d / 16 % 3, 2 + d / 48 % 3};
    shape.max_pages = 3;
    shape.fringe_first = d % 32 == 0 ? 4 : 0;
    shape.fringe_recent = d % 32 == 0 ? 28 : 0;
    expect_attend(shape, {{100, 64}}, {1, 2}, name_of(shape.format), kDTypes[d / 16 % 3]);
    expect_attend(shape, {{100, 64}}, {40, 20}, name_of(shape.format) + ", 40 queries", kDTypes[d / 16 % 3]);
  }
}

TEST(Attend, AgreesForAnyGroupAndAnyNumberOfQueries) {
  for (int group = 1; group <= 17; ++group)
    for (const int queries : {1, 2, 3, 4, 5, 6, 7, 8, 40}) {
      Shape shape;
      shape.format = {group % 2 == 0 ? 128 : 64, 4, 4};
      shape.group = group == 17 ? 32 : group;
      shape.kv_heads = 2;
      if (!expect_attend(shape, {{200, 3}}, {queries, 1},
                         std::to_string(shape.group) + " heads, " + std::to_string(queries) + " queries",
                         kDTypes[(group + queries) % 3]))
        return;
    }
}

TEST(Attend, AgreesForHundredsOfQueries) {
  for (const DType dtype : kDTypes)
    for (const int group : {1, 4}) {
      Shape shape;
      shape.format = {128, 4, 4};
      shape.group = group;
      shape.kv_heads = 1;
      shape.max_pages = 12;
      shape.fringe_first = 4;
      shape.fringe_recent = 28;
      expect_attend(shape, {{333, 70}}, {300, 5}, std::string("300 queries, ") + turboquant::name_of(dtype),
                    dtype);
    }
}

TEST(Attend, AgreesOnRaggedBatchesWithEmptySequences) {
  for (const DType dtype : kDTypes)
    for (const int fringe : {0, 20}) {
      Shape shape;
      shape.format = {128, 4, 3};
      shape.sequences = 7;
      shape.fringe_recent = fringe;
      expect_attend(shape, {{0, 1, 64, 200, 65, 0, 129}}, {3, 0, 1, 17, 2, 1, 0}, "ragged", dtype);
      expect_attend(shape, {{0, 1, 64, 200, 65, 0, 129}}, {1, 1, 1, 1, 1, 1, 1}, "one query each", dtype);
      expect_attend(shape, {{0, 1, 64, 200, 65, 0, 129}}, {1, 0, 1, 0, 0, 1, 1}, "one query or none", dtype);
    }
}

TEST(Attend, AgreesOnABatchOfManyShortSequences) {
  Shape shape;
  shape.format = {64, 4, 4};
  shape.sequences = 200;
  shape.max_pages = 2;
  shape.group = 4;
  shape.fringe_first = 4;
  shape.fringe_recent = 28;
  std::vector<int> history;
  for (int i = 0; i < shape.sequences; ++i) history.push_back(i * 37 % 120);
  expect_attend(shape, {history}, std::vector<int>(200, 1), "200 sequences", DType::kBF16);
}

// With 64 KV heads an H100 has two blocks a head, and two of their warps have a sequence between them.
TEST(Attend, AgreesOnAsManyEqualSequencesAsThereAreHalvesOfBlocks) {
  for (const int group : {1, 3, 4})
    for (const int fringe : {0, 28}) {
      Shape shape;
      shape.format = {128, 4, 4};
      shape.kv_heads = 64;
      shape.group = group;
      shape.sequences = 8;
      shape.max_pages = 5;
      shape.fringe_first = fringe > 0 ? 4 : 0;
      shape.fringe_recent = fringe;
      expect_attend(shape, {std::vector<int>(8, 250)}, std::vector<int>(8, 1),
                    std::to_string(group) + " heads, fringe " + std::to_string(fringe), DType::kBF16);
    }
}

// The same of two pages each, or of two pages and two pieces of fringe: 8 warps have 4 sequences. Fewer than
// 8 sequences would be another kernel's. 4 and 8 rows, and less than that.
TEST(Attend, AgreesOnSequencesOfTwoWarpsAtEveryFastHeadDimAndKindOfWidths) {
  struct Case {
    int k_bits, v_bits, queries, group;
  };
  int turn = 0;
  for (const int d : {64, 80, 96, 128, 192, 256})
    for (const Case& of : {Case{4, 4, 1, 4}, {4, 4, 2, 4}, {3, 3, 1, 3}, {4, 3, 1, 4}, {2, 4, 2, 3}}) {
      Shape shape;
      shape.format = {d, of.k_bits, of.v_bits};
      shape.kv_heads = 64;
      shape.group = of.group;
      shape.sequences = 8;
      shape.max_pages = 2;
      shape.fringe_first = turn % 3 == 0 ? 4 : 0;
      shape.fringe_recent = turn % 3 == 0 ? 28 : 0;
      const int history = turn % 3 == 0 ? 97 : 66;
      expect_attend(shape, {std::vector<int>(8, history)}, std::vector<int>(8, of.queries),
                    name_of(shape.format) + ", " + std::to_string(of.queries) + " queries",
                    turn % 2 == 0 ? DType::kBF16 : DType::kF16);
      ++turn;
    }
}

// Rows of queries that no vector load may touch: a slice of something.
TEST(Attend, ReadsQueriesAtAnyAddress) {
  for (const int d : {64, 128, 256})
    for (const int queries : {1, 2}) {
      Shape shape;
      shape.format = {d, 4, 4};
      shape.group = 4;
      World world(shape);
      world.append(kernels::kReference, world.random_call({130, 5}));
      DeviceWorld device(world);
      const World::Call call = world.random_call({queries, 1});
      const DeviceCall there(call, DType::kBF16);
      std::vector<std::uint8_t> bytes = to_bytes(DType::kBF16, call.query);
      bytes.insert(bytes.begin(), {0xff, 0xff});
      const DeviceArray<std::uint8_t> shifted(bytes);
      AttendArgs a = device.attend_args(there);
      a.query.data = shifted.data() + 2;
      device.set_workspace(a);
      const DeviceAttended got = device.outputs(a, DType::kBF16);
      ASSERT_TRUE(attend(a, device.context()).ok());
      EXPECT_EQ(got.out.download(), attend_on_device(device, there).out.download()) << d << ", " << queries;
    }
}

TEST(Attend, AgreesOnThousandsOfSequences) {
  for (const int sequences : {1024, 4100}) {
    Shape shape;
    shape.format = {64, 4, 4};
    shape.kv_heads = 1;
    shape.group = 4;
    shape.sequences = sequences;
    shape.max_pages = 2;
    std::vector<int> history;
    for (int i = 0; i < sequences; ++i) history.push_back(i * 37 % 90);
    expect_attend(shape, {history}, std::vector<int>(World::n(sequences), 1),
                  std::to_string(sequences) + " sequences", DType::kBF16);
  }
}

// 16 heads want a row tile that does not fit beside so many sequences' sums: a smaller one has to do.
TEST(Attend, AgreesOnThousandsOfSequencesOfManyHeads) {
  Shape shape;
  shape.format = {128, 3, 3};
  shape.kv_heads = 1;
  shape.group = 16;
  shape.sequences = 2000;
  shape.max_pages = 1;
  std::vector<int> history;
  for (int i = 0; i < shape.sequences; ++i) history.push_back(i * 37 % 50);
  expect_attend(shape, {history}, std::vector<int>(World::n(shape.sequences), 1),
                "2,000 sequences of 16 heads", DType::kBF16);
}

TEST(Attend, NeedsTheSameWorkspaceHoweverManySequencesTheTokensAreOf) {
  const Context context{.device = {DeviceType::kCuda, 0}, .stream = {}, .executor = nullptr};
  for (const int head_dim : {64, 128, 256})
    for (const int tokens : {1, 2, 8, 40, 600}) {
      const PageFormat format{head_dim, 4, 4};
      const std::size_t one = attend_workspace_bytes(format, 8, 32, 1, tokens, context);
      EXPECT_GT(one, 0u);
      for (const int sequences : {2, 3, 16, 200})
        EXPECT_EQ(attend_workspace_bytes(format, 8, 32, sequences, tokens, context), one)
            << head_dim << ", " << tokens << " tokens of " << sequences;
    }
}

// The call's own keys and values are 16-bit floats of any size; fp16, in which the kernel keeps them, is not.
TEST(Attend, TakesOwnValuesOfAnyMagnitude) {
  for (const float magnitude : {1e-20f, 1e-6f, 1e6f, 1e20f}) {
    Shape shape;
    shape.format = {128, 4, 4};
    shape.group = 4;
    World world(shape);
    World::Call call = world.random_call({1, 2});
    for (float& x : call.values) x *= magnitude;
    round_to(DType::kBF16, call);
    const World::Attended expected = attend_on_host(world, call);
    DeviceWorld device(world);
    const std::vector<float> got = attend_on_device(device, DeviceCall(call, DType::kBF16)).out_floats();
    float largest = 0;
    for (const float x : expected.out) largest = std::max(largest, std::fabs(x));
    for (std::size_t i = 0; i < got.size(); ++i)  // bf16 has 8 bits
      ASSERT_NEAR(got[i], expected.out[i], largest / 128) << magnitude << ", element " << i;
  }
}

// Weights are relative to what a row has met so far, values' scales to what they have been.
TEST(Attend, AgreesWhenScoresAndValuesGrowOrShrinkAlongTheHistory) {
  for (const bool grow : {true, false})
    for (const int queries : {1, 2, 5, 10, 40}) {
      Shape shape;
      shape.format = {128, 4, 4};
      World world(shape);
      for (int step = 0; step < 6; ++step) {
        const int size = grow ? step : 5 - step;
        World::Call call = world.random_call({64, 50});
        for (float& x : call.keys) x *= std::exp2(static_cast<float>(size - 3));
        for (float& x : call.values) x *= std::pow(10.0f, static_cast<float>(size - 2));
        world.append(kernels::kReference, call);
      }
      World::Call call = world.random_call({queries, queries});
      for (float& x : call.values) x = 0;
      round_to(DType::kBF16, call);
      const World::Attended expected = attend_on_host(world, call);
      DeviceWorld device(world);
      const DeviceAttended got = attend_on_device(device, DeviceCall(call, DType::kBF16));
      const std::vector<float> out = got.out_floats();
      float largest = 0;
      for (const float x : expected.out) largest = std::max(largest, std::fabs(x));
      for (std::size_t i = 0; i < out.size(); ++i)  // bf16 has 8 bits
        ASSERT_NEAR(out[i], expected.out[i], largest / 128)
            << (grow ? "growing, " : "shrinking, ") << queries << " queries, " << place(world, i);
    }
}

TEST(Attend, AgreesOnALongHistory) {
  for (const int group : {1, 4, 8}) {
    Shape shape;
    shape.format = {128, 4, 4};
    shape.group = group;
    shape.kv_heads = 1;
    shape.sequences = 2;
    shape.max_pages = 160;
    expect_attend(shape, {{10000, 4000}}, {1, 2}, std::to_string(group) + " heads, 10,000 tokens");
  }
}

}  // namespace
}  // namespace turboquant::gpu
