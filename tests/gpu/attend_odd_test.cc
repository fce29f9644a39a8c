// SPDX-License-Identifier: Apache-2.0
// NaN where it must not matter, and where it must; nothing to see; tables and lengths that change.
#include <array>

#include "expect_attend.h"
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

// 16-bit calls go to the tensor cores' kernels, fp32 ones to the one for everything.
constexpr DType kKinds[] = {DType::kBF16, DType::kF32};

TEST(AttendOdd, SeesNothingOfAnEmptySequence) {
  World world({});
  DeviceWorld device(world);
  for (const DType dtype : kKinds)
    for (const int queries : {1, 2, 33}) {
      const DeviceCall call(world.random_call({queries, 2}), dtype);
      const DeviceAttended got = attend_on_device(device, call, {.history_only = true});
      for (const float x : got.out_floats()) ASSERT_EQ(x, 0.0f) << queries;
      for (const float x : got.lse.download()) ASSERT_EQ(x, -INFINITY) << queries;
    }
}

// What no position owns becomes NaN: the scales of unused slots, and pages without any position.
void poison(World& world) {
  const PageFormat& format = world.shape.format;
  for (int i = 0; i < world.shape.sequences; ++i)
    for (int page = 0; page < world.shape.max_pages; ++page)
      for (int h = 0; h < world.shape.kv_heads; ++h) {
        std::uint8_t* bytes = kernels::page_of(world.pages(), world.sequences(nullptr), i, page, h);
        const int used = std::clamp(world.lengths[World::n(i)] - page * kPageTokens, 0, kPageTokens);
        for (int t = used; t < kPageTokens; ++t) {
          kernels::set_half(bytes + format.k_scales_offset(), 8 * (t % 8) + t / 8, 0x7e00);
          kernels::set_half(bytes + format.v_scales_offset(), 8 * (t % 8) + t / 8, 0xfe00);
        }
        if (used > 0) continue;
        std::memset(bytes, 0xff, format.page_bytes());
      }
}

TEST(AttendOdd, NeverReadsSlotsBeyondTheLength) {
  for (const int d : {64, 128, 176})
    for (const std::vector<int>& own : {std::vector{1, 1}, {4, 1}, {5, 5}, {9, 10}, {50, 2}}) {
      Shape shape;
      shape.format = {d, 4, 4};
      World world(shape);
      world.append(kernels::kReference, world.random_call({70, 130}));
      DeviceWorld device(world);
      const DeviceCall call(world.random_call(own), own[0] == 4 ? DType::kF32 : DType::kBF16);
      const DeviceAttended before = attend_on_device(device, call);
      poison(world);
      device.upload(world);
      const DeviceAttended after = attend_on_device(device, call);
      EXPECT_EQ(before.out.download(), after.out.download()) << d << ", " << own[0];
      EXPECT_EQ(before.lse.download(), after.lse.download()) << d << ", " << own[0];
    }
}

TEST(AttendOdd, NeverReadsPageTableEntriesBeyondTheLength) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.max_pages = 40;
  World world(shape);
  world.append(kernels::kReference, world.random_call({70, 130}));
  DeviceWorld device(world);
  std::vector<DeviceCall> calls;
  std::vector<std::vector<std::uint8_t>> before;
  for (const DType dtype : kKinds)
    for (const std::vector<int>& own : {std::vector{1, 1}, {40, 3}}) {
      calls.emplace_back(world.random_call(own), dtype);
      before.push_back(attend_on_device(device, calls.back()).out.download());
    }
  for (int i = 0; i < 2; ++i)
    for (int page = (world.lengths[World::n(i)] + 63) / 64; page < shape.max_pages; ++page)
      world.table[World::n(i * shape.max_pages + page)] = 0x7ffffff0;
  device.upload(world);
  for (std::size_t i = 0; i < calls.size(); ++i)
    EXPECT_EQ(before[i], attend_on_device(device, calls[i]).out.download()) << i;
}

TEST(AttendOdd, GivesNanOnlyToQueriesThatSeeANanTokenOfTheCall) {
  for (const auto& [tokens, dtype] :
       {std::pair{6, DType::kBF16}, {40, DType::kBF16}, {6, DType::kF32}, {40, DType::kF32}}) {
    Shape shape;
    shape.sequences = 1;
    World world(shape);
    world.append(kernels::kReference, world.random_call({40}));
    auto call = world.random_call({tokens});
    for (int e = 0; e < shape.kv_heads * 64; ++e)
      call.values[World::n(3 * shape.kv_heads * 64 + e)] = NAN;  // token 3
    DeviceWorld device(world);
    const std::vector<float> out = attend_on_device(device, DeviceCall(call, dtype)).out_floats();
    const std::size_t row = World::n(world.q_heads() * 64);
    for (std::size_t i = 0; i < out.size(); ++i)
      ASSERT_EQ(std::isnan(out[i]), i / row >= 3) << tokens << " tokens, " << place(world, i);
  }
}

