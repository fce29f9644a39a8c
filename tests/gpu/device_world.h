// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "device_array.h"
#include "unit/kernels/world.h"

// The cache of unit/kernels/world.h once more on the device, so that a test reads as on the CPU:
//   World world(shape); DeviceWorld device(world); ... device.append(call) beside world.append(kReference,
//   call)
namespace turboquant::gpu {

using kernels::Shape;
using kernels::World;

// float vectors as elements of a dtype, 2 or 4 bytes each, and back.
inline std::vector<std::uint8_t> to_bytes(DType dtype, const std::vector<float>& values) {
  std::vector<std::uint8_t> bytes(values.size() * size_of(dtype));
  kernels::store_vector(dtype, bytes.data(), 0, static_cast<int>(values.size()), values.data());
  return bytes;
}
inline std::vector<float> to_floats(DType dtype, const std::vector<std::uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / size_of(dtype));
  kernels::load_vector({dtype, bytes.data(), 0, 0}, 0, 0, static_cast<int>(values.size()), values.data());
  return values;
}
// What a model of this dtype would have computed: the reference then sees the same numbers as the device.
inline void round_to(DType dtype, World::Call& call) {
  for (std::vector<float>* rows : {&call.query, &call.keys, &call.values})
    *rows = to_floats(dtype, to_bytes(dtype, *rows));
}

struct DeviceCall {
  DeviceCall(const World::Call& call, DType type)
      : dtype(type),
        tokens(call.tokens()),
        token_starts(call.token_starts),
        query(to_bytes(type, call.query)),
        keys(to_bytes(type, call.keys)),
        values(to_bytes(type, call.values)) {}

  DType dtype;
  std::int64_t tokens;
  DeviceArray<std::int32_t> token_starts;
  DeviceArray<std::uint8_t> query, keys, values;
};

// The result of attend on the device, on the device.
struct DeviceAttended {
  DType dtype;
  DeviceArray<std::uint8_t> out;
  DeviceArray<float> lse;

  std::vector<float> out_floats() const { return to_floats(dtype, out.download()); }
};

class DeviceWorld {
 public:
  explicit DeviceWorld(const World& world)
      : shape(world.shape),
        group(world.shape.group),
        plan_base(world.plan.base),
        key_signs(world.key_signs),
        query_signs(world.query_signs),
        value_signs(world.value_signs),
        base_matrix(world.plan.base > 1 ? world.plan.base_matrix : std::vector<float>()),
        key_metric(world.key_metric),
        table(world.table),
        lengths(world.lengths),
        starts(world.shape.starts),
        recent_starts(world.recent_starts),
        page_bytes(world.page_bytes),
        fringe_halves(world.fringe_halves) {}

  // Takes over what the host changed: pages, fringe, table, lengths, recent_starts.
  void upload(const World& world) {
    page_bytes.upload(world.page_bytes);
    fringe_halves.upload(world.fringe_halves);
    table.upload(world.table);
    lengths.upload(world.lengths);
    recent_starts.upload(world.recent_starts);
  }

  int d() const { return shape.format.head_dim; }
  int q_heads() const { return shape.kv_heads * group; }
  Context context() const {
    return {.device = {DeviceType::kCuda, 0}, .stream = {stream}, .executor = nullptr};
  }

  Pages pages() {
    const std::size_t page = World::n(shape.kv_heads) * shape.format.page_bytes();
    return {shape.format, shape.kv_heads, static_cast<std::int64_t>(page_bytes.size() / page),
            page_bytes.data()};
  }
  Basis basis() const { return {key_signs, query_signs, value_signs, plan_base, base_matrix, key_metric}; }
  Fringe fringe() {
    if (fringe_halves.size() == 0) return {};
    return {shape.fringe_first, shape.fringe_recent, fringe_halves.data(), recent_starts};
  }
  Sequences sequences(const std::int32_t* token_starts, std::int64_t tokens) const {
    return {shape.sequences, shape.max_pages, table, lengths, starts, token_starts, tokens};
  }
  Rows rows(DType dtype, const DeviceArray<std::uint8_t>& data, int heads) const {
    return {dtype, data, std::int64_t{heads} * d(), d()};
  }

  EncodeArgs encode_args(const DeviceCall& call) {
    return {pages(),
            basis(),
            fringe(),
            sequences(call.token_starts, call.tokens),
            rows(call.dtype, call.keys, shape.kv_heads),
            rows(call.dtype, call.values, shape.kv_heads)};
  }
  // encode, then the lengths that World::append has set on the host.
  Status append(const World& world, const World::Call& host_call, DType dtype = DType::kF32) {
    const DeviceCall call(host_call, dtype);
    Status status = encode(encode_args(call), context());
    stream.wait();
    lengths.upload(world.lengths);
    return status;
  }

  AttendArgs attend_args(const DeviceCall& call) {
    AttendArgs a;
    a.pages = pages();
    a.basis = basis();
    a.fringe = fringe();
    a.sequences = sequences(call.token_starts, call.tokens);
    a.q_heads = q_heads();
    a.query = rows(call.dtype, call.query, q_heads());
    a.keys = rows(call.dtype, call.keys, shape.kv_heads);
    a.values = rows(call.dtype, call.values, shape.kv_heads);
    a.scale = 1.0f / std::sqrt(static_cast<float>(d()));
    return a;
  }
  // Poisoned outputs, set in the arguments.
  DeviceAttended outputs(AttendArgs& a, DType dtype) {
    const auto rows = static_cast<std::size_t>(a.sequences.tokens) * World::n(q_heads());
    DeviceAttended result{dtype, DeviceArray<std::uint8_t>(rows * World::n(d()) * size_of(dtype)),
                          DeviceArray<float>(rows)};
    result.out.fill_bytes(0xff);
    result.lse.fill_bytes(0xff);
    a.out = {dtype, result.out.data(), std::int64_t{q_heads()} * d(), d()};
    a.lse = result.lse.data();
    return result;
  }
  // The workspace that a needs, zeroed once and then used by call after call.
  void set_workspace(AttendArgs& a) {
    const std::size_t bytes = attend_workspace_bytes(shape.format, shape.kv_heads, a.q_heads, shape.sequences,
                                                     a.sequences.tokens, context());
    if (bytes > workspace.size()) {
      workspace = DeviceArray<std::uint8_t>(bytes);
      workspace.fill_bytes(0);
    }
    a.workspace = workspace.data();
    a.workspace_bytes = bytes;
  }

  Shape shape;
  int group, plan_base;
  DeviceStream stream;
  DeviceArray<float> key_signs, query_signs, value_signs, base_matrix;
  DeviceArray<std::int8_t> key_metric;
  DeviceArray<std::int32_t> table, lengths, starts, recent_starts;
  DeviceArray<std::uint8_t> page_bytes;
  DeviceArray<std::uint16_t> fringe_halves;
  DeviceArray<std::uint8_t> workspace;
};

}  // namespace turboquant::gpu
