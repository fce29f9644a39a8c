// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/many_rows/centres.cuh"
#include "kernels/cuda/attend/many_rows/expand.cuh"
#include "kernels/cuda/attend/many_rows/finish.cuh"
#include "kernels/cuda/attend/many_rows/raw_tile.cuh"

// Flash attention over pages: a CTA takes a tile of rows and loops over tiles of 64 tokens. With two stages
// of shared memory the codes of page n + 1 become fp16 between the MMAs of tile n, which leave most issue
// slots free: one barrier a page. With one stage: barrier; tile n; barrier; expand page n + 1.
namespace turboquant::kernels::cuda::many {

// Copies the split's pages, one ahead; the page table is read two ahead.
template <int D>
struct PageReader {
  const std::int32_t* entries;  // of the next page
  const std::uint8_t* pages;    // of the KV head and this thread
  std::int64_t pitch;           // bytes from pool page to pool page
  int bytes, left;              // of a page; pages that are still to be copied
  std::int32_t entry;
  std::uint32_t to;

  __device__ PageReader(const AttendArgs& a, const PageConstants& constants, const Work& w, int begin,
                        int end, std::uint8_t* packed /* of stage 0 */)
      : entries(a.sequences.page_table + std::int64_t{w.sequence} * a.sequences.max_pages + w.page_begin +
                begin),
        pitch(constants.bytes * a.pages.kv_heads),
        bytes(constants.centre),
        left(end - begin),
        entry(left > 0 ? *entries : 0) {
    const int at = 16 * static_cast<int>(threadIdx.x);
    pages = a.pages.data + constants.bytes * w.head + at;
    to = shared_address(packed) + at;
    bytes -= at;
  }
  __device__ void copy(int stage) {
    if (left <= 0) return;
    const int step = 16 * static_cast<int>(blockDim.x);
    const std::uint8_t* from = pages + entry * pitch;
    std::uint32_t at = to + stage * Layout<D>::kStageBytes;
#pragma unroll 1
    for (int rest = bytes; rest > 0; rest -= step, at += step, from += step) cp_async_16(at, from);
    ++entries;
    if (--left > 0) entry = *entries;
  }
};

// A CTA's shared memory, and the warp's part of it.
template <int D>
struct Shared {
  using L = Layout<D>;
  std::uint8_t* base;
  int stages, rows;

  __device__ Shared(std::uint8_t* memory, int stage_count)
      : base(memory), stages(stage_count), rows(static_cast<int>(blockDim.x >> 5) * L::kWarpRows) {}
  __device__ Flags& flags() const { return *reinterpret_cast<Flags*>(base + L::kFlags); }
  __device__ std::uint8_t* stage(int s) const { return base + L::kStages + s * L::kStageBytes; }
  __device__ std::uint8_t* keys(int s) const { return stage(s) + L::kKeys; }
  __device__ std::uint8_t* values(int s) const { return stage(s) + L::kValues; }
  __device__ std::uint8_t* packed(int s) const { return stage(s) + L::kPacked; }
  __device__ float* centred(int s) const {
    return reinterpret_cast<float*>(base + L::kCentred) + s * kPageTokens;
  }
  __device__ std::uint8_t* centres() const { return base + L::kCentres; }
  __device__ std::uint8_t* queries() const { return stage(stages); }
  __device__ float* centre_scores() const { return reinterpret_cast<float*>(queries() + rows * L::kPitch); }
  __device__ float* row_scale() const { return centre_scores() + rows * kCentreBatch; }
  __device__ int* row_token() const { return reinterpret_cast<int*>(row_scale() + rows); }

