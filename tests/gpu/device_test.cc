// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "device_world.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda_table.h"

namespace turboquant::gpu {
namespace {

TEST(Device, HasLimitsThatAKernelCanUse) {
  const auto limits = kernels::cuda::device_limits(0);
  ASSERT_TRUE(limits.ok()) << limits.error().message;
  EXPECT_GE(limits.value().sm_count, 1);
  EXPECT_GE(limits.value().shared_bytes, 48 * 1024);
  EXPECT_GE(limits.value().major, 8);
  EXPECT_FALSE(kernels::cuda::device_limits(-1).ok());
}

TEST(Device, IsSupportedForEveryVerb) {
  for (const char* verb : {"rotate", "balance", "key_metric", "encode", "decode", "attend"})
    EXPECT_TRUE(supports(verb, {128, 4, 4}, DeviceType::kCuda).ok()) << verb;
}

TEST(Device, ThatIsNotThereIsADeviceError) {
  int count = 0;
  TQ_CUDA_CHECK(cudaGetDeviceCount(&count));
  World world({});
  DeviceWorld device(world);
  const DeviceCall call(world.random_call({1, 1}), DType::kF32);
  Context context = device.context();
  context.device.index = count;
  const Status status = encode(device.encode_args(call), context);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, Code::kDevice) << status.error().message;
}

TEST(Device, ReportsALaunchThatFails) {
  World world({});
  DeviceWorld device(world);
  const DeviceCall call(world.random_call({1, 1}), DType::kF32);
  EncodeArgs args = device.encode_args(call);
  args.pages.data = nullptr;
  EXPECT_FALSE(encode(args, device.context()).ok());
}

}  // namespace
}  // namespace turboquant::gpu
