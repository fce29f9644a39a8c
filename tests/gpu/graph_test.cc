// SPDX-License-Identifier: Apache-2.0
// One graph serves what lengths, page tables, token counts and rows become on the device.
#include "graph.h"

#include "expect_attend.h"
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

// Pages that no position has reached yet change places in the table, and their bytes are garbage again.
void renumber_free_pages(World& world) {
  std::vector<std::size_t> free;
  for (int i = 0; i < world.shape.sequences; ++i)
    for (int page = (world.lengths[World::n(i)] + 63) / 64; page < world.shape.max_pages; ++page)
      free.push_back(World::n(i * world.shape.max_pages + page));
  for (std::size_t at = free.size(); at > 1; --at)
    std::swap(world.table[free[at - 1]], world.table[free[world.rng() % at]]);
}

// even: every step has as many rows of each sequence, which one call attends and encodes.
void replay(const Shape& shape, const std::vector<std::vector<int>>& steps, DType dtype, bool even = false) {
  World world(shape);
  world.append(kernels::kReference, world.random_call({60, 300, 0}));
  DeviceWorld device(world);
  DeviceCall there(world.random_call(steps[0]), dtype);
  AttendArgs a = device.attend_args(there);
  device.set_workspace(a);
  const DeviceAttended got = device.outputs(a, dtype);
  Graph graph(device.stream, [&] {
    const Status attended = even ? attend_encode(a, device.context()) : attend(a, device.context());
    EXPECT_TRUE(attended.ok()) << attended.error().message;
    if (even) return;
    EncodeArgs e = device.encode_args(there);
    e.settled = true;
    const Status encoded = encode(e, device.context());
    EXPECT_TRUE(encoded.ok()) << encoded.error().message;
  });
  for (std::size_t step = 0; step < steps.size(); ++step) {
    renumber_free_pages(world);
    World::Call call = world.random_call(steps[step]);
    round_to(dtype, call);
    ASSERT_EQ(call.tokens(), there.tokens);
    there.token_starts.upload(call.token_starts);
    there.query.upload(to_bytes(dtype, call.query));
    there.keys.upload(to_bytes(dtype, call.keys));
    there.values.upload(to_bytes(dtype, call.values));
    device.table.upload(world.table);
    device.lengths.upload(world.lengths);
    const World::Attended expected = attend_on_host(world, call);
    const Allowed bound = allowed(world, call, world.attend_args(call), dtype);
    world.append(kernels::kReference, call);
    graph.launch(device.stream);
    device.stream.wait();
    const std::string what = "step " + std::to_string(step);
    if (!expect_close(world, got.out_floats(), got.lse.download(), expected, bound, what)) return;
    if (!expect_same_bytes(world, device, what)) return;
  }
}

TEST(Graph, ServesChangedLengthsTablesAndRows) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.sequences = 3;
  shape.fringe_first = 4;
  shape.fringe_recent = 28;
  shape.group = 4;
  replay(shape, std::vector<std::vector<int>>(80, {1, 1, 1}), DType::kBF16, true);
}

TEST(Graph, ServesAnyDistributionOfItsRows) {
  Shape shape;
  shape.format = {64, 3, 4};
  shape.sequences = 3;
  shape.max_pages = 12;
  replay(shape, {{3, 2, 1}, {0, 6, 0}, {2, 0, 4}, {6, 0, 0}, {1, 1, 4}}, DType::kF32);
  replay(shape, {{90, 2, 1}, {0, 93, 0}, {40, 0, 53}, {1, 1, 91}}, DType::kF32);
}

}  // namespace
}  // namespace turboquant::gpu
