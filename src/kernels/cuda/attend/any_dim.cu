// SPDX-License-Identifier: Apache-2.0
// attend for whatever the fast kernels do not take: any head_dim and dtype, fp32 arithmetic on fp32 values. A
// CTA takes 16 rows of a sequence and KV head over tiles of 16 tokens, decoded into shared memory.
#include <algorithm>

#include "core/layout.h"
#include "core/tables.h"
#include "kernels/cuda/attend/kernels.h"
#include "kernels/cuda/attend/many_rows/work.cuh"
#include "kernels/cuda/attend/merge.cuh"
#include "kernels/cuda/hadamard.cuh"
#include "kernels/cuda/launch.h"

namespace turboquant::kernels::cuda {
namespace {

using many::Seen;
using many::TileSpan;
using many::Work;

constexpr int kRows = 16, kTokens = 16, kThreads = 128;
constexpr int kMaxItems = kMaxPageHeadDim / kThreads;  // 4 x 4 blocks of the sums that a thread owns
static_assert(kRows * kMaxPageHeadDim / 16 == kMaxItems * kThreads);

// Dynamic shared memory; rows of an odd number of float4, so that rows lie in different banks.
struct Tile {
  int d, pitch;
  float *queries, *keys, *values, *weights, *factors, *tables, *scales;

  __device__ explicit Tile(int head_dim) : d(head_dim), pitch(head_dim + 4) {
    extern __shared__ __align__(16) float any_dim_shared[];
    queries = any_dim_shared;             // [kRows][pitch]
    keys = queries + kRows * pitch;       // [kTokens][pitch]
    values = keys + kTokens * pitch;      // [kTokens][d]
    weights = values + kTokens * d;       // [kTokens][kRows]
    factors = weights + kTokens * kRows;  // [kRows]
    tables = factors + kRows;             // [2][16]: keys, values; a code's T / 64
    scales = tables + 32;                 // [2][kTokens]
  }
};
std::size_t shared_bytes(int d) {
  return sizeof(float) *
         static_cast<std::size_t>(2 * kRows * (d + 4) + kTokens * d + kTokens * kRows + kRows + 64);
}

// A row's running softmax, the same in the 8 lanes that own the row; sums of values are elsewhere.
struct Running {
  float largest = -INFINITY, sum = 0.0f;
};

// The sums of item (thread + 128 k): rows 4 (item / (d / 4)) .. + 3, coordinates 4 (item % (d / 4)) .. + 3.
struct Block {
  int row, coordinate;
  bool exists;
};
__device__ Block block_of(int k, int d) {
  const int item = static_cast<int>(threadIdx.x) + kThreads * k, quads = d / 4;
  return {4 * (item / quads), 4 * (item % quads), item < d};
}

__device__ float steps_of(const core::CodeTable& table, int code) {
  const int magnitude = table.magnitudes[code & (table.magnitude_count - 1)];
  return static_cast<float>((code & table.magnitude_count) != 0 ? -magnitude : magnitude) /
         (core::kScaleUnit * static_cast<float>(table.half_steps));
}
__device__ void fill_tables(const PageFormat& format, float* tables) {
  constexpr core::CodeTable kKeys[] = {core::kEither2, core::kEither3, core::kKey4},
                            kValues[] = {core::kEither2, core::kEither3, core::kValue4};
  if (threadIdx.x >= 32) return;
  const int code = static_cast<int>(threadIdx.x & 15),
            bits = threadIdx.x < 16 ? format.k_bits : format.v_bits;
  tables[threadIdx.x] =
      code < 1 << bits ? steps_of((threadIdx.x < 16 ? kKeys : kValues)[bits - 2], code) : 0.0f;
}

__device__ float half_at(const std::uint8_t* area, int index) {
  return __half2float(reinterpret_cast<const __half*>(area)[index]);
}

// The codes of coordinate e of a page, of tokens first .. first + 15. Where they lie: core/layout.h; a 3-bit
// code's sign is in an area of its own.
struct KeyCodes {
  const std::uint8_t *low, *high;  // of token `first`; high: the signs of 3 bits, else null
  int low_shift, high_shift, low_step, high_step, mask;

