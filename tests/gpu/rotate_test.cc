// SPDX-License-Identifier: Apache-2.0
// rotate and balance decide codes: the bits of the CPU.
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(Rotate, GivesTheReferencesBitsAtEveryHeadDimAndDType) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16)
    for (const DType dtype : kDTypes)
      for (const bool inverse : {false, true}) {
        Shape shape;
        shape.format.head_dim = d;
        World world(shape);
        DeviceWorld device(world);
        World::Call call = world.random_call({5, 2});
        round_to(dtype, call);
        RotateArgs a;
        a.head_dim = d;
        a.heads = shape.kv_heads;
        a.tokens = call.tokens();
        a.base = world.plan.base;
        a.inverse = inverse;
        const std::int64_t stride = std::int64_t{a.heads} * d;

        RotateArgs on_host = a;
        std::vector<std::uint8_t> expected(call.keys.size() * size_of(dtype));
        on_host.in = world.rows(call.keys, a.heads);
        on_host.out = {dtype, expected.data(), stride, d};
        on_host.signs = world.key_signs.data();
        on_host.base_matrix = world.basis().base_matrix;
        kernels::kReference.rotate(on_host, default_executor());

        const DeviceCall there(call, dtype);
        DeviceArray<std::uint8_t> got(expected.size());
        a.in = device.rows(dtype, there.keys, a.heads);
        a.out = {dtype, got.data(), stride, d};
        a.signs = device.key_signs;
        a.base_matrix = device.base_matrix;
        const Status status = rotate(a, device.context());
        ASSERT_TRUE(status.ok()) << status.error().message;
        const auto [count, first] = differences(got.download(), expected);
        ASSERT_EQ(count, 0u) << "head_dim " << d << ", " << turboquant::name_of(dtype)
                             << (inverse ? ", inverse" : "") << ", first byte " << first;
      }
}

// What a key holds at one place: 1e17 is finite, and so large that the device has to look at rows one by one.
void expect_balance(int d, const std::vector<int>& counts, bool padded, DType dtype, float planted) {
  Shape shape;
  shape.format.head_dim = d;
  shape.sequences = static_cast<int>(counts.size());
  if (padded) {
    shape.starts.resize(counts.size());
    for (std::size_t i = 0; i < counts.size(); ++i) shape.starts[i] = i % 3 == 0 ? 7 : i % 3 == 1 ? 5 : 90;
  }
  World world(shape);
  DeviceWorld device(world);
  World::Call call = world.random_call(counts);
  if (call.tokens() > 2 && planted != 0) call.keys[World::n(2 * shape.kv_heads * d + 1)] = planted;
  call.query = to_floats(dtype, to_bytes(dtype, call.query));
  call.keys = to_floats(dtype, to_bytes(dtype, call.keys));
  BalanceArgs a;
  a.kv_heads = shape.kv_heads;
  a.q_heads = world.q_heads();
  a.head_dim = d;
  a.sequence_count = shape.sequences;

  BalanceArgs on_host = a;
  std::vector<float> expected(World::n(shape.kv_heads * d));
  const std::vector<float> none(1);  // rows of a call without tokens
  on_host.token_starts = call.token_starts.data();
  on_host.starts = padded ? shape.starts.data() : nullptr;
  on_host.query = world.rows(call.tokens() > 0 ? call.query : none, a.q_heads);
  on_host.keys = world.rows(call.tokens() > 0 ? call.keys : none, a.kv_heads);
  on_host.balance = expected.data();
  ASSERT_TRUE(balance(on_host).ok());

  const DeviceCall there(call, dtype);
  DeviceArray<std::uint8_t> unread(4);
  DeviceArray<float> got(expected.size());
  a.token_starts = there.token_starts;
  a.starts = device.starts;
  a.query = device.rows(dtype, call.tokens() > 0 ? there.query : unread, a.q_heads);
  a.keys = device.rows(dtype, call.tokens() > 0 ? there.keys : unread, a.kv_heads);
  a.balance = got.data();
  const Status status = balance(a, device.context());
  ASSERT_TRUE(status.ok()) << status.error().message;
  const auto bits = got.download();
  const auto [count, first] = differences(bits, expected);
  ASSERT_EQ(count, 0u) << "head_dim " << d << ", " << counts[0] << " tokens, " << turboquant::name_of(dtype)
                       << ", planted " << planted << ", first " << first << ": " << bits[first]
                       << " instead of " << expected[first];
}

TEST(Balance, GivesTheReferencesBits) {
  const std::vector<std::vector<int>> batches = {
      {300, 10, 0}, {3, 1, 2}, {1, 0, 0}, {0, 0, 0}, {64, 200, 130}};
  for (const int d : {32, 64, 80, 128, 192, 256, 320})
    for (const auto& counts : batches)
      for (const bool padded : {false, true})
        for (const float planted : {0.0f, NAN, 1e17f})
          expect_balance(d, counts, padded, DType::kF32, planted);
  for (const DType dtype : {DType::kF16, DType::kBF16})
    for (const int d : {64, 128, 256})
      for (const float planted : {0.0f, NAN}) expect_balance(d, {300, 0, 130}, true, dtype, planted);
}

// More sequences than the kernel looks up at once.
TEST(Balance, OfManySequences) {
  std::vector<int> counts(150);
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] = static_cast<int>(i * 7 % 140);
  for (const bool padded : {false, true}) expect_balance(128, counts, padded, DType::kBF16, 0.0f);
}

}  // namespace
}  // namespace turboquant::gpu
