// SPDX-License-Identifier: Apache-2.0
// attend_encode is attend and then encode, bit for bit, and writes the reference's bytes.
#include "expect_attend.h"
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

// Steps of `own` tokens a sequence after a history: on one device by both verbs, on the other by
// attend_encode.
void expect_same_steps(const Shape& shape, const std::vector<int>& history, int own, int steps, DType dtype,
                       const Options& options = {}) {
  World world(shape);
  world.append(kernels::kReference, world.random_call(history));
  DeviceWorld apart(world), together(world);
  const std::string name = name_of(shape.format) + ", group " + std::to_string(shape.group) + ", " +
                           std::to_string(shape.sequences) + " sequences, step ";
  for (int step = 0; step < steps; ++step) {
    World::Call call = world.random_call(std::vector<int>(history.size(), own));
    round_to(dtype, call);
    const DeviceCall there(call, dtype);
    const DeviceAttended expected = attend_on_device(apart, there, options);
    ASSERT_TRUE(encode(apart.encode_args(there), apart.context()).ok());
    AttendArgs a = together.attend_args(there);
    apply(options, a, nullptr);
    together.set_workspace(a);
    const DeviceAttended got = together.outputs(a, dtype);
    const Status status = attend_encode(a, together.context());
    ASSERT_TRUE(status.ok()) << status.error().message;
    together.stream.wait();
    apart.stream.wait();
    world.append(kernels::kReference, call);
    const std::string what = name + std::to_string(step);
    const auto [count, first] = differences(got.out.download(), expected.out.download());
    ASSERT_EQ(count, 0u) << what << ": of out, the first in " << place(world, first / size_of(dtype));
    ASSERT_EQ(differences(got.lse.download(), expected.lse.download()).first, 0u) << what << ": of lse";
    ASSERT_TRUE(expect_same_bytes(world, apart, what + ", apart"));
    ASSERT_TRUE(expect_same_bytes(world, together, what));
    apart.lengths.upload(world.lengths);
    together.lengths.upload(world.lengths);
  }
}

Shape shape_of(const PageFormat& format, int sequences, int group, int fringe = 28) {
  Shape shape;
  shape.format = format;
  shape.sequences = sequences;
  shape.group = group;
  shape.max_pages = 8;
  shape.fringe_first = fringe > 0 ? 4 : 0;
  shape.fringe_recent = fringe;
  return shape;
}

Shape with_metric(Shape shape) {
  shape.metric = true;
  return shape;
}

// Some about to open a page, some new, the others anywhere.
std::vector<int> history_of(int sequences) {
  std::vector<int> history;
  for (int i = 0; i < sequences; ++i) history.push_back(i % 4 == 0 ? 62 + 64 * (i / 4 % 5) : i * 89 % 400);
  return history;
}

TEST(AttendEncode, IsAttendAndThenEncodeAtEveryHeadDimAndGroup) {
  for (const int d : {64, 80, 96, 112, 128, 192, 256})
    for (const int group : {1, 4, 7, 16, 32})
      for (const int sequences : {2, 9})
        expect_same_steps(shape_of({d, 4, 4}, sequences, group), history_of(sequences), 1, 5,
                          group % 2 == 0 ? DType::kBF16 : DType::kF16);
}

TEST(AttendEncode, IsAttendAndThenEncodeWithAKeyMetric) {
  for (const int d : {64, 80, 96, 112, 128, 192})
    for (const int group : {1, 4, 7})
      for (const int sequences : {2, 9})
        expect_same_steps(with_metric(shape_of({d, 4, 4}, sequences, group)), history_of(sequences), 1, 5,
                          DType::kBF16);
  for (int k = 2; k <= 4; ++k)
    expect_same_steps(with_metric(shape_of({128, k, 4}, 5, 4)), history_of(5), 1, 5, DType::kF16);
}

TEST(AttendEncode, IsAttendAndThenEncodeAtEveryPairOfWidths) {
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v)
      for (const int d : {80, 128})
        expect_same_steps(shape_of({d, k, v}, 5, 4), history_of(5), 1, 5, DType::kBF16);
}

TEST(AttendEncode, IsAttendAndThenEncodeOverManySteps) {
  for (const int fringe : {0, 3, 28})
    for (const int sequences : {1, 12}) {
      const Shape shape = shape_of({128, 4, 4}, sequences, 4, fringe);
      expect_same_steps(shape, history_of(sequences), 1, 70, DType::kBF16);
      expect_same_steps(with_metric(shape), history_of(sequences), 1, 70, DType::kBF16);
    }
}

// One block stores more tokens than it has warps for, as the long sequence takes all others. Of more tokens
// a block on average more warps store.
TEST(AttendEncode, IsAttendAndThenEncodeOfManySequencesBesideALongOne) {
  for (const int sequences : {90, 300}) {
    Shape shape = shape_of({64, 4, 4}, sequences, 4);
    shape.kv_heads = 1;
    shape.max_pages = 200;
    std::vector<int> history(World::n(sequences), 3);
    for (int i = 0; i < sequences; ++i) history[World::n(i)] += 7 * i % 60;
    history[40] = 12000;
    expect_same_steps(shape, history, 1, 4, DType::kF16);
    expect_same_steps(with_metric(shape), history, 1, 4, DType::kF16);
  }
}

TEST(AttendEncode, IsAttendAndThenEncodeWithPaddingWindowsAndTruncation) {
  Shape shape = shape_of({128, 4, 4}, 4, 4);
  shape.starts = {0, 61, 130, 400};
  expect_same_steps(shape, {200, 61, 129, 70}, 1, 6, DType::kBF16);
  Options window;
  window.window = 40;
  window.softcap = 20;
  expect_same_steps(shape_of({128, 4, 4}, 3, 4), {300, 5, 62}, 1, 6, DType::kBF16, window);
}

TEST(AttendEncode, IsAttendAndThenEncodeWhereOneLaunchDoesNotDoBoth) {
  expect_same_steps(shape_of({128, 4, 4}, 3, 4), {300, 5, 62}, 3, 4, DType::kBF16);
  expect_same_steps(shape_of({64, 4, 4}, 3, 4), {300, 5, 62}, 1, 4, DType::kF32);
  expect_same_steps(shape_of({128, 4, 4}, 3, 4), {300, 5, 62}, 40, 2, DType::kBF16);
}

}  // namespace
}  // namespace turboquant::gpu
