// SPDX-License-Identifier: Apache-2.0
// The schedule of many_rows: what a host that knows only the sizes of a call decides.
#include <algorithm>

#include "kernels/cuda/attend/kernels.h"
#include "kernels/cuda/attend/many_rows/launch.cuh"
#include "kernels/cuda/attend/many_rows/warpgroup/layout.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

// What the schedule needs of a head_dim's kernel.
using LaunchTiles = Status (*)(const AttendArgs&, int, const Partials&, const many::Cut&, const Context&);
struct Instance {
  int warp_rows;
  int (*shared_bytes)(int warps, int stages);
  LaunchTiles launch;
};

template <int D>
constexpr Instance instance() {
  return {many::Layout<D>::kWarpRows, many::Layout<D>::bytes, many::launch_many_rows<D>};
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

// The kernel of a call and its CTAs.
struct Size {
  LaunchTiles launch = nullptr;  // null: none fits
  int warps = 0, stages = 0;
  int rows = 0;
  std::int64_t slots = 0;  // CTAs that run at once
};
// Warpgroups where they exist. Else a CTA of 8 warps expands a page for twice as many rows; one of 4 warps
// wastes less on few rows.
Size choose_size(int head_dim, const DeviceLimits& limits, std::int64_t rows_a_sequence, int device) {
  if (head_dim == many::WarpgroupLayout::kDim && many::warpgroups_run_on(device))
    return {many::launch_many_rows_warpgroup, 0, 0, many::WarpgroupLayout::kRows, limits.sm_count};
  const Instance instance = instance_of(head_dim);
  if (instance.launch == nullptr) return {};
  constexpr int kSizes[][2] = {{8, 2}, {8, 1}, {4, 1}};
  for (const auto& [warps, stages] : kSizes) {
    const int bytes = instance.shared_bytes(warps, stages), rows = warps * instance.warp_rows;
    if (bytes + 1024 > limits.shared_bytes || (warps == 8 && rows_a_sequence <= rows / 2)) continue;
    const bool twice = warps == 4 && 2 * (bytes + 1024 + 256) <= limits.shared_bytes;
    return {instance.launch, warps, stages, rows, std::int64_t{limits.sm_count} * (twice ? 2 : 1)};
  }
  return {};
}

// Whether every head vector begins at a multiple of 16 bytes.
template <class AnyRows>
bool vectors_aligned(const AnyRows& rows) {
  const auto bytes = static_cast<std::int64_t>(size_of(rows.dtype));
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.token_stride * bytes % 16 == 0 &&
         rows.head_stride * bytes % 16 == 0;
}

// Each sequence with more than min_rows rows may have a last tile that is partly empty.
std::int64_t most_tiles(int tile_rows, std::int64_t rows, int sequences, int min_rows) {
  return (rows + std::min<std::int64_t>(sequences, rows / (min_rows + 1)) * (tile_rows - 1)) / tile_rows;
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
  const auto limits = device_limits(context.device.index);
  return limits.ok() &&
         choose_size(args.pages.format.head_dim, limits.value(), 1, context.device.index).launch != nullptr &&
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
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return 0;
  std::int64_t wave = 0;
  for (const std::int64_t rows : {std::int64_t{1}, tokens * q_heads}) {
    const Size size = choose_size(format.head_dim, limits.value(), rows, context.device.index);
    wave = std::max(wave, size.slots * size.rows);
  }
  return partial_bytes(1, std::min(kMaxSplits * tokens * q_heads, kMaxSplitWaves * wave), format.head_dim);
}

Status many_rows(const AttendArgs& args, int min_rows, const Context& context) {
  const int head_dim = args.pages.format.head_dim;
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  const int group = args.q_heads / args.pages.kv_heads;
  const std::int64_t rows = args.sequences.tokens * group;
  if (rows <= min_rows) return {};
  const Size size = choose_size(head_dim, limits.value(), rows / args.sequences.count, context.device.index);
  if (size.launch == nullptr)
    return unsupported("no many_rows kernel for head_dim=" + std::to_string(head_dim) +
                       ", or it needs more shared memory than this device has");
  const std::int64_t tiles = most_tiles(size.rows, rows, args.sequences.count, min_rows);
  const std::int64_t own_pages = args.keys.data == nullptr ? 0 : args.sequences.tokens / kPageTokens;
  const int splits =
      choose_splits(tiles * args.pages.kv_heads, size.slots, args.sequences.max_pages + own_pages);
  const Partials partials =
      make_partials(splits, args.sequences.tokens * args.q_heads, head_dim, args.workspace);
  const many::Cut cut{size.warps, size.stages,
                      dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(args.pages.kv_heads),
                           static_cast<unsigned>(splits))};
  if (Status s = size.launch(args, min_rows, partials, cut, context); !s.ok()) return s;
  return splits == 1 ? Status{} : merge(args, min_rows, partials, context);
}

}  // namespace turboquant::kernels::cuda
