// SPDX-License-Identifier: Apache-2.0
// What a host can say about a CUDA call: everything but what lies on the device. These run without a GPU, and
// the device pointers point nowhere: a check that followed one would crash.
#include <gtest/gtest.h>

#include <functional>
#include <utility>

#include "attention/checks.h"
#include "kernels/cuda_table.h"

namespace turboquant {
namespace {

constexpr DeviceType kCuda = DeviceType::kCuda;
const Context kOnCuda{.device = {kCuda, 0}, .stream = {}, .executor = nullptr};

template <class T>
T* nowhere() {
  return reinterpret_cast<T*>(std::uintptr_t{0x100});
}

Sequences sequences() {
  return {.count = 3,
          .max_pages = 4,
          .page_table = nowhere<std::int32_t>(),
          .lengths = nowhere<std::int32_t>(),
          .starts = nowhere<std::int32_t>(),
          .token_starts = nowhere<std::int32_t>(),
          .tokens = 5};
}
Pages pages() {
  return {.format = {64, 4, 4}, .kv_heads = 2, .count = 9, .data = nowhere<std::uint8_t>()};
}
Basis basis() {
  return {.key_signs = nowhere<float>(), .query_signs = nowhere<float>(), .value_signs = nowhere<float>()};
}
Fringe fringe() {
  return {
      .first = 4, .recent = 28, .data = nowhere<std::uint16_t>(), .recent_starts = nowhere<std::int32_t>()};
}
Rows rows() {
  return {.dtype = DType::kBF16, .data = nowhere<void>(), .token_stride = 128, .head_stride = 64};
}
EncodeArgs encode_args() {
  return {.pages = pages(),
          .basis = basis(),
          .fringe = fringe(),
          .sequences = sequences(),
          .keys = rows(),
          .values = rows()};
}
DecodeArgs decode_args() {
  return {.pages = pages(),
          .basis = basis(),
          .fringe = fringe(),
          .sequences = sequences(),
          .max_tokens = 7,
          .keys = nowhere<void>(),
          .values = nowhere<void>()};
}
constexpr std::size_t kWorkspace = 1000;
AttendArgs attend_args() {
  AttendArgs a;
  a.pages = pages();
  a.basis = basis();
  a.fringe = fringe();
  a.sequences = sequences();
  a.q_heads = 6;
  a.query = a.keys = a.values = rows();
  a.out = {.dtype = DType::kBF16, .data = nowhere<void>(), .token_stride = 384, .head_stride = 64};
  a.workspace = nowhere<void>();
  a.workspace_bytes = kWorkspace;
  return a;
}

KeyMetricArgs metric_args() {
  KeyMetricArgs a;
  a.kv_heads = 2;
  a.q_heads = 6;
  a.head_dim = 64;
  a.sequence_count = 3;
  a.tokens = 5;
  a.starts = nowhere<std::int32_t>();
  a.query = rows();
  a.sequence_stride = 640;
  a.query_signs = nowhere<float>();
  a.moment = nowhere<std::int32_t>();
  a.metric = nowhere<std::int8_t>();
  return a;
}

void expect_invalid(const Status& status, const char* message) {
  ASSERT_FALSE(status.ok()) << message;
  EXPECT_EQ(status.error().code, Code::kInvalidArgument) << message;
  EXPECT_NE(status.error().message.find(message), std::string::npos) << status.error().message;
}

TEST(CudaChecks, PassGoodCallsWithoutFollowingAPointer) {
  EXPECT_TRUE(attention::check(encode_args(), kCuda).ok());
  EXPECT_TRUE(attention::check(decode_args(), kCuda).ok());
  EXPECT_TRUE(attention::check(attend_args(), kWorkspace, kCuda).ok());
  const BalanceArgs balance{.kv_heads = 2,
                            .q_heads = 6,
                            .head_dim = 64,
                            .sequence_count = 3,
                            .token_starts = nowhere<std::int32_t>(),
                            .starts = nowhere<std::int32_t>(),
                            .query = rows(),
                            .keys = rows(),
                            .balance = nowhere<float>()};
  EXPECT_TRUE(attention::check(balance, kCuda).ok());
  EXPECT_TRUE(attention::check(metric_args(), kCuda).ok());
}

TEST(CudaChecks, OfKeyMetricNameTheValueAndTheRemedy) {
  const std::pair<const char*, std::function<void(KeyMetricArgs&)>> cases[] = {
      {"q_heads=5 is not a multiple of kv_heads=2", [](KeyMetricArgs& a) { a.q_heads = 5; }},
      {"base=12 does not belong to head_dim=64; use 1", [](KeyMetricArgs& a) { a.base = 12; }},
      {"sequences=-1 is negative", [](KeyMetricArgs& a) { a.sequence_count = -1; }},
      {"tokens=-1 is negative", [](KeyMetricArgs& a) { a.tokens = -1; }},
      {"step=0 is not positive", [](KeyMetricArgs& a) { a.step = 0; }},
      {"moment is null", [](KeyMetricArgs& a) { a.moment = nullptr; }},
      {"query_signs is null", [](KeyMetricArgs& a) { a.query_signs = nullptr; }},
      {"query is null", [](KeyMetricArgs& a) { a.query.data = nullptr; }},
      {"query has a negative stride", [](KeyMetricArgs& a) { a.sequence_stride = -1; }},
      {"120000 tokens with step=1 are 360000 queries of a KV head",
       [](KeyMetricArgs& a) { a.tokens = 40000; }},
      {"3000000000 tokens of all sequences do not fit into 32 bits",
       [](KeyMetricArgs& a) { a.tokens = 1000000000; }},
  };
  for (const auto& [message, spoil] : cases) {
    KeyMetricArgs args = metric_args();
    spoil(args);
    expect_invalid(attention::check(args, kCuda), message);
  }
}

TEST(CudaChecks, OfEncodeNameTheValueAndTheRemedy) {
  const std::pair<const char*, std::function<void(EncodeArgs&)>> cases[] = {
      {"head_dim=40 is not a multiple of 16", [](EncodeArgs& a) { a.pages.format.head_dim = 40; }},
      {"kv_heads=0", [](EncodeArgs& a) { a.pages.kv_heads = 0; }},
      {"pages are not aligned to 128 bytes", [](EncodeArgs& a) { a.pages.data += 64; }},
      {"pages is null", [](EncodeArgs& a) { a.pages.data = nullptr; }},
      {"base=12 does not belong to head_dim=64; use 1", [](EncodeArgs& a) { a.basis.base = 12; }},
      {"sequences.tokens=-1 is negative", [](EncodeArgs& a) { a.sequences.tokens = -1; }},
      {"most_tokens=-1 is negative; use 0", [](EncodeArgs& a) { a.sequences.most_tokens = -1; }},
      {"lengths is null", [](EncodeArgs& a) { a.sequences.lengths = nullptr; }},
      {"page_table is null", [](EncodeArgs& a) { a.sequences.page_table = nullptr; }},
      {"token_starts is null", [](EncodeArgs& a) { a.sequences.token_starts = nullptr; }},
      {"keys are float16 but values are bfloat16", [](EncodeArgs& a) { a.keys.dtype = DType::kF16; }},
      {"values is null", [](EncodeArgs& a) { a.values.data = nullptr; }},
      {"value_signs is null", [](EncodeArgs& a) { a.basis.value_signs = nullptr; }},
      {"fringe first=-1", [](EncodeArgs& a) { a.fringe.first = -1; }},
  };
  for (const auto& [message, spoil] : cases) {
    EncodeArgs args = encode_args();
    spoil(args);
    expect_invalid(attention::check(args, kCuda), message);
  }
}

TEST(CudaChecks, OfAttendNameTheValueAndTheRemedy) {
  const std::pair<const char*, std::function<void(AttendArgs&)>> cases[] = {
      {"q_heads=5 is not a multiple of kv_heads=2", [](AttendArgs& a) { a.q_heads = 5; }},
      {"window=-2 is negative; 0 means none", [](AttendArgs& a) { a.window = -2; }},
      {"only one is given", [](AttendArgs& a) { a.keys.data = nullptr; }},
      {"keys are float32 but values are bfloat16", [](AttendArgs& a) { a.keys.dtype = DType::kF32; }},
      {"out is null", [](AttendArgs& a) { a.out.data = nullptr; }},
      {"workspace is null; pass attend_workspace_bytes()=1000 bytes",
       [](AttendArgs& a) { a.workspace = nullptr; }},
      {"workspace_bytes=999; attend_workspace_bytes() asks for 1000",
       [](AttendArgs& a) { a.workspace_bytes = 999; }},
      {"workspace is not aligned to 64 bytes",
       [](AttendArgs& a) { a.workspace = static_cast<char*>(a.workspace) + 32; }},
  };
  for (const auto& [message, spoil] : cases) {
    AttendArgs args = attend_args();
    spoil(args);
    expect_invalid(attention::check(args, kWorkspace, kCuda), message);
  }
}

TEST(CudaChecks, OfDecodeNameTheOutputs) {
  DecodeArgs args = decode_args();
  args.max_tokens = -1;
  expect_invalid(attention::check(args, kCuda), "max_tokens=-1 is negative");
  args.max_tokens = 1;
  args.keys = nullptr;
  expect_invalid(attention::check(args, kCuda), "keys is null");
}

TEST(CudaChecks, LetCallsWithoutRowsPassTheirNullPointers) {
  EncodeArgs args = encode_args();
  args.sequences.tokens = 0;
  args.keys.data = args.values.data = nullptr;
  EXPECT_TRUE(attention::check(args, kCuda).ok());
  const Status status = encode(args, kOnCuda);  // launches nothing, so it needs no GPU either
  EXPECT_EQ(status.ok(), kernels::cuda_table() != nullptr);
}

TEST(CudaVerbs, SayWhatIsMissingInABuildWithoutCuda) {
  if (kernels::cuda_table() != nullptr) {
    EXPECT_TRUE(supports("attend", {64, 4, 4}, kCuda).ok());
    return;
  }
  for (const Status& status :
       {supports("attend", {64, 4, 4}, kCuda), encode(encode_args(), kOnCuda), decode(decode_args(), kOnCuda),
        attend(attend_args(), kOnCuda), balance({}, kOnCuda), key_metric(metric_args(), kOnCuda),
        rotate({}, kOnCuda)}) {
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, Code::kUnsupported);
    EXPECT_NE(status.error().message.find("-DTQ_CUDA=ON"), std::string::npos) << status.error().message;
  }
  EXPECT_EQ(attend_workspace_bytes({64, 4, 4}, 2, 6, 3, 5, kOnCuda), 0u);
}

}  // namespace
}  // namespace turboquant
