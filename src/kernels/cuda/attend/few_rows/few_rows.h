// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/params.h"

// Host side of few_rows: attend by int8 tensor cores, or fp16 ones above 8 rows, for sequences of at most
// most_rows (query, head of the group) pairs a KV head. 16-bit queries; head_dim 64, 80, 96, 128, 192 or 256.
namespace turboquant::kernels::cuda::few_rows {

// Whether there is a kernel for this call's format and sizes, and this device's shared memory holds it.
bool fits(const AttendArgs& args, const Context& context);

// The workspace begins with counters and mail (params.h), which are zero between calls; what lies behind
// kZeroBytes may be used by anyone in between.
inline constexpr std::size_t kMostCtas =
    256;  // of a launch whose CTAs share rows: a device's multiprocessors
inline constexpr std::size_t kCounterBytes = kMostCtas * kMostTileRows * sizeof(int);
inline constexpr std::size_t kMailRows = 2 * kTileRows, kMailRowBytes = (256 + 8) * sizeof(float);
inline constexpr std::size_t kZeroBytes = kCounterBytes + kMostCtas * kMailRows * kMailRowBytes;

// Whether the launch can encode the call's own tokens too: one a sequence, few enough of them.
bool can_append(const AttendArgs& args, const Context& context);

enum class Then { kNothing, kAppend };
Status attend(const AttendArgs& args, int most_rows, const Context& context, Then then = Then::kNothing);
std::size_t workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, std::int64_t tokens,
                            const Context& context);

// Column tiles a warp, warps a stream of pages, and warps that split a page (shape.cuh).
struct Config {
  int tiles, sharing, split = 1;
};
inline constexpr int kMostSplitDim = 128, kMostAppendDim = 128;
// What a launch of a head_dim and config takes from shared memory besides its ring, for `sequences`
// sequences.
struct Footprint {
  int fixed_bytes, streams;
  int slots;               // of a ring, at most
  int split, part_floats;  // parts a stream; of a part
  int append_warp_bytes;   // more for each warp that appends
};

// One a head_dim, in head_dim_<dim>.cu.
struct Instance {
  int head_dim;
  Footprint (*footprint)(const Config&, int sequences);
  Status (*launch)(const Config&, const Params&, int shared_bytes, const Context&);
};
extern const Instance kDim64, kDim80, kDim96, kDim128, kDim192, kDim256;

}  // namespace turboquant::kernels::cuda::few_rows
