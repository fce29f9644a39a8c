// SPDX-License-Identifier: Apache-2.0
// encode's bytes are the reference's, whatever the call looks like.
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

// Feeds the same calls to the reference and to the device and compares every byte after each.
void expect_same(const Shape& shape, const std::vector<std::vector<int>>& calls, const std::string& what,
                 DType dtype = DType::kF32) {
  World world(shape, 5);
  DeviceWorld device(world);
  for (std::size_t c = 0; c < calls.size(); ++c) {
    World::Call call = world.random_call(calls[c]);
    round_to(dtype, call);
    world.append(kernels::kReference, call);
    const Status status = device.append(world, call, dtype);
    ASSERT_TRUE(status.ok()) << status.error().message << ", " << what;
    if (!expect_same_bytes(world, device, what + ", call " + std::to_string(c))) return;
  }
}

TEST(Encode, WritesTheReferencesBytesAtEveryHeadDim) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16) {
    Shape shape;
    shape.format = {d, 2 + d / 16 % 3, 2 + d / 48 % 3};
    shape.max_pages = 3;
    shape.fringe_first = 1;
    shape.fringe_recent = 5;
    expect_same(shape, {{70, 33}, {1, 1}, {3, 40}}, name_of(shape.format));
  }
}

TEST(Encode, WritesTheReferencesBytesAtEveryPairOfWidths) {
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v)
      for (const int d : {64, 80, 96, 128, 192, 256}) {
        Shape shape;
        shape.format = {d, k, v};
        shape.fringe_first = 4;
        shape.fringe_recent = 28;
        expect_same(shape, {{130, 5}, {1, 1}, {0, 60}, {17, 1}}, name_of(shape.format));
      }
}

TEST(Encode, WritesTheReferencesBytesWithAMetric) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16)
    for (int bits = 2; bits <= 4; ++bits) {
      Shape shape;
      shape.format = {d, bits, 4};
      shape.max_pages = 3;
      shape.fringe_first = 1;
      shape.fringe_recent = 5;
      shape.metric = true;
      expect_same(shape, {{70, 33}, {1, 1}, {3, 40}}, name_of(shape.format), kDTypes[d / 16 % 3]);
    }
}

TEST(Encode, WritesTheReferencesBytesFromEveryDType) {
  for (const DType dtype : kDTypes)
    for (const int d : {64, 80, 128}) {
      Shape shape;
      shape.format = {d, 4, 3};
      shape.fringe_recent = 9;
      expect_same(shape, {{130, 5}, {1, 1}, {2, 70}}, std::string(turboquant::name_of(dtype)), dtype);
    }
}

TEST(Encode, WritesTheReferencesBytesWithLeftPadding) {
  Shape shape;
  shape.sequences = 3;
  shape.starts = {0, 5, 100};
  shape.fringe_first = 4;
  shape.fringe_recent = 8;
  expect_same(shape, {{120, 120, 120}, {1, 1, 1}, {20, 20, 20}}, "padding");
}

TEST(Encode, WritesTheReferencesBytesOneTokenACall) {
  Shape shape;
  shape.sequences = 1;
  shape.max_pages = 4;
  shape.fringe_first = 2;
  shape.fringe_recent = 7;
  expect_same(shape, std::vector<std::vector<int>>(200, {1}), "append");
}

TEST(Encode, WritesTheReferencesBytesOfRaggedBatches) {
  Shape shape;
  shape.sequences = 70;
  shape.max_pages = 5;
  shape.kv_heads = 3;
  shape.fringe_first = 4;
  shape.fringe_recent = 28;
  std::vector<int> first, second;
  for (int i = 0; i < shape.sequences; ++i) {
    first.push_back(i * 37 % 5 == 0 ? 0 : i * 53 % 190);
    second.push_back(i * 29 % 4);
  }
  expect_same(shape, {first, second, second}, "ragged");
}

TEST(Encode, WritesTheReferencesBytesOfALongPrefill) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.sequences = 1;
  shape.max_pages = 40;
  expect_same(shape, {{2400}, {100}}, "prefill");
}

// Enough pages to fill a GPU, in 16 bits at head_dim 128: a kernel of its own.
Shape prefill_shape() {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.kv_heads = 16;
  shape.sequences = 3;
  shape.max_pages = 16;
  shape.fringe_first = 4;
  shape.fringe_recent = 28;
  return shape;
}

TEST(Encode, WritesTheReferencesBytesOfPrefillsAtEveryPairOfWidths) {
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v) {
      Shape shape = prefill_shape();
      shape.format = {128, k, v};
      expect_same(shape, {{500, 64, 130}, {300, 1, 400}, {1, 1, 1}}, "prefill, " + name_of(shape.format),
                  (k + v) % 2 == 0 ? DType::kBF16 : DType::kF16);
    }
}

