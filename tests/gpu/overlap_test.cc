// SPDX-License-Identifier: Apache-2.0
// Kernels of a stream that may overlap (programmatic dependent launch) give what kernels one at a time give.
#include "expect_attend.h"
#include "expect_bytes.h"
#include "graph.h"

namespace turboquant::gpu {
namespace {

constexpr int kLayers = 3, kSteps = 6, kRepeats = 50;

// Of the tokens that attend attends with.
enum class Encodes { kNo, kAfter, kTogether };

// A loop over a few layers: attend, and encode of the same `own` tokens a sequence, layer after layer, step
// after step.
class Loop {
 public:
  Loop(const Shape& shape, int own) {
    std::vector<int> history;
    for (int i = 0; i < shape.sequences; ++i) history.push_back(61 + i * 83 % 400);
    for (unsigned layer = 0; layer < kLayers; ++layer) {
      worlds_.push_back(std::make_unique<World>(shape, layer + 1));
      World& world = *worlds_.back();
      world.append(kernels::kReference, world.random_call(history));
      devices_.push_back(std::make_unique<DeviceWorld>(world));
      pristine_pages_.emplace_back(world.page_bytes);
      pristine_fringes_.emplace_back(world.fringe_halves);
      for (int step = 0; step < kSteps; ++step) {
        lengths_.emplace_back(world.lengths);
        World::Call call = world.random_call(std::vector<int>(history.size(), own));
        round_to(DType::kBF16, call);
        calls_.push_back(std::make_unique<DeviceCall>(call, DType::kBF16));
        AttendArgs a = device(0).attend_args(*calls_.back());
        results_.push_back(device(0).outputs(a, DType::kBF16));
        world.append(kernels::kReference, call);
      }
    }
  }

  // The reference's bytes after the last step.
  const World& world(int layer) const { return *worlds_[World::n(layer)]; }
  DeviceWorld& device(int layer) { return *devices_[World::n(layer)]; }
  const DeviceStream& stream() { return device(0).stream; }

  void reset() {
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      copy(devices_[layer]->page_bytes, pristine_pages_[layer]);
      copy(devices_[layer]->fringe_halves, pristine_fringes_[layer]);
    }
    for (DeviceAttended& result : results_)
      TQ_CUDA_CHECK(cudaMemsetAsync(result.out.data(), 0xff, result.out.size(), stream()));
  }
  // Launches all steps on one stream. With `wait`, one kernel at a time.
  void run(bool settled, Encodes encodes, bool wait) {
    for (int step = 0; step < kSteps; ++step)
      for (int layer = 0; layer < kLayers; ++layer) {
        const std::size_t at = World::n(layer * kSteps + step);
        DeviceCall& call = *calls_[at];
        AttendArgs a = device(layer).attend_args(call);
        a.sequences.lengths = lengths_[encodes != Encodes::kNo ? at : World::n(layer * kSteps)];
        device(0).set_workspace(a);
        a.out = {DType::kBF16, results_[at].out.data(), std::int64_t{a.q_heads} * device(0).d(),
                 device(0).d()};
        a.lse = results_[at].lse.data();
        a.settled = settled;
        if (encodes == Encodes::kTogether) {
          expect_ok(attend_encode(a, device(0).context()), wait);
          continue;
        }
        expect_ok(attend(a, device(0).context()), wait);
        if (encodes == Encodes::kNo) continue;
        EncodeArgs e = device(layer).encode_args(call);
        e.sequences.lengths = a.sequences.lengths;
        e.settled = settled;
        expect_ok(encode(e, device(0).context()), wait);
      }
  }
  std::vector<std::vector<std::uint8_t>> outputs() const {
    std::vector<std::vector<std::uint8_t>> all;
    for (const DeviceAttended& result : results_) all.push_back(result.out.download());
    return all;
  }

 private:
  void expect_ok(const Status& status, bool wait) {
    ASSERT_TRUE(status.ok()) << status.error().message;
    if (wait) stream().wait();
  }
  template <class T>
  void copy(DeviceArray<T>& to, const DeviceArray<T>& from) {
    if (from.size() > 0)
      TQ_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), from.size() * sizeof(T), cudaMemcpyDeviceToDevice,
                                    stream()));
  }

  std::vector<std::unique_ptr<World>> worlds_;
  std::vector<std::unique_ptr<DeviceWorld>> devices_;
  std::vector<DeviceArray<std::uint8_t>> pristine_pages_;
  std::vector<DeviceArray<std::uint16_t>> pristine_fringes_;
  std::vector<DeviceArray<std::int32_t>> lengths_;
  std::vector<std::unique_ptr<DeviceCall>> calls_;
  std::vector<DeviceAttended> results_;
};

void expect_equal_runs(const Shape& shape, int own, Encodes encodes) {
  Loop loop(shape, own);
  loop.reset();
  loop.run(false, encodes, true);
  const auto expected = loop.outputs();
  const bool writes = encodes != Encodes::kNo;
  for (int layer = 0; writes && layer < kLayers; ++layer)
    ASSERT_TRUE(expect_same_bytes(loop.world(layer), loop.device(layer), "one at a time"));
  for (const bool settled : {false, true}) {
    Graph graph(loop.stream(), [&] { loop.run(settled, encodes, false); });
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      const std::string what =
          std::string(settled ? "settled" : "not settled") + ", repeat " + std::to_string(repeat);
      loop.reset();
      if (repeat % 2 == 0) loop.run(settled, encodes, false);
      else graph.launch(loop.stream());
      loop.stream().wait();
      const auto got = loop.outputs();
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_EQ(differences(got[i], expected[i]).first, 0u)
            << what << ", layer " << i / kSteps << ", step " << i % kSteps;
      for (int layer = 0; writes && layer < kLayers; ++layer)
        ASSERT_TRUE(expect_same_bytes(loop.world(layer), loop.device(layer), what));
    }
  }
}

Shape shape_of(int head_dim, int sequences, int fringe) {
  Shape shape;
  shape.format = {head_dim, 4, 4};
  shape.sequences = sequences;
  shape.group = 4;
  shape.max_pages = 10;
  shape.fringe_first = fringe > 0 ? 4 : 0;
  shape.fringe_recent = fringe;
  return shape;
}

TEST(Overlap, OfDecodeStepsChangesNoBit) {
  for (const int fringe : {0, 28})
    for (const Encodes encodes : {Encodes::kAfter, Encodes::kTogether})
      expect_equal_runs(shape_of(128, 5, fringe), 1, encodes);
}

TEST(Overlap, OfAFewSequencesOrManyChangesNoBit) {
  for (const Encodes encodes : {Encodes::kAfter, Encodes::kTogether}) {
    expect_equal_runs(shape_of(64, 1, 28), 1, encodes);
    expect_equal_runs(shape_of(96, 40, 28), 1, encodes);
  }
}

TEST(Overlap, OfChunksChangesNoBit) {
  expect_equal_runs(shape_of(128, 3, 28), 20, Encodes::kAfter);
  expect_equal_runs(shape_of(112, 3, 28), 3, Encodes::kTogether);
}

TEST(Overlap, OfAttendAfterAttendChangesNoBit) {
  for (const int own : {1, 20}) expect_equal_runs(shape_of(128, 3, 28), own, Encodes::kNo);
}

}  // namespace
}  // namespace turboquant::gpu
