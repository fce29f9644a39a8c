// SPDX-License-Identifier: Apache-2.0
// key_metric (kernels/metric_rules.h): a launch that adds queries to the moment, and one that makes the
// metric of it; before the first queries, one that zeroes it. Most of an addition is the rotation of queries
// (queries.cuh); their products are int8 tensor core work.
//
// A block takes rounds of queries of one KV head, as units in shared memory. ldmatrix, transposed, gives what
// mma.m16n8k32 wants of 32 queries: 16 coordinates as operand A, and the same registers as two times 8
// coordinates of operand B. A warp keeps 16 rows and 64 columns of a 128 x 128 tile of the moment in
// registers to the end, and adds them to memory then.
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/key_metric/queries.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kTile = 128;                              // of the moment, squared
constexpr int kRowWarps = kTile / 16;                   // warps with rows of their own
constexpr int kColumns = kTile / (kWarps / kRowWarps);  // of a warp
constexpr int kFinishThreads = 256, kFinishRows = 16;

// Words between pairs: rows of ldmatrix lie in different banks.
__host__ __device__ constexpr int pitch_of(int head_dim) {
  return head_dim + 8;
}

// Tile blockIdx.z of those on and above the moment's diagonal, row by row.
__device__ inline void tile_of(int tiles, int& row, int& column) {
  row = 0;
  column = static_cast<int>(blockIdx.z);
  for (; column >= tiles - row; ++row) column -= tiles - row;
  column += row;
}

template <class Queries>
__global__ void __launch_bounds__(kThreads, 1)
    add_queries(const __grid_constant__ KeyMetricArgs a, const __grid_constant__ Sampled of) {
  extern __shared__ __align__(16) std::uint16_t units[];  // [kPairs, pitch]
  __shared__ __align__(16) float signs[512];
  __shared__ float scratch[kWarps][Queries::kScratch];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int d = a.head_dim, pitch = pitch_of(d), h = static_cast<int>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x / 32);
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kThreads) signs[e] = a.query_signs[h * d + e];
  int tile_row, tile_column;
  tile_of((d + kTile - 1) / kTile, tile_row, tile_column);
  const int row = kTile * tile_row + 16 * (warp % kRowWarps);
  const int column = kTile * tile_column + kColumns * (warp / kRowWarps);
  int sums[kColumns / 8][4] = {};
  // Lane i's row of an ldmatrix: pairs i % 8 and 8 on (tiles 2, 3), coordinates 0 .. 7 and 8 on (tiles 1, 3).
  const std::uint32_t lane_at =
      shared_address(units) +
      static_cast<std::uint32_t>(
          2 * (((lane_id() & 7) + (lane_id() >> 4) * 8) * pitch + (lane_id() >> 3 & 1) * 8));
  __syncthreads();
  constexpr std::uint32_t kRound = 2 * Queries::kPairs;
  for (std::uint32_t first = kRound * blockIdx.x; first < of.count; first += kRound * gridDim.x) {
    const int pairs = static_cast<int>(min(of.count - first + 31, kRound) / 32 * 16);
    Queries::template round<kWarps>(a, of, signs, first, pairs, h, units, pitch, scratch[warp]);
    __syncthreads();
    if (row < d && column + kColumns > row) {
#pragma unroll 1
      for (int pair = 0; pair < pairs; pair += 16) {
        const std::uint32_t at = lane_at + static_cast<std::uint32_t>(2 * pair * pitch);
        const OperandA rows = ldmatrix_x4_transposed(at + static_cast<std::uint32_t>(2 * row));
#pragma unroll
        for (int j = 0; j < kColumns / 16; ++j) {
          const int f = column + 16 * j;
          if (f < row || f >= d) continue;
          const OperandA columns = ldmatrix_x4_transposed(at + static_cast<std::uint32_t>(2 * f));
          mma_s8_s8<false>(sums[2 * j], rows, columns.x[0], columns.x[2]);
          mma_s8_s8<false>(sums[2 * j + 1], rows, columns.x[1], columns.x[3]);
        }
      }
    }
    __syncthreads();
  }
  // Eight lanes add eight neighbours: lanes of rows g and g + 1 change one number each.
  if (row >= d) return;
  std::int32_t* moment = a.moment + static_cast<std::int64_t>(h) * d * d;
  const int g = lane_id() / 4, odd = g & 1;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const int f = column + 8 * j + 2 * (lane_id() & 3) + odd;
    if (column + 8 * j + 7 < row || f >= d) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int low = sums[j][2 * half], high = sums[j][2 * half + 1];
      const int other = __shfl_xor_sync(~0u, odd ? low : high, 4);
      const int e = row + 8 * half + (g & ~1);
      if (e <= f) atomicAdd(moment + e * d + f, odd ? other : low);
      if (e + 1 <= f) atomicAdd(moment + (e + 1) * d + f, odd ? high : other);
    }
  }
}