  __device__ KeyCodes(const std::uint8_t* area, int d, int bits, int first, int e) {
    const int width = core::plane_of(d, e).width, b = bits == 3 ? 2 : bits;
    const core::CodePosition at = core::key_position(d, b, first, e),
                             sign = core::key_position(d, 1, first, e);
    low = area + at.byte, low_shift = at.shift, low_step = width * b / 8, mask = (1 << b) - 1;
    high = bits == 3 ? area + 16 * d + sign.byte : nullptr, high_shift = sign.shift, high_step = width / 8;
  }
  __device__ int at(int t) const {
    const int code = low[t * low_step] >> low_shift & mask;
    return high == nullptr ? code : code | (high[t * high_step] >> high_shift & 1) << 2;
  }
};
struct ValueCodes {
  const std::uint8_t* area;
  int d, bits, first, unit, units;  // unit of q = 0; units from q to q + 1

  __device__ ValueCodes(const std::uint8_t* codes, int dim, int width, int token, int e)
      : area(codes), d(dim), bits(width), first(token), unit(static_cast<int>(core::value_unit(dim, e, 0))) {
    units = dim - e / 32 * 32 >= 32 ? 4 : 2;
  }
  // Bits of the 16 codes c = 8 i + 4 h + n that a unit holds in nibbles c % (4 b).
  __device__ int bits_at(const std::uint8_t* from, int b, int u, int c) const {
    const int nibble = u * 4 * b + (c & (4 * b - 1));
    return from[nibble >> 1] >> ((nibble & 1) * 4 + c / (4 * b) * b) & ((1 << b) - 1);
  }
  __device__ int at(int t) const {
    const int token = first + t, i = token >> 5, c = 8 * i + 4 * (token & 1) + (token >> 3 & 3);
    const int u = unit + units * (token >> 1 & 3);
    if (bits == 4) {
      const int nibble = (4 * d * i + u) * 8 + (c & 7);
      return area[nibble >> 1] >> (nibble & 1) * 4 & 15;
    }
    const int code = bits_at(area, 2, u, c);
    return bits == 2 ? code : code | bits_at(area + 16 * d, 1, u, c) << 2;
  }
};

// Calls body(e, t, step) for each coordinate: it does tokens t, t + step, ..
template <class Body>
__device__ void for_each_coordinate(int d, Body body) {
  const int thread = static_cast<int>(threadIdx.x), groups = d < kThreads ? kThreads / d : 1;
  if (groups == 1)
    for (int e = thread; e < d; e += kThreads) body(e, 0, 1);
  else if (thread < groups * d) body(thread % d, thread / d, groups);
}

// Slots first .. first + 15 of a page; those outside [begin, end) become 0. A key's scale and sign bit lie
// in tile.scales at [t], a value's scale at [16 + t].
__device__ bool decode_page(const std::uint8_t* page, const PageFormat& format, int first, int begin, int end,
                            const Tile& tile) {
  const int d = tile.d, thread = static_cast<int>(threadIdx.x);
  if (thread < 2 * kTokens) {
    const int slot = first + (thread & 15);
    const std::uint8_t* scales =
        page + (thread < kTokens ? format.k_scales_offset() : format.v_scales_offset());
    tile.scales[thread] = slot >= begin && slot < end ? half_at(scales, core::scale_index(slot)) : 0.0f;
  }
  __syncthreads();
  const float step = half_at(page + format.centre_step_offset(), 0);
  const auto* centre = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  for_each_coordinate(d, [&](int e, int from, int by) {
    const KeyCodes k_codes(page, d, format.k_bits, first, e);
    const ValueCodes v_codes(page + format.v_codes_offset(), d, format.v_bits, first, e);
    const float c = step * static_cast<float>(centre[e]);
#pragma unroll 4
    for (int t = from; t < kTokens; t += by) {
      const float k = tile.scales[t], v = tile.scales[kTokens + t];
      const bool exists = first + t >= begin && first + t < end;
      const float reference = signbit(k) || !exists ? 0.0f : c;
      tile.keys[t * tile.pitch + e] = reference + fabsf(k) * tile.tables[k_codes.at(t)];
      tile.values[t * d + e] = v * tile.tables[16 + v_codes.at(t)];
    }
  });
  return thread >= 2 * kTokens || isfinite(tile.scales[thread]);
}

// Slots first .. first + 15 of a tile of the fringe or of the call's own tokens.
template <class KeyAt, class ValueAt>
__device__ bool load_tokens(const Rows& keys, const Rows& values, int first, int end, const Tile& tile,
                            KeyAt key_at, ValueAt value_at) {
  bool finite = true;
  for_each_coordinate(tile.d, [&](int e, int from, int by) {
#pragma unroll 4
    for (int t = from; t < kTokens; t += by) {
      const bool exists = first + t < end;
      const float value = exists ? load_element(values.dtype, values.data, value_at(first + t) + e) : 0.0f;
      tile.keys[t * tile.pitch + e] =
          exists ? load_element(keys.dtype, keys.data, key_at(first + t) + e) : 0.0f;
      tile.values[t * tile.d + e] = value;
      finite = finite && isfinite(value);
    }
  });
  return finite;
}

__device__ bool load_tile(const AttendArgs& a, const Work& w, int item, const TileSpan& span, int first,
                          const Tile& tile) {
  const int d = tile.d;
  if (item < w.pages_end) {
    const std::uint8_t* page =
        page_of(a.pages, a.sequences, w.sequence, static_cast<int>(w.page_begin) + item, w.head,
                static_cast<std::int64_t>(a.pages.format.page_bytes()));
    return decode_page(page, a.pages.format, first, span.begin, span.end, tile);
  }
  if (item >= w.recent_end) {
    const std::int64_t row = w.first_token + (span.position - w.length);
    return load_tokens(
        a.keys, a.values, first, span.end, tile, [&](int slot) { return row_at(a.keys, row + slot, w.head); },
        [&](int slot) { return row_at(a.values, row + slot, w.head); });
  }
  const std::int64_t slots = a.fringe.first + a.fringe.recent;
  const std::int64_t base = (std::int64_t{w.sequence} * a.pages.kv_heads + w.head) * slots;
  const auto at = [&](int slot) {
    const std::int64_t p = span.position + slot;
    return (base + (item < w.first_end ? p - w.start : a.fringe.first + p % a.fringe.recent)) * 2 * d;
  };
  const Rows fringe{DType::kF16, a.fringe.data};
  return load_tokens(fringe, fringe, first, span.end, tile, at, [&](int slot) { return at(slot) + d; });
}

// The warp's 4 rows in shared memory, transformed in place; scratch lies in the tile of values.
__device__ void rotate_rows(const AttendArgs& a, float* rows, const Tile& tile, bool transposed) {
  const int warp = static_cast<int>(threadIdx.x / 32), base = a.basis.base;
  __syncwarp();
  warp_hadamard(rows + 4 * warp * tile.pitch, 4, tile.pitch, base, tile.d / base, a.basis.base_matrix,
                transposed, tile.values + warp * tile.d);
}

__device__ void load_queries(const AttendArgs& a, const Work& w, bool rotated, const Tile& tile) {
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x / 32);
  const int group = a.q_heads / a.pages.kv_heads, d = tile.d;
  const float unit = rotated ? 1.0f / sqrtf(static_cast<float>(d)) : 1.0f;
  const float* signs = a.basis.query_signs + w.head * d;
  for (int r = 4 * warp; r < 4 * warp + 4; ++r) {
    const std::int64_t pair = w.first_row + r;
    const std::int64_t at =
        row_at(a.query, w.first_token + pair / group, w.head * group + static_cast<int>(pair % group));
    for (int e = lane; e < d; e += 32)
      tile.queries[r * tile.pitch + e] =
          r < w.rows ? load_element(a.query.dtype, a.query.data, at + e) * (rotated ? signs[e] : 1.0f) : 0.0f;
  }
  if (rotated) rotate_rows(a, tile.queries, tile, false);
  for (int r = 4 * warp; r < 4 * warp + 4; ++r)
    for (int e = lane; e < d; e += 32) tile.queries[r * tile.pitch + e] *= unit * a.scale;
}

// Scores of row thread / 8 with tokens 2 (thread % 8) and + 1, softmax, weights and factors to shared memory.
__device__ void weigh(const AttendArgs& a, const Seen& seen, int first, const Tile& tile, Running& running) {
  const int row = static_cast<int>(threadIdx.x / 8), t = 2 * static_cast<int>(threadIdx.x % 8);
  const auto* q = reinterpret_cast<const float4*>(tile.queries + row * tile.pitch);
  float score[2];
  float4 sums[2] = {};
  const auto* k0 = reinterpret_cast<const float4*>(tile.keys + t * tile.pitch);
  const auto* k1 = reinterpret_cast<const float4*>(tile.keys + (t + 1) * tile.pitch);
  for (int e = 0; e < tile.d / 4; ++e) {
    const float4 x = q[e], y = k0[e], z = k1[e];
    sums[0].x += x.x * y.x, sums[0].y += x.y * y.y, sums[0].z += x.z * y.z, sums[0].w += x.w * y.w;
    sums[1].x += x.x * z.x, sums[1].y += x.y * z.y, sums[1].z += x.z * z.z, sums[1].w += x.w * z.w;
  }
  float largest = -INFINITY;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    float s = (sums[k].x + sums[k].y) + (sums[k].z + sums[k].w);
    if (a.softcap > 0) s = a.softcap * tanhf(s / a.softcap);
    const bool sees = first + t + k >= seen.begin && first + t + k < seen.end;
    score[k] = sees ? s * 1.4426950408889634f : -INFINITY;
    largest = fmaxf(largest, score[k]);
  }
  for (int step = 1; step < 8; step *= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  largest = fmaxf(largest, running.largest);
  const float factor = largest == running.largest ? 1.0f : exp2f(running.largest - largest);
  const float from = largest == -INFINITY ? 0.0f : largest;
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float weight = exp2f(score[k] - from);
    tile.weights[(t + k) * kRows + row] = weight;
    sum += weight;
  }
  for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  running.sum = running.sum * factor + sum;
  running.largest = largest;
  if (t == 0) tile.factors[row] = factor;
}