  static __device__ int warp_row() { return static_cast<int>(threadIdx.x >> 5) * L::kWarpRows; }
  __device__ std::uint32_t warp_queries() const { return shared_address(queries()) + warp_row() * L::kPitch; }
  __device__ float* warp_centre_scores() const { return centre_scores() + warp_row() * kCentreBatch; }
  __device__ const int* warp_row_token() const { return row_token() + warp_row(); }
};

// The tile in shared memory: scores, softmax, values. unit: of its keys; batch_page: which of the centre
// scores are its own, or -1.
// share_of(first, share): the part of the next page that the thread expands in the step from slot `first` on.
template <int D, class ShareOf>
__device__ inline void attend_tile(const AttendArgs& a, const Work& w, const Shared<D>& shared, int stage,
                                   int item, bool whole, float unit, int batch_page, Sums<Layout<D>>& sums,
                                   ShareOf share_of) {
  using L = Layout<D>;
  const int g = static_cast<int>(threadIdx.x & 31) >> 2;
  float scale[L::kMmaRows][2], to_powers[L::kMmaRows][2], centre[L::kMmaRows][2];
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * b + 8 * half + g;
      scale[b][half] = shared.row_scale()[Shared<D>::warp_row() + row] * unit;
      to_powers[b][half] = a.softcap > 0 ? 1.0f : scale[b][half];
      centre[b][half] = batch_page < 0 ? 0.0f : shared.warp_centre_scores()[row * kCentreBatch + batch_page];
    }
#pragma unroll 1
  for (int first = 0; first < kPageTokens; first += L::kStepTokens) {
    Scores<L> s;
    Share<D> share;
    const bool expands = share_of(first, share);
    multiply_keys<Layout<D>>(shared.warp_queries(), shared_address(shared.keys(stage)) + first * L::kPitch,
                             shared.centred(stage) + first, centre, s, [&](int k) {
                               if (expands && k < Share<D>::kWords) share.expand(k);
                             });
    if (a.softcap > 0) cap_scores<Layout<D>>(a.softcap, scale, s);
    if (!whole) mask<Layout<D>>(a, w, tile_span(w, item), shared.warp_row_token(), first, s);
    raise_maximum<Layout<D>>(to_powers, s, sums);
    multiply_values<Layout<D>>(shared_address(shared.values(stage)), first, to_powers, s, sums);
  }
}

template <int D>
__device__ inline void expand_page(const PageConstants& constants, const Work& w, const Shared<D>& shared,
                                   int stage, int item, std::uint32_t* not_finite) {
  TileSpan tile{0, 0, kPageTokens};
  if (item < w.whole_begin || item >= w.whole_end) tile = tile_span(w, item);
  expand_keys<Layout<D>>(whole_block(), shared.packed(stage), constants, shared.keys(stage),
                         shared.centred(stage));
  expand_values<Layout<D>>(whole_block(), shared.packed(stage), constants, tile.begin, tile.end,
                           shared.values(stage), not_finite);
}

