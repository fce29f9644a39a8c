// SPDX-License-Identifier: Apache-2.0
// What a call may ask: fringe, truncation, window, softcap, sinks, padding, no tokens of its own.
#include "expect_attend.h"

namespace turboquant::gpu {
namespace {

std::vector<float> sinks_of(const Shape& shape) {
  std::vector<float> sinks;
  for (int h = 0; h < shape.kv_heads * shape.group; ++h)
    sinks.push_back(0.7f * static_cast<float>(h % 3 - 1));
  return sinks;
}

// 16-bit calls go to the tensor cores' kernels, fp32 ones to the one for everything.
constexpr DType kKinds[] = {DType::kF16, DType::kF32};

void expect_fringe(int first, int recent, int length, int queries, DType dtype) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.fringe_first = first;
  shape.fringe_recent = recent;
  World world(shape);
  world.append(kernels::kReference, world.random_call({length, 1}));
  world.append(kernels::kReference, world.random_call({1, 9}));
  DeviceWorld device(world);
  const std::string what = "fringe " + std::to_string(first) + "+" + std::to_string(recent) + " of " +
                           std::to_string(length) + ", " + std::to_string(queries) + " queries, " +
                           turboquant::name_of(dtype);
  if (!expect_attend(world, device, world.random_call({queries, 1}), what, dtype)) return;
  world.lengths[0] = std::max(0, world.lengths[0] - 5);  // truncated: the recent part starts late
  world.recent_starts[0] = world.lengths[0];
  device.upload(world);
  if (!expect_attend(world, device, world.random_call({queries, 1}), what + ", truncated", dtype)) return;
  world.append(kernels::kReference, world.random_call({2, 0}));
  device.upload(world);
  expect_attend(world, device, world.random_call({queries, 1}), what + ", grown again", dtype);
}

TEST(AttendOptions, AgreesWithEveryFringe) {
  for (const auto& [first, recent] :
       std::vector<std::pair<int, int>>{{4, 28}, {0, 5}, {3, 0}, {70, 130}, {1, 1}, {0, 64}})
    for (const int length : {1, 3, 30, 64, 250})
      for (const int queries : {1, 20})
        for (const DType dtype : kKinds) {
          expect_fringe(first, recent, length, queries, dtype);
          if (HasFailure()) return;
        }
}

TEST(AttendOptions, AgreesWithWindowSoftcapSinksAndPadding) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.starts = {7, 90};
  shape.fringe_first = 4;
  shape.fringe_recent = 20;
  World world(shape);
  world.append(kernels::kReference, world.random_call({180, 180}));
  DeviceWorld device(world);
  for (const DType dtype : kKinds)
    for (const int window : {0, 1, 10, 64, 100, 1000})
      for (const float softcap : {0.0f, 5.0f})
        for (const bool sinks : {false, true})
          for (const std::vector<int>& own : {std::vector{30, 80}, {1, 1}, {1, 3}, {5, 4}, {9, 10}})
            for (const bool history_only : {false, true}) {
              Options options{.window = window, .softcap = softcap, .history_only = history_only};
              if (sinks) options.sinks = sinks_of(shape);
              const std::string what = "window " + std::to_string(window) + ", softcap " +
                                       std::to_string(softcap) + (sinks ? ", sinks, " : ", ") +
                                       std::to_string(own[0]) + "+" + std::to_string(own[1]) + " queries, " +
                                       turboquant::name_of(dtype) + (history_only ? ", history only" : "");
              if (!expect_attend(world, device, world.random_call(own), what, dtype, options)) return;
            }
}

// Where many_rows has no wgmma.
TEST(AttendOptions, AgreesWithWindowSoftcapSinksAndPaddingAtEveryFastHeadDim) {
  for (const int d : {64, 80, 96, 192, 256}) {
    Shape shape;
    shape.format = {d, 4, 3};
    shape.starts = {7, 90};
    shape.fringe_first = 4;
    shape.fringe_recent = 20;
    World world(shape);
    world.append(kernels::kReference, world.random_call({180, 180}));
    DeviceWorld device(world);
    for (const DType dtype : {DType::kF16, DType::kBF16})
      for (const int window : {0, 10, 100})
        for (const float softcap : {0.0f, 5.0f})
          for (const bool sinks : {false, true}) {
            Options options{.window = window, .softcap = softcap};
            if (sinks) options.sinks = sinks_of(shape);
            const std::string what = "head_dim " + std::to_string(d) + ", window " + std::to_string(window) +
                                     ", softcap " + std::to_string(softcap) + (sinks ? ", sinks, " : ", ") +
                                     turboquant::name_of(dtype);
            if (!expect_attend(world, device, world.random_call({30, 80}), what, dtype, options)) return;
          }
  }
}

TEST(AttendOptions, AgreesWithoutTokensOfTheCallsOwn) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
    for (const std::vector<int>& own : {std::vector{1, 1}, {4, 2}, {100, 1}}) {
      for (const int group : {3, 16}) {
        Shape shape;
        shape.format = {64, 4, 4};
        shape.group = group;
        shape.max_pages = 20;
        expect_attend(shape, {{1000, 0}}, own, "history only, group " + std::to_string(group), dtype,
                      {.history_only = true});
      }
    }
}

// 0 and 40 say nothing of kernels, 3 that all are short, 20 that all are long: it is right where it is wrong
// too.
TEST(AttendOptions, AgreesWhateverIsSaidOfTheMostTokensOfASequence) {
  for (const int group : {1, 4, 16})
    for (const std::vector<int>& own : {std::vector{3, 3}, {20, 20}, {1, 39}, {39, 1}, {90, 300}})
      for (const int most : {0, 3, 20, 40}) {
        Shape shape;
        shape.format = {128, 4, 4};
        shape.max_pages = 10;
        shape.group = group;
        if (!expect_attend(shape, {{150, 70}}, own,
                           std::to_string(group) + " heads, " + std::to_string(own[0]) + "+" +
                               std::to_string(own[1]) + " queries, at most " + std::to_string(most),
                           DType::kBF16, {.most_tokens = most}))
          return;
      }
}

TEST(AttendOptions, WorksWithLongWindowsOverLongHistories) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.max_pages = 60;
  shape.kv_heads = 1;
  shape.group = 4;
  for (const int window : {100, 1024, 3000})
    expect_attend(shape, {{3500, 900}}, {1, 1}, "window " + std::to_string(window), DType::kBF16,
                  {.window = window});
}

TEST(AttendOptions, LeavesTheLseOutWhenNobodyAsks) {
  World world({});
  world.append(kernels::kReference, world.random_call({100, 3}));
  DeviceWorld device(world);
  for (const DType dtype : kKinds)
    for (const int queries : {1, 50}) {
      const DeviceCall there(world.random_call({queries, 2}), dtype);
      const auto with = attend_on_device(device, there).out.download();
      AttendArgs a = device.attend_args(there);
      device.set_workspace(a);
      const DeviceAttended without = device.outputs(a, dtype);
      a.lse = nullptr;
      ASSERT_TRUE(attend(a, device.context()).ok());
      device.stream.wait();
      EXPECT_EQ(with, without.out.download());
      for (const float x : without.lse.download()) EXPECT_TRUE(std::isnan(x));
    }
}

}  // namespace
}  // namespace turboquant::gpu