__device__ void add_values(const AttendArgs& a, const Work& w, const TileSpan& span, int first, bool finite,
                           const Tile& tile, float (&sums)[kMaxItems][4][4]) {
  const int group = a.q_heads / a.pages.kv_heads;
#pragma unroll
  for (int k = 0; k < kMaxItems; ++k) {
    const Block block = block_of(k, tile.d);
    if (!block.exists) continue;
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[k][r][c] *= tile.factors[block.row + r];
    Seen seen[4];
    if (!finite)  // 0 times NaN: rows that do not see a token must not multiply it
#pragma unroll
      for (int r = 0; r < 4; ++r)
        seen[r] = many::seen_slots(a, w, span, static_cast<int>((w.first_row + block.row + r) / group));
    for (int t = 0; t < kTokens; ++t) {
      const float4 v = *reinterpret_cast<const float4*>(tile.values + t * tile.d + block.coordinate);
      const float4 p = *reinterpret_cast<const float4*>(tile.weights + t * kRows + block.row);
      const float values[4] = {v.x, v.y, v.z, v.w}, weights[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (!finite && (first + t < seen[r].begin || first + t >= seen[r].end)) continue;
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[k][r][c] += weights[r] * values[c];
      }
    }
  }
}

// Sums of rotated values become sums in the model's basis, through the tile of keys.
__device__ void unrotate(const AttendArgs& a, const Work& w, const Tile& tile,
                         float (&sums)[kMaxItems][4][4]) {
  const float unit = 1.0f / sqrtf(static_cast<float>(tile.d));
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kMaxItems; ++k) {
    const Block block = block_of(k, tile.d);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (block.exists) tile.keys[(block.row + r) * tile.pitch + block.coordinate + c] = sums[k][r][c];
  }
  __syncthreads();
  rotate_rows(a, tile.keys, tile, true);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kMaxItems; ++k) {
    const Block block = block_of(k, tile.d);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (block.exists)
          sums[k][r][c] = tile.keys[(block.row + r) * tile.pitch + block.coordinate + c] * unit *
                          a.basis.value_signs[w.head * tile.d + block.coordinate + c];
  }
  __syncthreads();
}

