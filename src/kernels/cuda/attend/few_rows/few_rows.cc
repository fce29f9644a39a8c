// SPDX-License-Identifier: Apache-2.0
// What the host decides for few_rows: the config, the grid, the ring, where the workspace's parts lie.
#include "kernels/cuda/attend/few_rows/few_rows.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda::few_rows {
namespace {

const Instance* find_instance(int head_dim) {
  for (const Instance* instance : {&kDim64, &kDim80, &kDim96, &kDim128, &kDim192, &kDim256})
    if (instance->head_dim == head_dim) return instance;
  return nullptr;
}

// With less, a launch is nothing but begin and end.
inline constexpr int kFewSequences = 8;

// From few rows a tile to many; of those above head_dim 128, 32 rows of sums do not fit a warp's registers.
struct Choice {
  int rows;  // of a tile
  Config config;
};
std::array<Choice, 4> choices(const PageFormat& format, int sequences) {
  const int d = format.head_dim;
  // Two warps a page begin and end a launch sooner, one a page begins a segment sooner.
  const bool split =
      sequences < kFewSequences && d <= kMostSplitDim && format.k_bits == 4 && format.v_bits == 4;
  return {{{4, split ? Config{1, 2, 2} : Config{1, 1}},
           {8, {2, 1}},
           {16, {4, 1}},
           {32, d <= 128 ? Config{8, 1} : Config{4, 2}}}};
}

struct Plan {
  const Instance* instance = nullptr;
  Config config{1, 1};
  Footprint footprint{};
  int rows = 0;  // of a tile
  int ctas_per_head = 1, short_ctas = 1, stages = 0, slot_bytes = 0, shared_bytes = 0;
};

// At most `most` CTAs a KV head, and so many that sequences of equal lengths end where CTAs end, if that
// leaves few multiprocessors idle: a CTA with parts of two sequences pays for two merges.
int aligned_ctas(int most, int sequences) {
  const int aligned = sequences <= most ? most / sequences * sequences
                                        : (sequences + (sequences - 1) / most) / ((sequences - 1) / most + 1);
  return aligned * 10 >= most * 9 ? aligned : most;
}

// The CTAs of a KV head that share a short history. Those that merge end a microsecond or two later than the
// others, and as many multiprocessors are spared for the next launch, if there are enough.
inline constexpr int kShortUnits = 48;  // of a CTA
int short_ctas(const Plan& plan, int kv_heads, int sequences, int sm_count) {
  const int spared = std::min((sm_count - kv_heads) / kv_heads, plan.ctas_per_head);
  const bool few = spared * 10 < plan.ctas_per_head * 9;
  return sequences > 1 || plan.config.split > 1 || few ? plan.ctas_per_head : spared;
}

// Units of a stream, up to which one more is what counts: bandwidth is not yet all that does.
inline constexpr int kWholeUnits = 4;

// stages is 0 where not even one slot a stream fits.
Plan make_plan(const PageFormat& format, const Config& config, int kv_heads, int sequences,
               const DeviceLimits& limits) {
  Plan plan;
  plan.instance = find_instance(format.head_dim);
  plan.config = config;
  plan.footprint = plan.instance->footprint(config, sequences);
  const int room = (limits.shared_bytes - plan.footprint.fixed_bytes) / plan.footprint.streams;  // a ring
  const int slot = std::max(static_cast<int>(format.page_bytes()), kExactTokens * 4 * format.head_dim);
  const int part = plan.footprint.part_floats * plan.footprint.split *
                   static_cast<int>(sizeof(float));  // a ring ends as parts
  for (int stages = plan.footprint.slots; stages > 0 && plan.stages == 0; --stages) {
    plan.slot_bytes = std::max(slot, (part / stages + kPageAlignment) / kPageAlignment * kPageAlignment);
    if (stages * plan.slot_bytes <= room) plan.stages = stages;
  }
  plan.ctas_per_head = aligned_ctas(std::max(1, limits.sm_count / kv_heads), sequences);
  plan.short_ctas = short_ctas(plan, kv_heads, sequences, limits.sm_count);
  plan.shared_bytes = plan.stages * plan.slot_bytes * plan.footprint.streams + plan.footprint.fixed_bytes;
  return plan;
}

// The smallest row tile that holds the rows of an average sequence; a smaller one where that does not fit.
// Without a kernel, or where not even one slot fits: stages is 0.
Plan plan_call(const PageFormat& format, int kv_heads, int q_heads, int sequences, std::int64_t tokens,
               const DeviceLimits& limits) {
  Plan plan;
  if (find_instance(format.head_dim) == nullptr || sequences > kMaxSequences ||
      static_cast<std::size_t>(std::max(limits.sm_count, kv_heads)) > kMostCtas)
    return plan;
  const std::int64_t rows = (tokens + sequences - 1) / sequences * (q_heads / kv_heads);
  for (const Choice& choice : choices(format, sequences)) {
    Plan next = make_plan(format, choice.config, kv_heads, sequences, limits);
    if (choice.config.split > 1 && next.stages < next.footprint.slots)  // its four streams want all of them
      next = make_plan(format, {choice.config.tiles, 1}, kv_heads, sequences, limits);
    if (next.stages == 0) break;
    plan = next;
    plan.rows = choice.rows;
    if (choice.rows >= rows) break;
  }
  return plan;
}

template <class T>
T aligned(T bytes, T to = 256) {
  return (bytes + to - 1) / to * to;
}

// Sizes in bytes of the workspace's areas of parts, behind kZeroBytes.
struct Areas {
  std::size_t cta_parts, warp_parts;
};
Areas areas_of(const Plan& plan, int kv_heads) {
  const auto ctas = static_cast<std::size_t>(plan.ctas_per_head) * static_cast<std::size_t>(kv_heads);
  const auto part = static_cast<std::size_t>(plan.footprint.part_floats) * sizeof(float);
  return {aligned(ctas * 2 * part),
          aligned(ctas * static_cast<std::size_t>(plan.footprint.streams * plan.footprint.split) * part)};
}

// Not all kernels are compiled a second time: others have no registers to spare, or are rare.
bool has_append_kernel(const PageFormat& format, const Config& config) {
  return format.head_dim <= kMostAppendDim && config.tiles == 1 && format.k_bits == 4 && format.v_bits == 4;
}

// Of more tokens a CTA, encode by itself is as fast.
constexpr int kMostAppends = 4;
// Four warps leave none of a multiprocessor's registers to a CTA of the next launch: for more than two tokens
// a CTA.
constexpr int kAppendsOfTwoWarps = 2;
int append_warps(const Plan& plan, int sequences) {
  return plan.config.split == 1 && sequences > plan.ctas_per_head * kAppendsOfTwoWarps ? 4 : 2;
}
int append_bytes(const Plan& plan, int sequences) {
  return append_warps(plan, sequences) * plan.footprint.append_warp_bytes;
}

}  // namespace

