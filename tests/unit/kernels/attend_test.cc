// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "kernels/encode_rules.h"
#include "unit/kernels/world.h"

namespace turboquant::kernels {
namespace {

// |fast - reference| of an fp32 kernel. A score is a sum of about d products of relative error 2^-24 each,
// after a rotation of log2 d additions, so it is off by at most u (d + log2 d + 4) sum |q_e k_e| scale; a
// shift s of the scores changes a softmax average of values at most `most` by 2 s most. Sums of weights and
// values add (64 + tiles) u. Measured errors are 20 to 100 times smaller: random signs cancel.
float bound(World& world, const AttendArgs& a, float largest_value) {
  const double u = 0x1p-24, d = world.d();
  double reach = 0;  // of |q| |k| scale; norms of 64..512 normals with the common component
  reach = 1.2 * std::sqrt(d) * 3.0 * std::sqrt(d) * static_cast<double>(a.scale) * 2.0;
  const double shift = u * (d + 16) * reach;
  return static_cast<float>((2 * shift + 200 * u) * static_cast<double>(largest_value) * std::sqrt(d));
}

void expect_near(World& world, const AttendArgs& a, const std::string& what) {
  const World::Attended expected = world.attend(kReference, a);
  float largest = 1;
  for (const float x : expected.out) largest = std::max(largest, std::fabs(x));
  for (const KernelTable* kernels : fast_tables()) {
    const World::Attended got = world.attend(*kernels, a), again = world.attend(*kernels, a);
    EXPECT_EQ(std::memcmp(got.out.data(), again.out.data(), got.out.size() * 4), 0) << "run to run, " << what;
    const float allowed = bound(world, a, largest);
    for (std::size_t i = 0; i < got.out.size(); ++i)
      ASSERT_NEAR(got.out[i], expected.out[i], allowed) << kernels->name << ", " << what << ", element " << i;
    for (std::size_t i = 0; i < got.lse.size(); ++i) {
      if (std::isinf(expected.lse[i]))
        ASSERT_EQ(got.lse[i], expected.lse[i]) << kernels->name << ", " << what << ", row " << i;
      else
        ASSERT_NEAR(got.lse[i], expected.lse[i], allowed) << kernels->name << ", " << what << ", row " << i;
    }
  }
}

TEST(Attend, AgreesAtEveryHeadDimAndPairOfWidths) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16) {
    Shape shape;
    shape.format = {d, 2 + d / 16 % 3, 2 + d / 48 % 3};
    shape.max_pages = 3;
    World world(shape);
    world.append(kReference, world.random_call({100, 64}));
    expect_near(world, world.attend_args(world.random_call({1, 2})), "head_dim " + std::to_string(d));
  }
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v) {
      Shape shape;
      shape.format = {128, k, v};
      World world(shape);
      world.append(kReference, world.random_call({300, 17}));
      const auto call = world.random_call({1, 1});
      expect_near(world, world.attend_args(call), std::to_string(k) + "/" + std::to_string(v));
    }
}

TEST(Attend, AgreesForAnyGroupAndAnyNumberOfQueries) {
  for (const int group : {1, 2, 3, 7, 8, 16, 32, 40})
    for (const int queries : {1, 2, 9, 70}) {
      Shape shape;
      shape.group = group;
      shape.kv_heads = 1;
      World world(shape);
      world.append(kReference, world.random_call({150, 3}));
      const auto call = world.random_call({queries, 1});
      expect_near(world, world.attend_args(call),
                  std::to_string(group) + " heads, " + std::to_string(queries) + " queries");
    }
}

TEST(Attend, AgreesOnRaggedBatchesWithEmptySequences) {
  Shape shape;
  shape.sequences = 5;
  World world(shape);
  world.append(kReference, world.random_call({0, 1, 64, 200, 65}));
  const auto call = world.random_call({3, 0, 1, 17, 2});
  expect_near(world, world.attend_args(call), "ragged");
}

