// SPDX-License-Identifier: Apache-2.0
// The schedule of many_rows: what a host that knows only the sizes of a call decides.
#include <algorithm>

#include "kernels/cuda/attend/kernels.h"
#include "kernels/cuda/attend/many_rows/launch.cuh"
#include "kernels/cuda/attend/many_rows/layout.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

// What the schedule needs of a head_dim's kernel.
struct Instance {
  int rows, shared_bytes;
  Status (*launch)(const AttendArgs&, int, const Partials&, dim3, const Context&);
};

template <int D>
constexpr Instance instance() {
  return {many::Layout<D>::kRows, many::Layout<D>::kBytes, many::launch_many_rows<D>};
}

Instance instance_of(int head_dim) {
  switch (head_dim) {
    case 64:
      return instance<64>();
    case 80:
      return instance<80>();
    case 96:
      return instance<96>();
    case 128:
      return instance<128>();
    case 192:
      return instance<192>();
    case 256:
      return instance<256>();
    default:
      return {};
  }
}

// Whether every head vector begins at a multiple of 16 bytes.
template <class AnyRows>
bool vectors_aligned(const AnyRows& rows) {
  const auto bytes = static_cast<std::int64_t>(size_of(rows.dtype));
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.token_stride * bytes % 16 == 0 &&
         rows.head_stride * bytes % 16 == 0;
}

// CTAs that run at once.
std::int64_t slots_of(const Instance& instance, const DeviceLimits& limits) {
  return std::int64_t{limits.sm_count} *
         (limits.shared_bytes + 1024 >= 2 * (instance.shared_bytes + 1024) ? 2 : 1);
}

// A sequence's last tile may be partly empty; only sequences with more than min_rows rows have any.
std::int64_t most_tiles(int rows, int group, int sequences, std::int64_t tokens, int min_rows) {
  const std::int64_t all_rows = tokens * group;
  return all_rows / rows + std::min<std::int64_t>(sequences, all_rows / (min_rows + 1));
}

constexpr int kMaxSplits = 32, kMaxSplitWaves = 2;

// The fewest CTA-times: a split costs a prologue, an epilogue and its part of the merge, about 8 pages' time.
int choose_splits(std::int64_t ctas, std::int64_t slots, std::int64_t pages) {
  constexpr std::int64_t kFixed = 8;
  int best = 1;
  std::int64_t best_time = 0;
  for (int splits = 1; splits <= kMaxSplits; ++splits) {
    if (splits > 1 && (ctas * splits > kMaxSplitWaves * slots || pages < 4 * splits)) break;
    const std::int64_t waves = (ctas * splits + slots - 1) / slots;
    const std::int64_t time = waves * ((pages + splits - 1) / splits + kFixed) + (splits > 1 ? kFixed : 0);
    if (splits == 1 || time < best_time) best = splits, best_time = time;
  }
  return best;
}

}  // namespace

bool many_rows_takes(const AttendArgs& args, const Context& context) {
  const Instance instance = instance_of(args.pages.format.head_dim);
  const auto limits = device_limits(context.device.index);
  return instance.launch != nullptr && limits.ok() && instance.shared_bytes <= limits.value().shared_bytes &&
         args.query.dtype != DType::kF32 && vectors_aligned(args.query) &&
         (args.keys.data == nullptr ||
          (args.keys.dtype != DType::kF32 && args.keys.dtype == args.values.dtype)) &&
         vectors_aligned(args.keys) && vectors_aligned(args.values) && vectors_aligned(args.out) &&
         reinterpret_cast<std::uintptr_t>(args.fringe.data) % 16 == 0;
}

// choose_splits() never makes more than this, however long the histories: rows * splits is at most that of
// kMaxSplitWaves waves of full tiles.
std::size_t many_rows_workspace_bytes(const PageFormat& format, int /*kv_heads*/, int q_heads,
                                      int /*sequences*/, std::int64_t tokens, const Context& context) {
  const Instance instance = instance_of(format.head_dim);
  const auto limits = device_limits(context.device.index);
  if (instance.launch == nullptr || !limits.ok()) return 0;
  const std::int64_t most = std::min(kMaxSplits * tokens * q_heads,
                                     kMaxSplitWaves * slots_of(instance, limits.value()) * instance.rows);
  return partial_bytes(1, most, format.head_dim);
}

Status many_rows(const AttendArgs& args, int min_rows, const Context& context) {
  const Instance instance = instance_of(args.pages.format.head_dim);
  if (instance.launch == nullptr)
    return unsupported("no many_rows kernel for head_dim=" + std::to_string(args.pages.format.head_dim));
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  const int group = args.q_heads / args.pages.kv_heads;
  const std::int64_t tiles =
      most_tiles(instance.rows, group, args.sequences.count, args.sequences.tokens, min_rows);
  if (tiles == 0) return {};
  const std::int64_t own_pages = args.keys.data == nullptr ? 0 : args.sequences.tokens / kPageTokens;
  const int splits = choose_splits(tiles * args.pages.kv_heads, slots_of(instance, limits.value()),
                                   args.sequences.max_pages + own_pages);
  const std::int64_t rows = args.sequences.tokens * args.q_heads;
  const Partials partials = make_partials(splits, rows, args.pages.format.head_dim, args.workspace);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(args.pages.kv_heads),
                  static_cast<unsigned>(splits));
  if (Status s = instance.launch(args, min_rows, partials, grid, context); !s.ok()) return s;
  return splits == 1 ? Status{} : merge(args, min_rows, partials, context);
}

}  // namespace turboquant::kernels::cuda