// Before the first queries.
__global__ void __launch_bounds__(kFinishThreads) zero(const __grid_constant__ KeyMetricArgs a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int entries = kFinishRows * a.head_dim;
  std::int32_t* moment =
      a.moment + (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * entries;
  for (int i = static_cast<int>(threadIdx.x); i < entries; i += kFinishThreads) moment[i] = 0;
}

// Rule 4: kFinishRows rows of a head.
__global__ void __launch_bounds__(kFinishThreads) finish(const __grid_constant__ KeyMetricArgs a) {
  __shared__ long long traces[kFinishThreads / 32];
  __shared__ int maxima[kFinishThreads / 32];
  wait_for_previous_kernel();
  const int d = a.head_dim, h = static_cast<int>(blockIdx.y);
  const std::int32_t* moment = a.moment + static_cast<std::int64_t>(h) * d * d;
  long long trace = 0;
  int largest = 0;
  for (int e = static_cast<int>(threadIdx.x); e < d; e += kFinishThreads) {
    const int entry = moment[e * d + e];
    trace += entry;
    largest = max(largest, entry);
  }
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    trace += __shfl_xor_sync(~0u, trace, apart);
    largest = max(largest, __shfl_xor_sync(~0u, largest, apart));
  }
  if (lane_id() == 0) {
    traces[threadIdx.x / 32] = trace;
    maxima[threadIdx.x / 32] = largest;
  }
  __syncthreads();
  trace = 0;
#pragma unroll
  for (int w = 0; w < kFinishThreads / 32; ++w) {
    trace += traces[w];
    largest = max(largest, maxima[w]);
  }
  const std::int64_t added = damping(trace, d);
  const float scale = trace > 0 ? __fdiv_rn(127.0f, static_cast<float>(largest + added)) : 0.0f;
  const int first = kFinishRows * static_cast<int>(blockIdx.x) * d;
  for (int i = first + static_cast<int>(threadIdx.x); i < first + kFinishRows * d; i += kFinishThreads) {
    const int e = i / d, f = i - e * d;
    const std::int64_t damped = moment[e < f ? i : f * d + e] + (e == f ? added : 0);
    a.metric[static_cast<std::int64_t>(h) * d * d + i] =
        static_cast<std::int8_t>(__float2int_rn(__fmul_rn(static_cast<float>(damped), scale)));
  }
}

template <class Queries>
Status launch_queries(const KeyMetricArgs& args, const Sampled& of, const Context& context) {
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  const unsigned tiles = static_cast<unsigned>((args.head_dim + kTile - 1) / kTile);
  const unsigned upper = tiles * (tiles + 1) / 2, heads = static_cast<unsigned>(args.kv_heads);
  const unsigned rounds = (of.count + 2 * Queries::kPairs - 1) / (2 * Queries::kPairs);
  const unsigned wave = static_cast<unsigned>(limits.value().sm_count) / (heads * upper);
  const unsigned parts = wave < 1 ? 1 : wave < rounds ? wave : rounds;
  const auto words = static_cast<std::size_t>(Queries::kPairs * pitch_of(args.head_dim));
  const Launch how{"key_metric", dim3(parts, heads, upper), dim3(kThreads), 2 * words, true};
  return launch(how, context, &add_queries<Queries>, args, of);
}

bool aligned(const KeyMetricArgs& a) {
  const auto bytes = static_cast<std::int64_t>(size_of(a.query.dtype));
  return reinterpret_cast<std::uintptr_t>(a.query.data) % 16 == 0 && a.sequence_stride * bytes % 16 == 0 &&
         a.query.token_stride * bytes % 16 == 0 && a.query.head_stride * bytes % 16 == 0;
}

template <int kBytes>
Status add_aligned(const KeyMetricArgs& args, const Sampled& of, const Context& context) {
  switch (args.head_dim) {
    case 64:
      return launch_queries<Lanes<2, kBytes>>(args, of, context);
    case 128:
      return launch_queries<Lanes<4, kBytes>>(args, of, context);
    default:
      return launch_queries<Lanes<8, kBytes>>(args, of, context);
  }
}

Status add(const KeyMetricArgs& args, const Sampled& of, const Context& context) {
  const int d = args.head_dim;
  if ((d == 64 || d == 128 || d == 256) && aligned(args))
    return size_of(args.query.dtype) == 2 ? add_aligned<2>(args, of, context)
                                          : add_aligned<4>(args, of, context);
  switch (coordinates_per_lane(d)) {
    case 1:
      return launch_queries<Warps<1>>(args, of, context);
    case 2:
      return launch_queries<Warps<2>>(args, of, context);
    case 4:
      return launch_queries<Warps<4>>(args, of, context);
    case 8:
      return launch_queries<Warps<8>>(args, of, context);
    default:
      return launch_queries<Warps<16>>(args, of, context);
  }
}

}  // namespace

Status key_metric(const KeyMetricArgs& args, const Context& context) {
  const dim3 rows(static_cast<unsigned>(args.head_dim / kFinishRows), static_cast<unsigned>(args.kv_heads));
  const Launch how{"key_metric", rows, dim3(kFinishThreads), 0, true};
  if (args.begins)
    if (Status s = launch(how, context, &zero, args); !s.ok()) return s;
  const std::int64_t samples = args.sequence_count * args.tokens / args.step,
                     group = args.q_heads / args.kv_heads;
  if (samples > 0) {
    const auto word = [](std::int64_t x) { return static_cast<std::uint32_t>(x); };
    const Sampled of{word(samples * group), word(args.step), Divisor(word(group)),
                     Divisor(word(args.tokens))};
    if (Status s = add(args, of, context); !s.ok()) return s;
  }
  return args.metric == nullptr ? Status{} : launch(how, context, &finish, args);
}

}  // namespace turboquant::kernels::cuda
