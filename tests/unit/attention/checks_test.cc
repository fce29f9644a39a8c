// SPDX-License-Identifier: Apache-2.0
// What bad input gets: an Error that names the value and the remedy, and untouched bytes.
#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "unit/kernels/world.h"

namespace turboquant {
namespace {

using kernels::Shape;
using kernels::World;

struct Case {
  const char* message;  // a part of what the error must say
  std::function<void(World&, EncodeArgs&)> spoil;
};

TEST(EncodeChecks, NameTheValueAndTheRemedyAndWriteNothing) {
  const Case cases[] = {
      {"head_dim=40 is not a multiple of 16 from 32 to 512; the nearest is 48",
       [](World&, EncodeArgs& a) { a.pages.format.head_dim = 40; }},
      {"k_bits=5 is not a page width; use 2, 3 or 4",
       [](World&, EncodeArgs& a) { a.pages.format.k_bits = 5; }},
      {"v_bits=1", [](World&, EncodeArgs& a) { a.pages.format.v_bits = 1; }},
      {"kv_heads=0", [](World&, EncodeArgs& a) { a.pages.kv_heads = 0; }},
      {"base=12 does not belong to head_dim=64; use 1", [](World&, EncodeArgs& a) { a.basis.base = 12; }},
      {"lengths[1]=-3", [](World& w, EncodeArgs&) { w.lengths[1] = -3; }},
      {"sequence 0 reaches position 513 but its page table holds 512",
       [](World& w, EncodeArgs&) { w.lengths[0] = 510; }},
      {"page_table[0][0]=99 is out of range; the pool has pages 0 to 15",
       [](World& w, EncodeArgs&) { w.table[0] = 99; }},
      {"page_table[1][0]=-1", [](World& w, EncodeArgs&) { w.table[8] = -1; }},
      {"keys are float32 but values are float16",
       [](World&, EncodeArgs& a) { a.values.dtype = DType::kF16; }},
      {"keys is null", [](World&, EncodeArgs& a) { a.keys.data = nullptr; }},
      {"fringe first=-1", [](World&, EncodeArgs& a) { a.fringe.first = -1; }},
      {"lengths is null", [](World&, EncodeArgs& a) { a.sequences.lengths = nullptr; }},
      {"token_starts is null", [](World&, EncodeArgs& a) { a.sequences.token_starts = nullptr; }},
      {"key_signs is null", [](World&, EncodeArgs& a) { a.basis.key_signs = nullptr; }},
  };
  for (const Case& c : cases) {
    Shape shape;
    shape.fringe_recent = 4;
    World world(shape);
    const auto call = world.random_call({3, 2});
    EncodeArgs args = world.encode_args(call);
    const auto pages = world.page_bytes;
    const auto fringe = world.fringe_halves;
    c.spoil(world, args);
    const Status status = encode(args);
    ASSERT_FALSE(status.ok()) << c.message;
    EXPECT_EQ(status.error().code, Code::kInvalidArgument) << c.message;
    EXPECT_NE(status.error().message.find(c.message), std::string::npos) << status.error().message;
    EXPECT_EQ(world.page_bytes, pages) << c.message;
    EXPECT_EQ(world.fringe_halves, fringe) << c.message;
  }
}

TEST(AttendChecks, NameTheValueAndTheRemedy) {
  const std::pair<const char*, std::function<void(AttendArgs&)>> cases[] = {
      {"q_heads=5 is not a multiple of kv_heads=2", [](AttendArgs& a) { a.q_heads = 5; }},
      {"softcap=-1", [](AttendArgs& a) { a.softcap = -1; }},
      {"window=-2 is negative; 0 means none", [](AttendArgs& a) { a.window = -2; }},
      {"only one is given", [](AttendArgs& a) { a.keys.data = nullptr; }},
      {"out is null", [](AttendArgs& a) { a.out.data = nullptr; }},
      {"query is null", [](AttendArgs& a) { a.query.data = nullptr; }},
  };
  World world({});
  const auto call = world.random_call({3, 2});
  std::vector<float> out(call.query.size()), workspace(1 << 20);
  for (const auto& [message, spoil] : cases) {
    AttendArgs args = world.attend_args(call);
    args.out = {DType::kF32, out.data(), std::int64_t{world.q_heads()} * 64, 64};
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size() * 4;
    ASSERT_TRUE(attend(args).ok());
    spoil(args);
    const Status status = attend(args);
    ASSERT_FALSE(status.ok()) << message;
    EXPECT_NE(status.error().message.find(message), std::string::npos) << status.error().message;
  }
}

TEST(AttendChecks, AskForTheWorkspaceThatAttendNeeds) {
  World world({});
  const auto call = world.random_call({1, 1});
  std::vector<float> out(call.query.size());
  AttendArgs args = world.attend_args(call);
  args.out = {DType::kF32, out.data(), std::int64_t{world.q_heads()} * 64, 64};
  const std::size_t needed = attend_workspace_bytes(world.shape.format, 2, world.q_heads(), 2, 2);
  if (needed == 0) {
    EXPECT_TRUE(attend(args).ok());
  } else {
    ASSERT_FALSE(attend(args).ok());
    EXPECT_NE(attend(args).error().message.find(std::to_string(needed)), std::string::npos);
  }
}

// A world with some history, and a call of attend_encode.
struct Step {
  explicit Step(const std::vector<int>& own) {
    Shape shape;
    shape.fringe_recent = 4;
    world = std::make_unique<World>(shape);
    world->append(kernels::kReference, world->random_call({70, 5}));
    call = world->random_call(own);
    args = world->attend_args(call);
    out.resize(call.query.size());
    args.out = {DType::kF32, out.data(), args.query.token_stride, args.query.head_stride};
    workspace.resize(
        attend_workspace_bytes(shape.format, shape.kv_heads, args.q_heads, shape.sequences, call.tokens()));
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
  }
  std::unique_ptr<World> world;
  World::Call call;
  AttendArgs args;
  std::vector<float> out;
  std::vector<std::uint8_t> workspace;
};

TEST(AttendEncode, IsAttendAndThenEncode) {
  Step together({2, 2}), apart({2, 2});
  ASSERT_TRUE(attend_encode(together.args).ok());
  ASSERT_TRUE(attend(apart.args).ok());
  ASSERT_TRUE(encode(apart.world->encode_args(apart.call)).ok());
  EXPECT_EQ(together.out, apart.out);
  EXPECT_EQ(together.world->page_bytes, apart.world->page_bytes);
  EXPECT_EQ(together.world->fringe_halves, apart.world->fringe_halves);
}

TEST(AttendEncode, NamesWhatEitherVerbWouldAndTokensThatAreNotEven) {
  const auto expect = [](const std::vector<int>& own, const char* message, void (*spoil)(AttendArgs&)) {
    Step step(own);
    const auto pages = step.world->page_bytes;
    spoil(step.args);
    const Status status = attend_encode(step.args);
    ASSERT_FALSE(status.ok()) << message;
    EXPECT_NE(status.error().message.find(message), std::string::npos) << status.error().message;
    EXPECT_EQ(step.world->page_bytes, pages) << message;
  };
  expect({2, 1}, "3 tokens of 2 sequences; a step has as many of each sequence", [](AttendArgs&) {});
  expect({3, 1}, "sequence 0 has 3 tokens where others have 2", [](AttendArgs&) {});
  expect({1, 1}, "q_heads=5 is not a multiple", [](AttendArgs& a) { a.q_heads = 5; });
  expect({1, 1}, "key_signs is null", [](AttendArgs& a) { a.basis.key_signs = nullptr; });
  expect({1, 1}, "keys is null", [](AttendArgs& a) { a.keys.data = a.values.data = nullptr; });
}

TEST(DecodeChecks, NameTheOutputThatIsTooSmall) {
  World world({});
  world.append(kernels::kReference, world.random_call({9, 1}));
  std::vector<float> keys(4096), values(4096);
  const DecodeArgs args{world.pages(), world.basis(), {}, world.sequences(nullptr), DType::kF32, 8,
                        keys.data(),   values.data()};
  const Status status = decode(args);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("lengths[0]=9 does not fit in max_tokens=8"), std::string::npos)
      << status.error().message;
}

TEST(Supports, RefusesAnUnknownVerb) {
  const Status status = supports("score", {64, 4, 4}, DeviceType::kCpu);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("rotate, balance, key_metric, encode, decode or attend"),
            std::string::npos);
}

}  // namespace
}  // namespace turboquant
