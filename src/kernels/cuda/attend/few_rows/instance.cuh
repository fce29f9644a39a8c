// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/few_rows.h"
#include "kernels/cuda/attend/few_rows/kernel.cuh"
#include "kernels/cuda/launch.h"

// The kernels of one head_dim.
namespace turboquant::kernels::cuda::few_rows {

template <int kDim, int kBits, class F>
auto with_wide_shape(const Config& config, F f) {
  if constexpr (kDim <= 128) {  // sums of 32 rows fit a warp's registers
    if (config.tiles == 8) return f(WideShape<kDim, 32, 1, kBits>{});
  } else {
    if (config.sharing == 2) return f(WideShape<kDim, 16, 2, kBits>{});
  }
  return f(WideShape<kDim, 16, 1, kBits>{});
}

// Calls f with the Shape of a config. The configs are those that few_rows.cc chooses from. Decoding from keys
// and values of one width has a kernel of its own, and so have 8 to 32 rows of 4-bit codes at head_dim 128:
// without the other widths' code, a page takes less time. Decoding of few sequences has one for 4-bit codes.
template <int kDim, class F>
auto with_shape(const Config& config, const PageFormat& format, F f) {
  if (config.tiles == 1) {
    if constexpr (kDim <= kMostSplitDim)
      if (config.split == 2) return f(Shape<kDim, 1, 4, 2>{});
    if (format.k_bits != format.v_bits) return f(Shape<kDim, 1, 0>{});
    if (format.k_bits == 4) return f(Shape<kDim, 1, 4>{});
    if (format.k_bits == 3) return f(Shape<kDim, 1, 3>{});
    return f(Shape<kDim, 1, 2>{});
  }
  if constexpr (kDim == 128)
    if (format.k_bits == 4 && format.v_bits == 4) {
      if (config.tiles == 2) return f(Shape<kDim, 2, 4>{});
      return with_wide_shape<kDim, 4>(config, f);
    }
  if (config.tiles == 2) return f(Shape<kDim, 2, 0>{});
  return with_wide_shape<kDim, 0>(config, f);
}

template <int kDim>
Footprint footprint(const Config& config, int sequences) {
  return with_shape<kDim>(config, PageFormat{kDim, 4, 4}, [&](auto shape) {
    using S = decltype(shape);
    static_assert(S::kWide || S::kPartFloats * sizeof(float) <= kMailRows * kMailRowBytes);
    int append = 0;
    if constexpr (!S::kWide) append = append_warp_bytes<S>();
    return Footprint{
        SharedLayout<S>::fixed_bytes(sequences), S::kStreams, S::kSlots, S::kSplit, S::kPartFloats, append};
  });
}

template <int kDim>
Status launch_config(const Config& config, const Params& params, int shared_bytes, const Context& context) {
  const auto launch_shape = [&](auto shape) {
    using S = decltype(shape);
    return launch(
        {.name = "attend (few_rows)",
         .grid = dim3(static_cast<unsigned>(params.ctas_per_head),
                      static_cast<unsigned>(params.a.pages.kv_heads)),
         .block = dim3(static_cast<unsigned>(kWarps + (S::kAppends ? params.append_warps : 0)) * 32),
         .shared_bytes = static_cast<std::size_t>(shared_bytes),
         .overlap = true},
        context, few_rows_kernel<S>, params);
  };
  if constexpr (kDim <= kMostAppendDim)  // those that has_append_kernel() names
    if (params.append_warps > 0) {
      if (config.split == 2) return launch_shape(Appending<Shape<kDim, 1, 4, 2>>{});
      return launch_shape(Appending<Shape<kDim, 1, 4>>{});
    }
  return with_shape<kDim>(config, params.a.pages.format, launch_shape);
}

}  // namespace turboquant::kernels::cuda::few_rows
