// SPDX-License-Identifier: Apache-2.0
// Calls long enough for encode's prefill kernel (head_dim 128, 16-bit rows), and calls that cross pages.
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

// 4 heads x (1,700 + 126 x 3) / 64 slots are as many parts as an H100 has SMs.
Shape prefill_shape(int k_bits, int v_bits) {
  Shape shape;
  shape.format = {128, k_bits, v_bits};
  shape.kv_heads = 4;
  shape.sequences = 3;
  shape.max_pages = 40;
  return shape;
}

void expect_same(const Shape& shape, DType dtype, const std::vector<std::vector<int>>& calls,
                 bool spoilt = false) {
  World world(shape, 9);
  DeviceWorld device(world);
  for (std::size_t c = 0; c < calls.size(); ++c) {
    World::Call call = world.random_call(calls[c]);
    for (std::size_t odd = 0; spoilt && odd * 7 * 128 < call.keys.size(); ++odd) {  // one vector in seven
      float *key = call.keys.data() + odd * 7 * 128, *value = call.values.data() + odd * 7 * 128;
      key[5] = odd % 2 != 0 ? NAN : 0.0f;
      value[3] = odd % 3 != 0 ? -INFINITY : 1e4f;
      for (int e = 0; e < 128 && odd % 5 == 0; ++e) key[e] = value[e] = -0.0f;
    }
    round_to(dtype, call);
    world.append(kernels::kReference, call);
    const Status status = device.append(world, call, dtype);
    ASSERT_TRUE(status.ok()) << status.error().message;
    if (!expect_same_bytes(world, device, name_of(shape.format) + ", call " + std::to_string(c))) return;
  }
}

TEST(EncodePrefill, WritesTheReferencesBytesAtEveryPairOfWidths) {
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v)
      expect_same(prefill_shape(k, v), (k + v) % 2 != 0 ? DType::kBF16 : DType::kF16,
                  {{900, 64 * 11 + 5, 700}, {1, 1, 1}});
}

TEST(EncodePrefill, GoesOnInAPageThatIsBegun) {
  expect_same(prefill_shape(4, 4), DType::kBF16, {{30, 64, 0}, {900, 800, 700}, {710, 5, 800}});
}

TEST(EncodePrefill, ServesFringeAndLeftPadding) {
  Shape shape = prefill_shape(4, 3);
  shape.fringe_first = 4;
  shape.fringe_recent = 29;
  shape.starts = {0, 70, 3};
  expect_same(shape, DType::kF16, {{900, 800, 700}, {700, 2, 900}});
}

// Pages of fewer than 16 tokens at the end of a call take their centre from keys that have been flipped.
TEST(EncodePrefill, WritesTheReferencesBytesWithAMetric) {
  for (int bits = 2; bits <= 4; ++bits) {
    Shape shape = prefill_shape(bits, 4);
    shape.metric = true;
    shape.fringe_first = 4;
    shape.fringe_recent = 29;
    expect_same(shape, bits == 3 ? DType::kBF16 : DType::kF16,
                {{900, 64 * 11 + 5, 700}, {710, 5, 800}, {1, 1, 1}});
    shape.starts = {0, 70, 3};
    expect_same(shape, DType::kBF16, {{901, 64 * 12 + 9, 700}, {700, 2, 900}}, true);
  }
}

// One row is every token of every sequence (strides of 0), and one page takes them all: only the fringe is
// looked at.
TEST(EncodePrefill, KeepsAFringeForMoreSequencesThanAGridHasInY) {
  constexpr int kCount = 65536 + 1, kTokens = 48;
  constexpr PageFormat kFormat{128, 4, 4};
  std::vector<float> row(128);
  for (std::size_t e = 0; e < row.size(); ++e) row[e] = static_cast<float>(e) - 50.5f;
  std::vector<std::int32_t> token_starts(kCount + 1);
  for (std::size_t i = 0; i < token_starts.size(); ++i)
    token_starts[i] = static_cast<std::int32_t>(i) * kTokens;
  const DeviceArray<std::uint8_t> rows(to_bytes(DType::kBF16, row));
  const DeviceArray<std::int32_t> starts(token_starts), zeros{std::vector<std::int32_t>(kCount)};
  const DeviceArray<float> signs{std::vector<float>(128, 1.0f)};
  DeviceArray<std::uint8_t> page(kFormat.page_bytes());
  DeviceArray<std::uint16_t> fringe(std::size_t{kCount} * 2 * 128);
  fringe.fill_bytes(0xff);
  EncodeArgs args;
  args.pages = {kFormat, 1, 1, page.data()};
  args.basis.key_signs = args.basis.query_signs = args.basis.value_signs = signs;
  args.fringe.recent = 1;
  args.fringe.data = fringe.data();
  args.sequences.count = kCount;
  args.sequences.max_pages = 1;
  args.sequences.page_table = args.sequences.lengths = zeros;
  args.sequences.token_starts = starts;
  args.sequences.tokens = std::int64_t{kCount} * kTokens;
  args.keys = args.values = {DType::kBF16, rows.data(), 0, 0};
  const Status status = encode(args, {.device = {DeviceType::kCuda, 0}, .stream = {}, .executor = nullptr});
  ASSERT_TRUE(status.ok()) << status.error().message;
  const std::vector<std::uint16_t> halves = fringe.download();
  EXPECT_NE(halves[0], 0xffff);
  std::size_t others = 0;
  for (std::size_t at = 256; at < halves.size(); ++at) others += halves[at] != halves[at - 256];
  EXPECT_EQ(others, 0u);
}

TEST(EncodePrefill, KeepsOddVectorsInTheirTokens) {
  expect_same(prefill_shape(4, 4), DType::kBF16, {{900, 800, 700}}, true);
  expect_same(prefill_shape(3, 2), DType::kBF16, {{900, 800, 700}}, true);
}

TEST(Encode, FollowsAPageThatTheSameShortCallFilled) {
  Shape shape;
  shape.sequences = 3;
  expect_same(shape, DType::kF32, {{63, 62, 64}, {2, 1, 0}, {0, 3, 0}, {1, 0, 2}});
}

}  // namespace
}  // namespace turboquant::gpu