TEST(AttendOdd, GivesNanOnlyToQueriesThatSeeANanTokenOfTheHistory) {
  for (int mode = 0; mode < 16; ++mode) {
    const bool in_fringe = (mode & 1) != 0, in_key = (mode & 2) != 0;
    const int queries = std::array{1, 5, 10, 30}[World::n(mode / 4)];
    Shape shape;
    shape.sequences = 2;
    shape.fringe_recent = in_fringe ? 8 : 0;
    World world(shape);
    auto history = world.random_call({100, 100});
    for (int e = 0; e < shape.kv_heads * 64; ++e)
      (in_key ? history.keys : history.values)[World::n(95 * shape.kv_heads * 64 + e)] =
          NAN;  // of sequence 0
    world.append(kernels::kReference, history);
    DeviceWorld device(world);
    const World::Call call = world.random_call({queries, queries});
    for (const int window : {0, 5}) {
      const Options options{.window = window};
      const World::Attended expected = attend_on_host(world, call, options);
      for (const DType dtype : kKinds) {
        const auto out = attend_on_device(device, DeviceCall(call, dtype), options).out_floats();
        for (std::size_t i = 0; i < out.size(); ++i)
          ASSERT_EQ(std::isnan(out[i]), std::isnan(expected.out[i]))
              << (in_fringe ? "fringe, " : "page, ") << (in_key ? "key, " : "value, ") << queries
              << " queries, window " << window << ", " << turboquant::name_of(dtype) << ", "
              << place(world, i);
      }
    }
  }
}

TEST(AttendOdd, LeavesItsWorkspaceReadyForCallsOfEveryKind) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.sequences = 4;
  shape.max_pages = 20;
  World world(shape);
  world.append(kernels::kReference, world.random_call({1100, 30, 0, 300}));
  DeviceWorld shared(world);
  // Decoding, a few rows, chunks, and what tensor cores do not take; the largest first makes the workspace.
  const std::pair<std::vector<int>, DType> kinds[] = {
      {{90, 70, 2, 1}, DType::kF32}, {{1, 1, 1, 1}, DType::kBF16}, {{90, 0, 2, 33}, DType::kBF16},
      {{5, 2, 0, 1}, DType::kF16},   {{0, 0, 0, 7}, DType::kF32},  {{64, 64, 1, 0}, DType::kF16}};
  std::vector<DeviceCall> calls;
  std::vector<std::vector<std::uint8_t>> expected;
  for (const auto& [counts, dtype] : kinds) {
    calls.emplace_back(world.random_call(counts), dtype);
    DeviceWorld alone(world);
    expected.push_back(attend_on_device(alone, calls.back()).out.download());
  }
  const auto bytes_of = [&](const DeviceCall& call) {
    return attend_workspace_bytes(shape.format, shape.kv_heads, shared.q_heads(), 4, call.tokens,
                                  shared.context());
  };
  std::size_t bytes = 0;
  for (const DeviceCall& call : calls) bytes = std::max(bytes, bytes_of(call));
  shared.workspace = DeviceArray<std::uint8_t>(bytes);
  shared.workspace.fill_bytes(0);
  for (int turn = 0; turn < 40; ++turn) {
    const std::size_t kind = world.rng() % calls.size();
    EXPECT_EQ(attend_on_device(shared, calls[kind]).out.download(), expected[kind])
        << "turn " << turn << ", kind " << kind;
  }
}

TEST(AttendOdd, FollowsAPageTableInAnyOrder) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.max_pages = 20;
  World world(shape);
  world.append(kernels::kReference, world.random_call({900, 700}));
  DeviceWorld device(world);
  const World::Call call = world.random_call({1, 2});
  std::vector<std::vector<std::uint8_t>> before;
  for (const DType dtype : kKinds)
    before.push_back(attend_on_device(device, DeviceCall(call, dtype)).out.download());
  const World old = world;
  std::shuffle(world.table.begin(), world.table.end(), world.rng);
  const std::size_t page = shape.format.page_bytes() * World::n(shape.kv_heads);
  for (std::size_t entry = 0; entry < world.table.size(); ++entry)
    std::copy_n(old.page_bytes.data() + World::n(old.table[entry]) * page, page,
                world.page_bytes.data() + World::n(world.table[entry]) * page);
  device.upload(world);
  for (std::size_t i = 0; i < before.size(); ++i)
    EXPECT_EQ(before[i], attend_on_device(device, DeviceCall(call, kKinds[i])).out.download());
}

}  // namespace
}  // namespace turboquant::gpu