// A row's maximum and sum live with the threads that score it; the sums' threads get them here.
__device__ void finish(const AttendArgs& a, const Work& w, const Partials& partials, int split,
                       const Running& running, const Tile& tile, const float (&sums)[kMaxItems][4][4]) {
  const int group = a.q_heads / a.pages.kv_heads;
  const auto token_of = [&](int r) { return w.first_token + (w.first_row + r) / group; };
  const auto head_of = [&](int r) { return w.head * group + static_cast<int>((w.first_row + r) % group); };
  const int row = static_cast<int>(threadIdx.x / 8);
  __syncthreads();
  if (threadIdx.x % 8 == 0 && row < w.rows) {
    const std::int64_t index = token_of(row) * a.q_heads + head_of(row);
    tile.factors[row] = 1.0f;
    if (partials.splits > 1) {
      *partials.softmax(split, index) = {running.largest, running.sum};
    } else {
      const Ending ending = end_row(a, head_of(row), running.largest, running.sum);
      tile.factors[row] = ending.normal;
      if (a.lse != nullptr) a.lse[index] = ending.lse;
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kMaxItems; ++k) {
    const Block block = block_of(k, tile.d);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (!block.exists || block.row + r >= w.rows) continue;
      const std::int64_t token = token_of(block.row + r);
      const int head = head_of(block.row + r);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float x = sums[k][r][c] * tile.factors[block.row + r];
        if (partials.splits > 1)
          partials.sums(split, token * a.q_heads + head, tile.d)[block.coordinate + c] = x;
        else store_element(a.out.dtype, a.out.data, row_at(a.out, token, head) + block.coordinate + c, x);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    any_dim_kernel(const __grid_constant__ AttendArgs a, Partials partials) {
  __shared__ Work w;
  const Tile tile(a.pages.format.head_dim);
  const int group = a.q_heads / a.pages.kv_heads, split = static_cast<int>(blockIdx.z);
  if (threadIdx.x < 32) {
    const int2 found =
        many::find_tile(a.sequences, group, 0, kRows, static_cast<int>(gridDim.x - 1 - blockIdx.x));
    if (threadIdx.x == 0)
      w = many::make_work(a, found, kRows, static_cast<int>(blockIdx.y), split, partials.splits);
  }
  fill_tables(a.pages.format, tile.tables);
  __syncthreads();
  if (w.rows == 0) return;

  Running running;
  float sums[kMaxItems][4][4] = {};
  const int row = static_cast<int>(threadIdx.x / 8);
  const int token = static_cast<int>((w.first_row + (row < w.rows ? row : w.rows - 1)) / group);
  enum { kNone, kRotated, kModel } domain = kNone;
  for (int item = w.begin;; ++item) {
    const auto wanted = item < w.recent_end && item < w.end ? kRotated : kModel;
    if (domain == kRotated && wanted == kModel) unrotate(a, w, tile, sums);
    if (item >= w.end) break;
    if (domain != wanted) load_queries(a, w, wanted == kRotated, tile);
    domain = wanted;
    const TileSpan span = many::tile_span(w, item);
    const Seen seen = many::seen_slots(a, w, span, token);
    for (int first = span.begin / kTokens * kTokens; first < span.end; first += kTokens) {
      __syncthreads();
      const bool finite = __syncthreads_and(load_tile(a, w, item, span, first, tile));
      weigh(a, seen, first, tile, running);
      __syncthreads();
      add_values(a, w, span, first, finite, tile, sums);
    }
  }
  finish(a, w, partials, split, running, tile, sums);
}

// Splits only while CTAs alone would leave the device idle, whatever the lengths.
constexpr int kMaxSplits = 64;
int choose_splits(std::int64_t ctas, int sm_count) {
  const std::int64_t wanted = ctas == 0 ? 1 : (4 * sm_count + ctas - 1) / ctas;
  return static_cast<int>(std::clamp<std::int64_t>(wanted, 1, kMaxSplits));
}
std::int64_t most_tiles(int group, int sequences, std::int64_t tokens) {
  return (tokens * group + std::min<std::int64_t>(sequences, tokens * group) * (kRows - 1)) / kRows;
}

}  // namespace

std::size_t any_dim_workspace_bytes(const PageFormat& format, int /*kv_heads*/, int q_heads,
                                    int /*sequences*/, std::int64_t tokens, const Context& context) {
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return 0;
  // rows <= kRows * ctas; splits > 1 only where ctas < 4 SMs, and then splits * ctas < 4 SMs + ctas.
  const std::int64_t most = std::min<std::int64_t>(std::int64_t{kMaxSplits} * tokens * q_heads,
                                                   std::int64_t{8} * limits.value().sm_count * kRows);
  return partial_bytes(1, most, format.head_dim);
}

Status any_dim(const AttendArgs& args, const Context& context) {
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  const int d = args.pages.format.head_dim;
  const std::int64_t tiles =
      most_tiles(args.q_heads / args.pages.kv_heads, args.sequences.count, args.sequences.tokens);
  const int splits = choose_splits(tiles * args.pages.kv_heads, limits.value().sm_count);
  const Partials partials = make_partials(splits, args.sequences.tokens * args.q_heads, d, args.workspace);
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(args.pages.kv_heads),
                  static_cast<unsigned>(splits));
  if (Status s = launch({"attend: any head_dim", grid, dim3(kThreads), shared_bytes(d)}, context,
                        any_dim_kernel, args, partials);
      !s.ok())
    return s;
  return splits == 1 ? Status{} : merge(args, -1, partials, context);
}

}  // namespace turboquant::kernels::cuda
