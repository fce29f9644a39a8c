// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include "attend_bound.h"

// attend on the device against the reference on the host: the bound, and the same bits from run to run.
namespace turboquant::gpu {

// What a call asks besides its rows; the same on both sides.
struct Options {
  int window = 0;
  float softcap = 0;
  std::vector<float> sinks = {};  // [q_heads], or empty
  bool history_only = false;
  bool settled = false;
  int most_tokens = 0;
};

inline void apply(const Options& options, AttendArgs& a, const float* sinks) {
  a.window = options.window;
  a.softcap = options.softcap;
  a.sinks = options.sinks.empty() ? nullptr : sinks;
  a.settled = options.settled;
  a.sequences.most_tokens = options.most_tokens;
  if (options.history_only) a.keys = a.values = {};
}

inline World::Attended attend_on_host(World& world, const World::Call& call, const Options& options = {}) {
  AttendArgs a = world.attend_args(call);
  apply(options, a, options.sinks.data());
  return world.attend(kernels::kReference, a);
}

// Outputs on the device; a failure of the call is one of the test.
inline DeviceAttended attend_on_device(DeviceWorld& device, const DeviceCall& call,
                                       const Options& options = {}) {
  AttendArgs a = device.attend_args(call);
  const DeviceArray<float> sinks(options.sinks);
  apply(options, a, sinks);
  device.set_workspace(a);
  DeviceAttended result = device.outputs(a, call.dtype);
  const Status status = attend(a, device.context());
  if (!status.ok()) ADD_FAILURE() << status.error().message;
  device.stream.wait();
  return result;
}

// Where a result stands that is to be compared: of element i of out, its row, head and coordinate.
inline std::string place(const World& world, std::size_t i) {
  const std::size_t d = World::n(world.d()), heads = World::n(world.q_heads());
  return "row " + std::to_string(i / d / heads) + ", head " + std::to_string(i / d % heads) +
         ", coordinate " + std::to_string(i % d);
}

// False after the first failure.
inline bool expect_close(const World& world, const std::vector<float>& out, const std::vector<float>& lse,
                         const World::Attended& expected, const Allowed& allowed, const std::string& what) {
  double squares = 0, worst = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double error = std::fabs(static_cast<double>(out[i]) - static_cast<double>(expected.out[i]));
    if (std::isnan(out[i]) && std::isnan(expected.out[i])) continue;
    if (!(error <= allowed.out)) {
      ADD_FAILURE() << what << ", " << place(world, i) << ": " << out[i] << " instead of " << expected.out[i]
                    << ", allowed " << allowed.out;
      return false;
    }
    squares += error * error;
    if (error > worst) worst = error, at = i;
  }
  const double rms = out.empty() ? 0 : std::sqrt(squares / static_cast<double>(out.size()));
  if (!(rms <= allowed.out_rms)) {
    ADD_FAILURE() << what << ": root mean square error " << rms << ", allowed " << allowed.out_rms
                  << "; the worst, " << worst << ", in " << place(world, at);
    return false;
  }
  for (std::size_t i = 0; i < lse.size(); ++i) {
    const bool same = lse[i] == expected.lse[i] || (std::isnan(lse[i]) && std::isnan(expected.lse[i]));
    if (same || std::fabs(lse[i] - expected.lse[i]) <= allowed.lse) continue;
    ADD_FAILURE() << what << ", lse of row and head " << i << ": " << lse[i] << " instead of "
                  << expected.lse[i] << ", allowed " << allowed.lse;
    return false;
  }
  return true;
}

// A call on a world that both sides hold.
inline bool expect_attend(World& world, DeviceWorld& device, World::Call call, const std::string& what,
                          DType dtype = DType::kF32, const Options& options = {}) {
  round_to(dtype, call);
  const World::Attended expected = attend_on_host(world, call, options);
  AttendArgs host = world.attend_args(call);
  apply(options, host, nullptr);
  const DeviceCall there(call, dtype);
  const DeviceAttended got = attend_on_device(device, there, options);
  const DeviceAttended again = attend_on_device(device, there, options);
  if (testing::Test::HasFailure()) return false;
  if (got.out.download() != again.out.download() ||
      std::memcmp(got.lse.download().data(), again.lse.download().data(), got.lse.size() * sizeof(float)) !=
          0) {
    ADD_FAILURE() << what << ": two runs differ";
    return false;
  }
  return expect_close(world, got.out_floats(), got.lse.download(), expected,
                      allowed(world, call, host, dtype), what);
}

// The whole of most tests: a history of calls, which the reference encodes, then a call of `own` tokens.
inline bool expect_attend(const Shape& shape, const std::vector<std::vector<int>>& history,
                          const std::vector<int>& own, const std::string& what, DType dtype = DType::kF32,
                          const Options& options = {}) {
  World world(shape);
  for (const auto& counts : history) world.append(kernels::kReference, world.random_call(counts));
  DeviceWorld device(world);
  return expect_attend(world, device, world.random_call(own), what, dtype, options);
}

}  // namespace turboquant::gpu