// Tiles begin .. end - 1, all of them pages, of which the first is being copied.
template <int D>
__device__ inline void attend_pages(const AttendArgs& a, const PageConstants& constants, const Work& w,
                                    const Shared<D>& shared, int begin, int end, PageReader<D>& reader,
                                    Sums<Layout<D>>& sums) {
  using L = Layout<D>;
  Flags& flags = shared.flags();
  std::uint32_t spoiled = 0;            // bit 2 block + half: the row sees a value of NaN
  const int other = shared.stages - 1;  // n & other: the stage of tile n
  const bool has_rows = shared.warp_row() < w.rows;
  const int count = end - begin;
  if (count <= 0) return;

#pragma unroll 1
  for (int n = -1; n < count; ++n) {  // the first round only expands page 0
    cp_async_wait_all();
    __syncthreads();
    if (n >= 0) reader.copy(n & other);  // into the stage that tile n - 1, or page n, has left
    else if (other != 0) reader.copy(1);
    if (n > 0 && n % kCentreBatch == 1)
      copy_centres<D>(a, constants, w, begin + n - 1 + kCentreBatch, end, shared_address(shared.centres()));
    if (threadIdx.x < 2) flags.not_finite[(n + 2) & 3][threadIdx.x] = 0;

    const bool more = n + 1 < count, meanwhile = Share<D>::kExists && other != 0 && has_rows && n >= 0;
    const int item = begin + n, next = (n + 1) & other;
    std::uint32_t* next_not_finite = flags.not_finite[(n + 1) & 3];
    if (n >= 0 && has_rows) {
      if (n % kCentreBatch == 0)
        score_centres<D>(shared.warp_queries(), shared.centres(), shared.warp_centre_scores());
      const auto share_of = [&](int first, Share<D>& share) {
        if constexpr (Share<D>::kExists) {
          if (!meanwhile || !more) {
            share.none();
          } else if (first == 0) {
            share.read_keys(shared.packed(next), constants, shared.keys(next), shared.centred(next));
          } else {
            TileSpan tile{0, 0, kPageTokens};
            if (item + 1 < w.whole_begin || item + 1 >= w.whole_end) tile = tile_span(w, item + 1);
            share.read_values(shared.packed(next), constants, tile.begin, tile.end, shared.values(next),
                              next_not_finite);
          }
        }
        return Share<D>::kExists;
      };
      attend_tile<D>(a, w, shared, n & other, item, item >= w.whole_begin && item < w.whole_end, 2.0f,
                     n % kCentreBatch, sums, share_of);  // tiles hold half of a key
      if ((flags.not_finite[n & 3][0] | flags.not_finite[n & 3][1]) != 0)
        spoiled |= rows_that_see<Layout<D>>(a, w, tile_span(w, item), shared.warp_row_token(),
                                            flags.not_finite[n & 3]);
    }
    if (!more || meanwhile) continue;
    if (other == 0 && n >= 0) {
      cp_async_wait_all();
      __syncthreads();
    }
    expand_page<D>(constants, w, shared, next, item + 1, next_not_finite);
  }
  if (spoiled == 0) return;
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if ((spoiled >> (2 * b + c / 2) & 1) != 0) sums.o[b][j][c] = NAN;
}

// Tiles begin .. end - 1, of the fringe and then of the call's own tokens; `rotated` says in which basis the
// queries and the sums are. Returns the unit of the sums: they hold values times it.
template <int D>
__device__ inline float attend_raw(const AttendArgs& a, const Work& w, const Shared<D>& shared, int begin,
                                   int end, bool rotated, Sums<Layout<D>>& sums) {
  using L = Layout<D>;
  Flags& flags = shared.flags();
  const int other = shared.stages - 1;  // n & other: the stage of tile n
  const bool first_half = shared.stages == 1 || threadIdx.x < blockDim.x / 2;
  const bool has_rows = Shared<D>::warp_row() < w.rows;
  const int count = end - begin;
  const auto measure = [&](int n) {
    if (n >= count) return;
    const TileSpan tile = tile_span(w, begin + n);
    measure_raw<D>(raw_tokens<D>(a, w, begin + n, tile), tile.end, flags.largest[n & 3],
                   flags.not_finite[n & 3]);
  };
  const auto to_model = [&] {
#pragma unroll
    for (int b = 0; b < L::kMmaRows; ++b) unrotate<D>(a, w.head, sums.o[b]);
  };
  float unit = 1.0f;
  if (count > 0) {
    __syncthreads();  // nobody uses the stages and flags any more
    if (threadIdx.x < 16) (&flags.not_finite[0][0])[threadIdx.x] = 0;
    __syncthreads();
    measure(0);
  }
#pragma unroll 1
  for (int half = -1; half <= 2 * count; ++half) {  // as in attend_pages(); the last one only unrotates
    const int n = half >> 1, item = begin + n;
    const bool second = (half & 1) != 0;
    const bool computes = n >= 0 && second != first_half;
    if (rotated && (n == count || (computes && item >= w.recent_end))) {
      to_model();
      rotated = false;
      if (n < count) load_queries<Layout<D>>(a, w, false, shared.queries(), shared.row_scale());
    }
    if (n == count) break;
    if (!second || other == 0 || n < 0) __syncthreads();
    if (!second && threadIdx.x < 2)
      flags.not_finite[(n + 3) & 3][threadIdx.x] = flags.largest[(n + 3) & 3][threadIdx.x] = 0;
    if (!computes) {
      if (n + 1 < count) {
        const TileSpan tile = tile_span(w, item + 1);
        const RawTokens tokens = raw_tokens<D>(a, w, item + 1, tile);
        const int stage = (n + 1) & other;
        load_raw<Layout<D>>(tokens, tile.end,
                            raw_units(item + 1 < w.recent_end, tokens.bf16, flags.largest[(n + 1) & 3]),
                            shared.keys(stage), shared.values(stage), shared.centred(stage));
      }
      measure(n + 2);
    } else if (has_rows) {
      const TileSpan tile = tile_span(w, item);
      const RawTokens tokens = raw_tokens<D>(a, w, item, tile);
      const RawUnits units = raw_units(rotated, tokens.bf16, flags.largest[n & 3]);
      if (!rotated && units.value != unit) {
        const float change = units.value / unit;
        unit = units.value;
#pragma unroll
        for (int b = 0; b < L::kMmaRows; ++b)
#pragma unroll
          for (int j = 0; j < D / 8; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) sums.o[b][j][c] *= change;
      }
      attend_tile<D>(a, w, shared, n & other, item, all_seen(a, w, tile), 1.0f / units.key, -1, sums,
                     [](int, Share<D>&) { return false; });
      if ((flags.not_finite[n & 3][0] | flags.not_finite[n & 3][1]) != 0)
        add_not_finite<Layout<D>>(a, w, tile, shared.warp_row_token(), flags.not_finite[n & 3], sums,
                                  [&](int slot, int e) { return widen(tokens.bf16, tokens.value(slot)[e]); });
    }
  }
  return unit;
}

