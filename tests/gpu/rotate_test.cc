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

TEST(Balance, GivesTheReferencesBits) {
  const std::vector<std::vector<int>> batches = {
      {300, 10, 0}, {3, 1, 2}, {1, 0, 0}, {0, 0, 0}, {64, 200, 130}};
  for (const int d : {32, 64, 80, 128, 192, 256})
    for (const auto& counts : batches)
      for (const bool padded : {false, true}) {
        Shape shape;
        shape.format.head_dim = d;
        shape.sequences = 3;
        if (padded) shape.starts = {7, 5, 90};
        World world(shape);
        DeviceWorld device(world);
        World::Call call = world.random_call(counts);
        if (call.tokens() > 2) call.keys[World::n(2 * shape.kv_heads * d + 1)] = NAN;
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

        const DeviceCall there(call, DType::kF32);
        DeviceArray<std::uint8_t> unread(4);
        DeviceArray<float> got(expected.size());
        a.token_starts = there.token_starts;
        a.starts = device.starts;
        a.query = device.rows(DType::kF32, call.tokens() > 0 ? there.query : unread, a.q_heads);
        a.keys = device.rows(DType::kF32, call.tokens() > 0 ? there.keys : unread, a.kv_heads);
        a.balance = got.data();
        const Status status = balance(a, device.context());
        ASSERT_TRUE(status.ok()) << status.error().message;
        const auto bits = got.download();
        const auto [count, first] = differences(bits, expected);
        ASSERT_EQ(count, 0u) << "head_dim " << d << ", " << counts[0] << " tokens, first " << first << ": "
                             << bits[first] << " instead of " << expected[first];
      }
}

}  // namespace
}  // namespace turboquant::gpu
