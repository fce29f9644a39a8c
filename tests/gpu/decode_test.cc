// SPDX-License-Identifier: Apache-2.0
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

// The reference decodes in double and rounds once; a kernel in fp32 rounds the product of scale and code, the
// centre's sum (2 u each of a vector of norm |y|), the rotation (log2 power + base sums) and scale and sign:
// each a relative error of at most u = 2^-24 of the vector's norm, a base sum of up to 28 terms 28 sqrt(28)
// u. Then the output's dtype rounds.
double bound(DType dtype, double norm, double largest) {
  const double unit = dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
  return 180 * 0x1p-24 * norm + unit * largest;
}

void expect_decoded(const Shape& shape, const std::vector<std::vector<int>>& calls, DType dtype) {
  World world(shape, 5);
  for (const auto& counts : calls) world.append(kernels::kReference, world.random_call(counts));
  DeviceWorld device(world);
  const int d = world.d(), longest = *std::max_element(world.lengths.begin(), world.lengths.end());
  const int max_tokens = longest + 3;
  const std::size_t size = World::n(shape.sequences * shape.kv_heads * max_tokens * d);
  std::vector<float> keys(size, NAN), values(size, NAN);
  DecodeArgs a{world.pages(), world.basis(), world.fringe(), world.sequences(nullptr),
               DType::kF32,   max_tokens,    keys.data(),    values.data()};
  kernels::kReference.decode(a, default_executor());

  DeviceArray<std::uint8_t> got_keys(size * size_of(dtype)), got_values(size * size_of(dtype));
  got_keys.fill_bytes(0xff);
  got_values.fill_bytes(0xff);
  DecodeArgs b{device.pages(), device.basis(), device.fringe(), device.sequences(nullptr, 0),
               dtype,          max_tokens,     got_keys.data(), got_values.data()};
  const Status status = decode(b, device.context());
  ASSERT_TRUE(status.ok()) << status.error().message;
  for (const auto& [expected, bytes] : {std::pair{&keys, &got_keys}, std::pair{&values, &got_values}}) {
    const std::vector<float> got = to_floats(dtype, bytes->download());
    const std::vector<float> wide =
        to_floats(dtype, to_bytes(dtype, *expected));  // for NaN and untouched ones
    for (std::size_t row = 0; row < size; row += World::n(d)) {
      double norm = 0, largest = 0;
      for (std::size_t e = row; e < row + World::n(d); ++e) {
        const double x = static_cast<double>((*expected)[e]);
        // A balance of up to 2 (world.h) may have shrunk the rotated key.
        norm += 4 * x * x;
        largest = std::max(largest, std::fabs(x));
      }
      const double allowed = bound(dtype, 2 * std::sqrt(norm), largest);
      for (std::size_t e = row; e < row + World::n(d); ++e) {
        if (std::isnan(wide[e]))
          ASSERT_TRUE(std::isnan(got[e])) << name_of(shape.format) << ", element " << e;
        else
          ASSERT_NEAR(static_cast<double>(got[e]), static_cast<double>((*expected)[e]), allowed)
              << name_of(shape.format) << ", " << turboquant::name_of(dtype) << ", position "
              << row / World::n(d) % World::n(max_tokens) << ", coordinate " << e - row;
      }
    }
  }
}

TEST(Decode, AgreesAtEveryHeadDim) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16) {
    Shape shape;
    shape.format = {d, 2 + d / 16 % 3, 2 + d / 48 % 3};
    shape.max_pages = 3;
    expect_decoded(shape, {{100, 33}}, DType::kF32);
  }
}

TEST(Decode, AgreesAtEveryPairOfWidthsAndDType) {
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v)
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        Shape shape;
        shape.format = {128, k, v};
        shape.fringe_first = 4;
        shape.fringe_recent = 28;
        expect_decoded(shape, {{130, 5}, {3, 1}}, dtype);
      }
}

TEST(Decode, LeavesPaddingZeroAndWhatIsPastTheLengthAlone) {
  Shape shape;
  shape.sequences = 4;
  shape.starts = {0, 5, 70, 0};
  shape.fringe_first = 4;
  shape.fringe_recent = 8;
  expect_decoded(shape, {{120, 100, 90, 0}}, DType::kF32);
}

}  // namespace
}  // namespace turboquant::gpu
