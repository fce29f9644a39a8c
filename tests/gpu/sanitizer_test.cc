// SPDX-License-Identifier: Apache-2.0
// Small calls of attend, and steps, that meet every kernel it has, for compute-sanitizer (make gpu-sanitize).
// By themselves they say little that the other tests do not.
#include "expect_attend.h"
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

Shape small(int head_dim, int k_bits, int v_bits, int fringe) {
  Shape shape;
  shape.format = {head_dim, k_bits, v_bits};
  shape.group = 4;
  shape.max_pages = 4;
  shape.fringe_first = fringe > 0 ? 4 : 0;
  shape.fringe_recent = fringe;
  return shape;
}

TEST(Sanitizer, AttendAtEveryFastHeadDim) {
  for (const int d : {64, 80, 96, 128, 192, 256})
    for (const auto& own : {std::vector{1, 1}, {2, 2}, {4, 3}, {8, 7}, {40, 1}})
      expect_attend(small(d, 4, 4, 28), {{130, 5}}, own, "head_dim " + std::to_string(d), DType::kBF16);
}

TEST(Sanitizer, AttendAtEveryPairOfWidths) {
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v)
      for (const auto& own : {std::vector{1, 1}, {7, 8}, {33, 1}})
        expect_attend(small(128, k, v, 0), {{70, 1}}, own, std::to_string(k) + "/" + std::to_string(v),
                      DType::kF16);
}

TEST(Sanitizer, AttendAtOtherHeadDimsAndDTypes) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
    for (const int d : {48, 112, 320})
      for (const auto& own : {std::vector{1, 1}, {17, 1}})
        expect_attend(small(d, 3, 4, 6), {{100, 0}}, own, "head_dim " + std::to_string(d), dtype);
}

TEST(Sanitizer, AttendWithSplitsWindowsAndSinks) {
  for (const int window : {0, 50}) {
    Shape shape = small(128, 4, 4, 28);
    shape.max_pages = 24;
    shape.starts = {7, 0};
    const Options options{.window = window, .softcap = 5.0f, .sinks = std::vector<float>(8, 0.5f)};
    for (const auto& own : {std::vector{1, 1}, {4, 4}, {20, 2}})
      expect_attend(shape, {{1500, 300}}, own, "window " + std::to_string(window), DType::kBF16, options);
  }
}

// Two warps of an H100 finish a sequence together.
TEST(Sanitizer, AttendByPairsOfWarps) {
  Shape shape = small(128, 4, 4, 0);
  shape.kv_heads = 64;
  shape.sequences = 8;
  for (const int queries : {1, 2})
    expect_attend(shape, {std::vector<int>(8, 126)}, std::vector<int>(8, queries),
                  std::to_string(queries) + " queries", DType::kBF16);
}

// A prefill's kernels, those of short calls of every number of coordinates a lane, and a token a sequence.
TEST(Sanitizer, EncodeWithAMetric) {
  for (const int d : {32, 64, 128, 256, 512}) {
    Shape shape = small(d, 4, 3, 5);
    shape.metric = true;
    shape.kv_heads = d == 128 ? 27 : 2;  // 27 heads x 5 slots are as many parts as an H100 has SMs
    World world(shape);
    DeviceWorld device(world);
    for (const auto& counts : {std::vector{70, 40}, {7, 3}, {1, 1}}) {
      World::Call call = world.random_call(counts);
      round_to(DType::kBF16, call);
      world.append(kernels::kReference, call);
      ASSERT_TRUE(device.append(world, call, DType::kBF16).ok());
      expect_same_bytes(world, device, "metric, head_dim " + std::to_string(d));
    }
  }
}

TEST(Sanitizer, StepsAtEveryFastHeadDim) {
  for (const int d : {64, 80, 96, 128, 192, 256})
    for (const int sequences : {2, 9, 30}) {
      Shape shape = small(d, 4, 2 + d / 64 % 3, 28);
      shape.sequences = sequences;
      shape.metric = d % 64 == 0;
      if (sequences == 30) shape.kv_heads = 9;  // several tokens a block
      World world(shape);
      std::vector<int> history(World::n(sequences), 64);
      history[0] = 130;
      world.append(kernels::kReference, world.random_call(history));
      DeviceWorld device(world);
      World::Call call = world.random_call(std::vector<int>(World::n(sequences), 1));
      round_to(DType::kBF16, call);
      const DeviceCall there(call, DType::kBF16);
      AttendArgs a = device.attend_args(there);
      device.set_workspace(a);
      const DeviceAttended out = device.outputs(a, DType::kBF16);
      ASSERT_TRUE(attend_encode(a, device.context()).ok());
      device.stream.wait();
      world.append(kernels::kReference, call);
      expect_same_bytes(world, device, "head_dim " + std::to_string(d));
    }
}

}  // namespace
}  // namespace turboquant::gpu
