// SPDX-License-Identifier: Apache-2.0
// Offsets that 32 bits do not hold: a cache whose pages lie past the first 4 GiB of their pool does what the
// same pages do at its beginning.
#include "expect_attend.h"
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

constexpr std::size_t kFar = std::size_t{1} << 32;  // bytes

// The cache of a world with unused pages before its own.
class HighWorld {
 public:
  explicit HighWorld(const World& world)
      : device(world),
        page(World::n(world.shape.kv_heads) * world.shape.format.page_bytes()),
        unused(kFar / page + 1),
        own(world.page_bytes.size()) {
    device.page_bytes = DeviceArray<std::uint8_t>(unused * page + own);
    TQ_CUDA_CHECK(cudaMemcpy(first_own(), world.page_bytes.data(), own, cudaMemcpyHostToDevice));
    std::vector<std::int32_t> table = world.table;
    for (std::int32_t& entry : table) entry += static_cast<std::int32_t>(unused);
    device.table.upload(table);
  }
  std::vector<std::uint8_t> pages() {
    std::vector<std::uint8_t> bytes(own);
    device.stream.wait();
    TQ_CUDA_CHECK(cudaMemcpy(bytes.data(), first_own(), own, cudaMemcpyDeviceToHost));
    return bytes;
  }

  DeviceWorld device;
  std::size_t page, unused, own;  // bytes of a page, pages, bytes

 private:
  std::uint8_t* first_own() { return device.page_bytes.data() + unused * page; }
};

struct Result {
  std::vector<std::uint8_t> out, keys, values, pages;
  std::vector<float> lse;
  std::vector<std::uint16_t> fringe;
  bool operator==(const Result&) const = default;
};

enum class Verbs { kAttendThenEncode, kAttendEncode };

// A call, and all that the cache holds after it.
Result run(DeviceWorld& device, const DeviceCall& call, Verbs verbs) {
  AttendArgs a = device.attend_args(call);
  device.set_workspace(a);
  const DeviceAttended attended = device.outputs(a, call.dtype);
  EncodeArgs e = device.encode_args(call);
  Status status =
      verbs == Verbs::kAttendEncode ? attend_encode(a, device.context()) : attend(a, device.context());
  if (status.ok() && verbs == Verbs::kAttendThenEncode) status = encode(e, device.context());
  if (!status.ok()) ADD_FAILURE() << status.error().message;
  device.stream.wait();
  return {attended.out.download(), {}, {}, {}, attended.lse.download(), device.fringe_halves.download()};
}

void decode_into(Result& result, DeviceWorld& device, int longest, DType dtype) {
  const std::size_t bytes =
      World::n(device.shape.sequences * device.shape.kv_heads * longest * device.d()) * size_of(dtype);
  DeviceArray<std::uint8_t> keys(bytes), values(bytes);
  keys.fill_bytes(0);
  values.fill_bytes(0);
  DecodeArgs d{device.pages(), device.basis(), device.fringe(), device.sequences(nullptr, 0),
               dtype,          longest,        keys.data(),     values.data()};
  const Status status = decode(d, device.context());
  if (!status.ok()) ADD_FAILURE() << status.error().message;
  device.stream.wait();
  result.keys = keys.download();
  result.values = values.download();
}

void expect_same_above(const Shape& shape, DType dtype, const std::string& what) {
  World world(shape);
  DeviceWorld low(world);
  HighWorld high(world);
  for (const auto& [counts, verbs] : std::vector<std::pair<std::vector<int>, Verbs>>{
           {{130, 128}, Verbs::kAttendThenEncode},  // many rows, a prefill
           {{1, 1}, Verbs::kAttendThenEncode},
           {{1, 1}, Verbs::kAttendEncode},
           {{2, 2}, Verbs::kAttendThenEncode},  // few rows
           {{4, 0}, Verbs::kAttendThenEncode},
           {{70, 40}, Verbs::kAttendThenEncode}}) {
    World::Call call = world.random_call(counts);
    round_to(dtype, call);
    const DeviceCall there(call, dtype);
    Result expected = run(low, there, verbs);
    Result got = run(high.device, there, verbs);
    expected.pages = low.page_bytes.download();
    got.pages = high.pages();
    for (std::size_t i = 0; i < counts.size(); ++i) world.lengths[i] += counts[i];
    low.lengths.upload(world.lengths);
    high.device.lengths.upload(world.lengths);
    const int longest = *std::max_element(world.lengths.begin(), world.lengths.end());
    decode_into(expected, low, longest, dtype);
    decode_into(got, high.device, longest, dtype);
    const std::string where = what + ", " + std::to_string(counts[0]) + "+" + std::to_string(counts[1]) +
                              (verbs == Verbs::kAttendEncode ? " tokens in one step" : " tokens");
    ASSERT_FALSE(testing::Test::HasFailure()) << where;
    EXPECT_EQ(differences(got.out, expected.out).first, 0u) << where << ", out";
    EXPECT_EQ(differences(got.lse, expected.lse).first, 0u) << where << ", lse";
    EXPECT_EQ(differences(got.pages, expected.pages).first, 0u) << where << ", pages";
    EXPECT_EQ(differences(got.fringe, expected.fringe).first, 0u) << where << ", fringe";
    EXPECT_EQ(differences(got.keys, expected.keys).first, 0u) << where << ", decoded keys";
    EXPECT_EQ(differences(got.values, expected.values).first, 0u) << where << ", decoded values";
    ASSERT_FALSE(testing::Test::HasFailure());
  }
}

TEST(HighPages, AreReadAndWrittenAsLowOnes) {
  if (!has_memory(kFar + (kFar >> 3))) GTEST_SKIP() << "less than 4.5 GiB of free device memory";
  for (const bool metric : {false, true})
    for (const int group : {1, 8})
      for (const int d : {48, 64, 80, 128, 256}) {
        Shape shape;
        shape.format = {d, 4, 3};
        shape.kv_heads = d == 128 ? 33 : 2;  // 33: encode's prefill kernels
        shape.group = group;
        shape.metric = metric;
        shape.fringe_first = metric ? 4 : 0;
        shape.fringe_recent = metric ? 28 : 0;
        expect_same_above(shape, DType::kBF16, name_of(shape.format) + ", group " + std::to_string(group));
        if (HasFailure()) return;
      }
  Shape shape;
  expect_same_above(shape, DType::kF32, name_of(shape.format) + ", fp32");
}

}  // namespace
}  // namespace turboquant::gpu