TEST(Encode, WritesTheReferencesBytesOfPrefillsWithPaddingAndOddValues) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    Shape shape = prefill_shape();
    shape.starts = {7, 0, 100};
    World world(shape, 3);
    DeviceWorld device(world);
    for (int turn = 0; turn < 2; ++turn) {
      World::Call call = world.random_call({400, 90, 300});
      const std::size_t row = World::n(shape.kv_heads * 128);
      call.keys[10 * row + 3] = call.values[70 * row + 500] = NAN;
      call.keys[66 * row + 300] = INFINITY;
      call.values[67 * row + 1] = -INFINITY;
      call.keys[68 * row] = call.values[68 * row] = dtype == DType::kF16 ? 6e4f : 3e38f;
      std::fill_n(call.keys.begin() + static_cast<std::ptrdiff_t>(69 * row), row, 0.0f);
      std::fill_n(call.values.begin() + static_cast<std::ptrdiff_t>(69 * row), row, -0.0f);
      round_to(dtype, call);
      world.append(kernels::kReference, call);
      const Status status = device.append(world, call, dtype);
      ASSERT_TRUE(status.ok()) << status.error().message;
      if (!expect_same_bytes(world, device, std::string("odd prefill, ") + turboquant::name_of(dtype)))
        return;
    }
  }
}

TEST(Encode, KeepsNanAndInfinityInTheirToken) {
  for (const DType dtype : kDTypes) {
    Shape shape;
    shape.fringe_first = 2;
    shape.fringe_recent = 40;
    World world(shape, 3);
    DeviceWorld device(world);
    World::Call call = world.random_call({100, 3});
    const std::size_t row = World::n(shape.kv_heads * 64);
    call.keys[10 * row + 3] = NAN;
    call.values[10 * row + 70] = -NAN;
    call.keys[70 * row + 5] = INFINITY;
    call.values[71 * row + 5] = -INFINITY;
    call.keys[72 * row] = dtype == DType::kF16 ? 6e4f : 3e38f;  // squared, not finite in fp32
    round_to(dtype, call);
    world.append(kernels::kReference, call);
    ASSERT_TRUE(device.append(world, call, dtype).ok());
    expect_same_bytes(world, device, std::string("odd values, ") + turboquant::name_of(dtype));
  }
}

TEST(Encode, CodesZerosDenormalsAndHugeNormsAsTheReference) {
  Shape shape;
  shape.sequences = 1;
  World world(shape, 3);
  DeviceWorld device(world);
  World::Call call = world.random_call({5});
  const std::size_t row = World::n(shape.kv_heads * 64);
  for (std::size_t e = 0; e < row; ++e) {
    call.keys[e] = call.values[e] = 0.0f;
    call.keys[row + e] = call.values[row + e] = e % 2 != 0 ? 1e-42f : -1e-42f;
    call.keys[2 * row + e] = call.values[2 * row + e] = 1e9f;
    call.keys[3 * row + e] = call.values[3 * row + e] = e % 2 != 0 ? 1e-16f : -0.0f;
  }
  world.append(kernels::kReference, call);
  ASSERT_TRUE(device.append(world, call).ok());
  expect_same_bytes(world, device, "zeros, denormals and huge norms");
}

TEST(Encode, ReadsRowsOfAnyStrides) {
  World world({}, 7);
  DeviceWorld device(world);
  const World::Call call = world.random_call({70, 2});
  const std::size_t heads = World::n(world.shape.kv_heads), tokens = World::n(call.tokens());
  DeviceCall strided(call, DType::kF32);
  for (auto [rows, bytes] :
       {std::pair{&call.keys, &strided.keys}, std::pair{&call.values, &strided.values}}) {
    std::vector<float> by_head(rows->size());  // [heads, tokens, head_dim]
    for (std::size_t t = 0; t < tokens; ++t)
      for (std::size_t h = 0; h < heads; ++h)
        std::copy_n(rows->data() + (t * heads + h) * 64, 64, by_head.data() + (h * tokens + t) * 64);
    bytes->upload(to_bytes(DType::kF32, by_head));
  }
  EncodeArgs args = device.encode_args(strided);
  args.keys.token_stride = args.values.token_stride = 64;
  args.keys.head_stride = args.values.head_stride = static_cast<std::int64_t>(tokens) * 64;
  ASSERT_TRUE(encode(args, device.context()).ok());
  world.append(kernels::kReference, call);
  expect_same_bytes(world, device, "strides");
}

}  // namespace
}  // namespace turboquant::gpu