bool fits(const AttendArgs& a, const Context& context) {
  const auto limits = device_limits(context.device.index);
  return limits.ok() && plan_call(a.pages.format, a.pages.kv_heads, a.q_heads, a.sequences.count,
                                  a.sequences.tokens, limits.value())
                                .stages > 0;
}

bool can_append(const AttendArgs& a, const Context& context) {
  const Sequences& s = a.sequences;
  const auto limits = device_limits(context.device.index);
  if (!limits.ok() || s.tokens != s.count || a.keys.data == nullptr) return false;
  const Plan plan = plan_call(a.pages.format, a.pages.kv_heads, a.q_heads, s.count, s.tokens, limits.value());
  return plan.rows >= a.q_heads / a.pages.kv_heads && has_append_kernel(a.pages.format, plan.config) &&
         aligned(plan.shared_bytes, 16) + append_bytes(plan, s.count) <= limits.value().shared_bytes &&
         s.count <= plan.ctas_per_head * kMostAppends;
}

Status attend(const AttendArgs& a, int most_rows, const Context& context, Then then) {
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  const PageFormat& format = a.pages.format;
  const int group = a.q_heads / a.pages.kv_heads;
  // Planned for all of the call's sequences, whichever of them are left to another kernel.
  const Plan plan =
      plan_call(format, a.pages.kv_heads, a.q_heads, a.sequences.count, a.sequences.tokens, limits.value());
  if (plan.stages == 0)
    return unsupported("few_rows has no kernel for head_dim=" + std::to_string(format.head_dim) +
                       " that fits this device's shared memory");
  Params p;
  p.a = a;
  p.append_warps = then == Then::kAppend ? append_warps(plan, a.sequences.count) : 0;
  p.group = group;
  p.group_inverse = 1.0f / static_cast<float>(group);
  p.most_rows = most_rows;
  p.ctas_per_head = plan.ctas_per_head;
  p.cta_inverse = 1.0 / plan.ctas_per_head;
  p.short_ctas = plan.short_ctas;
  p.short_inverse = 1.0 / plan.short_ctas;
  p.short_units = plan.short_ctas < plan.ctas_per_head ? plan.ctas_per_head * kShortUnits : 0;
  p.whole_units = plan.ctas_per_head * plan.footprint.streams * kWholeUnits;
  p.stages = plan.stages;
  // Of few sequences, the last launch's CTAs would wait behind these bytes for each other's parts.
  p.prefetched = a.sequences.count < kFewSequences ? 0 : 2;
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
  p.centre_unit = static_cast<float>(std::sqrt(static_cast<double>(format.head_dim)));
  p.query_unit = a.softcap > 0 ? a.scale / a.softcap * p.out_unit : a.scale * kLog2e * p.out_unit;
  p.own_unit = a.softcap > 0 ? a.scale / a.softcap : a.scale * kLog2e;
  p.cap = a.softcap * kLog2e;
  const Areas areas = areas_of(plan, a.pages.kv_heads);
  auto* workspace = static_cast<std::uint8_t*>(a.workspace);
  p.arrivals = reinterpret_cast<int*>(workspace);
  p.mail = reinterpret_cast<float*>(workspace + kCounterBytes);
  p.cta_parts = reinterpret_cast<float*>(workspace + kZeroBytes);
  p.warp_parts = reinterpret_cast<float*>(workspace + kZeroBytes + areas.cta_parts);
  p.append_at = aligned(plan.shared_bytes, 16);
  return plan.instance->launch(plan.config, p,
                               p.append_at + p.append_warps * plan.footprint.append_warp_bytes, context);
}

std::size_t workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, std::int64_t tokens,
                            const Context& context) {
  const auto limits = device_limits(context.device.index);
  if (!limits.ok() || find_instance(format.head_dim) == nullptr) return 0;
  // What any call of at most `tokens` rows needs, however many sequences they are of.
  std::size_t most = 0;
  for (const Choice& choice : choices(format, 1)) {  // parts of split pages take as much
    Plan plan;
    plan.footprint = find_instance(format.head_dim)->footprint(choice.config, 1);
    plan.ctas_per_head = std::max(1, limits.value().sm_count / kv_heads);
    const Areas areas = areas_of(plan, kv_heads);
    most = std::max(most, kZeroBytes + areas.cta_parts + areas.warp_parts);
    if (choice.rows >= tokens * (q_heads / kv_heads)) break;
  }
  return most;
}

}  // namespace turboquant::kernels::cuda::few_rows
