// SPDX-License-Identifier: Apache-2.0
// What the host decides for few_rows: the config, the grid, the ring, where the workspace's parts lie.
#include "kernels/cuda/attend/few_rows/few_rows.h"

#include <algorithm>
#include <cmath>

#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda::few_rows {
namespace {

const Instance* find_instance(int head_dim) {
  for (const Instance* instance : {&kDim64, &kDim80, &kDim96, &kDim128, &kDim192, &kDim256})
    if (instance->head_dim == head_dim) return instance;
  return nullptr;
}

// A row tile that holds the rows of an average sequence, if one does.
Config choose_config(int head_dim, int group, int sequences, std::int64_t tokens) {
  const std::int64_t rows = (tokens + sequences - 1) / std::max(sequences, 1) * group;
  if (rows <= 4) return {1, 1};
  if (rows <= 8) return {2, 1};
  if (head_dim <= 128) return rows <= 16 ? Config{4, 1} : Config{4, 2};
  return rows <= 16 ? Config{2, 2} : Config{2, 4};
}

struct Plan {
  const Instance* instance = nullptr;
  Config config{1, 1};
  Footprint footprint{};
  int ctas_per_head = 1, stages = 0, slot_bytes = 0, shared_bytes = 0;
};

// At most `most` CTAs a KV head, and so many that sequences of equal lengths end where CTAs end, if that
// leaves few multiprocessors idle: a CTA with parts of two sequences pays for two merges.
int aligned_ctas(int most, int sequences) {
  const int aligned = sequences <= most ? most / sequences * sequences
                                        : (sequences + (sequences - 1) / most) / ((sequences - 1) / most + 1);
  return aligned * 10 >= most * 9 ? aligned : most;
}

// stages is 0 where not even one slot a stream fits.
Plan make_plan(const PageFormat& format, const Config& config, int kv_heads, int sequences,
               const DeviceLimits& limits) {
  Plan plan;
  plan.instance = find_instance(format.head_dim);
  plan.config = config;
  plan.footprint = plan.instance->footprint(config, sequences);
  plan.slot_bytes = std::max(static_cast<int>(format.page_bytes()), kExactTokens * 4 * format.head_dim);
  const int a_stage = plan.footprint.streams * plan.slot_bytes;
  const int most = kSlotsAWarp * config.sharing;
  plan.stages = std::clamp((limits.shared_bytes - plan.footprint.fixed_bytes) / a_stage, 0, most);
  if (plan.stages * plan.slot_bytes < plan.footprint.part_floats * 4) plan.stages = 0;
  plan.ctas_per_head = aligned_ctas(std::max(1, limits.sm_count / kv_heads), sequences);
  plan.shared_bytes = plan.stages * a_stage + plan.footprint.fixed_bytes;
  return plan;
}

constexpr std::size_t kAlignment = 256;
std::size_t aligned(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Sizes in bytes of the workspace's areas of parts, behind the counters.
struct Areas {
  std::size_t cta_parts, warp_parts;
};
Areas areas_of(const Plan& plan, int kv_heads) {
  const auto ctas = static_cast<std::size_t>(plan.ctas_per_head) * static_cast<std::size_t>(kv_heads);
  const auto part = static_cast<std::size_t>(plan.footprint.part_floats) * sizeof(float);
  return {aligned(ctas * 2 * part), aligned(ctas * static_cast<std::size_t>(plan.footprint.streams) * part)};
}

}  // namespace

bool fits(const PageFormat& format, int device) {
  const auto limits = device_limits(device);
  if (!limits.ok() || find_instance(format.head_dim) == nullptr) return false;
  return make_plan(format, {1, 1}, 1, kMaxSequences, limits.value()).stages > 0;
}

Status attend(const AttendArgs& a, int most_rows, const Context& context) {
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  const PageFormat& format = a.pages.format;
  const int group = a.q_heads / a.pages.kv_heads;
  // The workspace is sized for all of the call's sequences, so one config serves every launch of the call.
  const Config config = choose_config(format.head_dim, group, a.sequences.count, a.sequences.tokens);
  const Plan plan =
      make_plan(format, config, a.pages.kv_heads, std::min(a.sequences.count, kMaxSequences), limits.value());
  if (static_cast<std::size_t>(plan.ctas_per_head) * static_cast<std::size_t>(a.pages.kv_heads) *
          sizeof(int) >
      kCounterBytes)
    return unsupported("kv_heads=" + std::to_string(a.pages.kv_heads) + " needs more than " +
                       std::to_string(kCounterBytes / sizeof(int)) + " blocks");
  if (plan.stages == 0)
    return unsupported("this device's shared memory of " + std::to_string(limits.value().shared_bytes) +
                       " bytes does not hold a page of head_dim=" + std::to_string(format.head_dim) +
                       " a warp");
  Params p;
  p.a = a;
  p.group = group;
  p.group_inverse = 1.0f / static_cast<float>(group);
  p.most_rows = most_rows;
  p.ctas_per_head = plan.ctas_per_head;
  p.stages = plan.stages;
  p.slot_bytes = plan.slot_bytes;
  p.fringe_pieces = (a.fringe.first + a.fringe.recent + kExactTokens - 1) / kExactTokens;
  p.page_bytes = static_cast<int>(format.page_bytes());
  p.v_codes = static_cast<int>(format.v_codes_offset());
  p.k_scales = static_cast<int>(format.k_scales_offset());
  p.v_scales = static_cast<int>(format.v_scales_offset());
  p.centre = static_cast<int>(format.centre_offset());
  p.centre_step = static_cast<int>(format.centre_step_offset());
  constexpr float kLog2e = 1.442695041f;
  p.out_unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(format.head_dim)));
  p.query_unit = a.softcap > 0 ? a.scale / a.softcap * p.out_unit : a.scale * kLog2e * p.out_unit;
  p.cap = a.softcap * kLog2e;
  const Areas areas = areas_of(plan, a.pages.kv_heads);
  auto* workspace = static_cast<std::uint8_t*>(a.workspace);
  p.arrivals = reinterpret_cast<int*>(workspace);
  p.cta_parts = reinterpret_cast<float*>(workspace + kCounterBytes);
  p.warp_parts = reinterpret_cast<float*>(workspace + kCounterBytes + areas.cta_parts);
  return plan.instance->launch(config, p, plan.shared_bytes, context);
}

std::size_t workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                            std::int64_t tokens, const Context& context) {
  const auto limits = device_limits(context.device.index);
  if (!limits.ok() || find_instance(format.head_dim) == nullptr) return 0;
  const auto config = choose_config(format.head_dim, q_heads / kv_heads, sequences, tokens);
  const auto plan = make_plan(format, config, kv_heads, std::min(sequences, kMaxSequences), limits.value());
  const Areas areas = areas_of(plan, kv_heads);
  return kCounterBytes + areas.cta_parts + areas.warp_parts;
}

}  // namespace turboquant::kernels::cuda::few_rows