TEST(Attend, AgreesWithEveryFringe) {
  for (const auto& [first, recent] :
       std::vector<std::pair<int, int>>{{4, 28}, {0, 5}, {3, 0}, {70, 130}, {1, 1}})
    for (const int length : {1, 3, 30, 64, 250}) {
      Shape shape;
      shape.fringe_first = first;
      shape.fringe_recent = recent;
      World world(shape);
      world.append(kReference, world.random_call({length, 1}));
      world.append(kReference, world.random_call({1, 9}));
      const auto call = world.random_call({2, 1});
      expect_near(
          world, world.attend_args(call),
          "fringe " + std::to_string(first) + "+" + std::to_string(recent) + " of " + std::to_string(length));
      world.lengths[0] = std::max(0, world.lengths[0] - 5);  // truncated: the recent part starts late
      world.recent_starts[0] = world.lengths[0];
      expect_near(world, world.attend_args(call), "truncated");
    }
}

TEST(Attend, AgreesWithWindowSoftcapSinksAndPadding) {
  for (const int window : {0, 1, 10, 64, 100})
    for (const float softcap : {0.0f, 5.0f})
      for (const bool sinks : {false, true}) {
        Shape shape;
        shape.starts = {7, 90};
        shape.fringe_first = 4;
        shape.fringe_recent = 20;
        World world(shape);
        world.append(kReference, world.random_call({180, 180}));
        const auto call = world.random_call({30, 80});
        AttendArgs a = world.attend_args(call);
        const std::vector<float> logits(World::n(world.q_heads()), 0.7f);
        a.window = window;
        a.softcap = softcap;
        a.sinks = sinks ? logits.data() : nullptr;
        expect_near(world, a, "window " + std::to_string(window));
        a.keys.data = a.values.data = nullptr;
        expect_near(world, a, "history only, window " + std::to_string(window));
      }
}

TEST(Attend, SeesNothingOfAnEmptySequence) {
  World world({});
  const auto call = world.random_call({1, 2});
  AttendArgs a = world.attend_args(call);
  a.keys.data = a.values.data = nullptr;
  for (const KernelTable* kernels : all()) {
    if (!kernels->runs_here()) continue;
    const auto got = world.attend(*kernels, a);
    for (const float x : got.out) EXPECT_EQ(x, 0.0f) << kernels->name;
    for (const float x : got.lse) EXPECT_EQ(x, -INFINITY) << kernels->name;
  }
}

TEST(Attend, NeverReadsSlotsBeyondTheLength) {
  Shape shape;
  shape.sequences = 1;
  World world(shape);
  world.append(kReference, world.random_call({70}));
  const auto call = world.random_call({4});
  for (const KernelTable* kernels : all()) {
    if (!kernels->runs_here()) continue;
    const auto before = world.attend(*kernels, world.attend_args(call));
    World garbage = world;
    const PageFormat& format = shape.format;
    for (int h = 0; h < shape.kv_heads; ++h) {
      std::uint8_t* page = page_of(garbage.pages(), garbage.sequences(nullptr), 0, 1, h);
      for (int t = 6; t < kPageTokens; ++t) {  // NaN scales; codes of all ones
        set_half(page + format.k_scales_offset(), 8 * (t % 8) + t / 8, 0x7e00);
        set_half(page + format.v_scales_offset(), 8 * (t % 8) + t / 8, 0xfe00);
      }
    }
    const auto after = garbage.attend(*kernels, garbage.attend_args(call));
    EXPECT_EQ(before.out, after.out) << kernels->name;
    EXPECT_EQ(before.lse, after.lse) << kernels->name;
  }
}

TEST(Attend, GivesNanOnlyToQueriesThatSeeTheNanToken) {
  Shape shape;
  shape.sequences = 1;
  World world(shape);
  world.append(kReference, world.random_call({40}));
  auto call = world.random_call({6});
  for (int e = 0; e < shape.kv_heads * 64; ++e)
    call.values[World::n(3 * shape.kv_heads * 64 + e)] = NAN;  // token 3
  for (const KernelTable* kernels : all()) {
    if (!kernels->runs_here()) continue;
    const auto got = world.attend(*kernels, world.attend_args(call));
    const std::size_t row = World::n(world.q_heads() * 64);
    for (std::size_t i = 0; i < got.out.size(); ++i)
      ASSERT_EQ(std::isnan(got.out[i]), i / row >= 3) << kernels->name << ", element " << i;
  }
}

}  // namespace
}  // namespace turboquant::kernels