template <int D>
__global__ void __launch_bounds__(32 * Layout<D>::kMaxWarps, 1)
    many_rows_kernel(const __grid_constant__ AttendArgs a, const __grid_constant__ PageConstants constants,
                     int stages, int min_rows, Partials partials) {
  using L = Layout<D>;
  extern __shared__ __align__(128) std::uint8_t many_rows_shared[];
  __shared__ Work w;
  const Shared<D> shared(many_rows_shared, stages);
  const int thread = static_cast<int>(threadIdx.x), group = a.q_heads / a.pages.kv_heads;
  const int split = static_cast<int>(blockIdx.z);

  if (thread < 32) {  // later tiles see more of their own tokens: they go first
    const int index = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    const int2 tile = find_tile(a.sequences, group, min_rows, shared.rows, index);
    if (thread == 0)
      w = make_work(a, tile, shared.rows, static_cast<int>(blockIdx.y), split, partials.splits);
  }
  if (thread < 16) (&shared.flags().not_finite[0][0])[thread] = 0;
  __syncthreads();
  if (w.rows == 0) return;
  if (thread < shared.rows)  // at least as many threads as rows
    shared.row_token()[thread] =
        static_cast<int>((w.first_row + (thread < w.rows ? thread : w.rows - 1)) / group);

  Sums<Layout<D>> sums;
#pragma unroll
  for (int b = 0; b < L::kMmaRows; ++b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) sums.largest[b][half] = -INFINITY;
#pragma unroll
    for (int c = 0; c < 4; ++c) sums.sum[b][c] = 0.0f;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums.o[b][j][c] = 0.0f;
  }
  const int pages_end = w.end < w.pages_end ? w.end : w.pages_end;
  PageReader<D> reader(a, constants, w, w.begin, pages_end, shared.packed(0));
  if (w.begin < pages_end) {
    reader.copy(0);
    copy_centres<D>(a, constants, w, w.begin, pages_end, shared_address(shared.centres()));
  }
  const bool rotated = w.begin < w.recent_end && w.begin < w.end;
  if (w.begin < w.end) load_queries<Layout<D>>(a, w, rotated, shared.queries(), shared.row_scale());
  attend_pages<D>(a, constants, w, shared, w.begin, pages_end, reader, sums);
  const float unit =
      attend_raw<D>(a, w, shared, w.begin > pages_end ? w.begin : pages_end, w.end, rotated, sums);
  finish<Layout<D>>(a, w, partials, split, 1.0f / unit, sums);
}

}  // namespace turboquant::kernels::cuda::many
