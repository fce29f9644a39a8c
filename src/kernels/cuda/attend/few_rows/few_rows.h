// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/params.h"

// Host side of few_rows: attend by int8 tensor cores, or fp16 ones above 8 rows, for sequences of at most
// most_rows (query, head of the group) pairs a KV head. 16-bit queries; head_dim 64, 80, 96, 128, 192 or 256.
namespace turboquant::kernels::cuda::few_rows {

// Whether there is a kernel for this call's format and sizes, and this device's shared memory holds it.
bool fits(const AttendArgs& args, const Context& context);

// The workspace begins with counters that are zero between calls; what lies behind kCounterBytes may be used
// by anyone in between.
inline constexpr std::size_t kCounterBytes = 32768;

Status attend(const AttendArgs& args, int most_rows, const Context& context);
std::size_t workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, std::int64_t tokens,
                            const Context& context);

// Column tiles a warp, and warps a stream of pages (shape.cuh).
struct Config {
  int tiles, sharing;
};
// What a launch of a head_dim and config takes from shared memory besides its ring, for `sequences`
// sequences.
struct Footprint {
  int fixed_bytes, streams, part_floats;
};

// One a head_dim, in head_dim_<dim>.cu.
struct Instance {
  int head_dim;
  Footprint (*footprint)(const Config&, int sequences);
  Status (*launch)(const Config&, const Params&, int shared_bytes, const Context&);
};
extern const Instance kDim64, kDim80, kDim96, kDim128, kDim192, kDim256;

}  // namespace turboquant::kernels::cuda::few_rows
