// SPDX-License-Identifier: Apache-2.0
// balance: the sums of attention/balance.cc in its order, so its bits. Rows add up one after the other, so
// that a coordinate is a chain of additions, of 4 cycles each. A block a KV head.
//
//   quick.cuh    where every row counts: bound by that chain and by what starts a tile
//   careful.cuh  where one may not, of large heads, or of rows that do not start at 16 bytes
#include <algorithm>

#include "kernels/cuda/balance/quick.cuh"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/overlap.cuh"

namespace turboquant::kernels::cuda {
namespace {

constexpr int kCarefulThreads = 1024;
constexpr int kMaxDim = 1024;  // of the careful way; two threads have a coordinate of the quick one
constexpr int kQuickDim = 256;
constexpr int kTrustedTokens = 64;  // fewer shrink the balance towards 1, as in attention/balance.cc

struct Shared {
  float keys[kMaxDim], queries[kMaxDim];
  std::uint8_t counted[kBalanceTokens];
  Span spans[kSpans];
};

// All d terms added in order, for every thread.
__device__ float ordered_sum(const float* terms, int d) {
  __shared__ float total;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f;
#pragma unroll 16
    for (int e = 0; e < d; ++e) sum = __fadd_rn(sum, terms[e]);
    total = sum;
  }
  __syncthreads();
  return total;
}

// rms from sums of squares, floored at a thousandth of their mean; false where all are zero or not finite.
__device__ bool floored_rms(float* sums, int count, int d) {
  for (int e = static_cast<int>(threadIdx.x); e < d; e += static_cast<int>(blockDim.x))
    sums[e] = __fsqrt_rn(__fdiv_rn(sums[e], static_cast<float>(count)));
  const float floor = __fmul_rn(__fdiv_rn(ordered_sum(sums, d), static_cast<float>(d)), 0.001f);
  if (!(floor > 0.0f) || !finite_bits(floor)) return false;
  for (int e = static_cast<int>(threadIdx.x); e < d; e += static_cast<int>(blockDim.x))
    if (sums[e] < floor) sums[e] = floor;
  return true;
}

// Copies of 16 bytes want it.
bool is_aligned(const Rows& rows, int d) {
  const std::int64_t size = rows.dtype == DType::kF32 ? 4 : 2;
  return d * size % 16 == 0 && reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 &&
         rows.token_stride * size % 16 == 0 && rows.head_stride * size % 16 == 0;
}

// slots of the ring; 0: carefully at once.
template <int C, int kSlots>
__global__ void __launch_bounds__(kSlots > 0 ? 2 * kQuickDim : kCarefulThreads)
    balance_heads(const __grid_constant__ BalanceArgs a) {
  __shared__ Shared shared;
  extern __shared__ __align__(16) std::uint8_t balance_shared[];
  wait_for_previous_kernel();
  const int d = a.head_dim, h = static_cast<int>(blockIdx.x), threads = static_cast<int>(blockDim.x);
  std::int64_t key_count = 0, query_count = 0;
  bool done = false;
  if constexpr (kSlots > 0) {
    if (a.query.dtype == DType::kF32)
      done = add_quickly<float, kSlots>(a, h, shared.spans, shared.keys, shared.queries, balance_shared,
                                        key_count);
    else if (a.query.dtype == DType::kF16)
      done = add_quickly<__half, kSlots>(a, h, shared.spans, shared.keys, shared.queries, balance_shared,
                                         key_count);
    else
      done = add_quickly<__nv_bfloat16, kSlots>(a, h, shared.spans, shared.keys, shared.queries,
                                                balance_shared, key_count);
    query_count = key_count * (a.q_heads / a.kv_heads);
  }
  if (!done) {
    key_count = query_count = 0;
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < d; e += threads)
      shared.keys[e] = shared.queries[e] = 0.0f;
    for (int i = 0; i < a.sequence_count; ++i) {
      const Span span = span_of(a, i);
      add_carefully<C>(a, h, a.token_starts[i], span.begin, span.begin + span.count, shared.keys,
                       shared.queries, shared.counted, reinterpret_cast<float*>(balance_shared), key_count,
                       query_count);
    }
  }
  float* balance = a.balance + static_cast<std::int64_t>(h) * d;
  __syncthreads();
  if (key_count < 2 || query_count < 1 || !floored_rms(shared.keys, static_cast<int>(key_count), d) ||
      !floored_rms(shared.queries, static_cast<int>(query_count), d)) {
    for (int e = static_cast<int>(threadIdx.x); e < d; e += threads) balance[e] = 1.0f;
    return;
  }
  for (int e = static_cast<int>(threadIdx.x); e < d; e += threads)
    shared.keys[e] = __fsqrt_rn(__fdiv_rn(shared.keys[e], shared.queries[e]));
  const float mean = __fdiv_rn(ordered_sum(shared.keys, d), static_cast<float>(d));
  const float trust = key_count < kTrustedTokens
                          ? __fdiv_rn(static_cast<float>(key_count), static_cast<float>(kTrustedTokens))
                          : 1.0f;
  for (int e = static_cast<int>(threadIdx.x); e < d; e += threads)
    balance[e] = __fadd_rn(__fmul_rn(trust, __fdiv_rn(shared.keys[e], mean)), __fadd_rn(1.0f, -trust));
}

template <int C>
Status launch_balance(const BalanceArgs& args, const Context& context) {
  const int d = args.head_dim, tile = kPageTokens * d * (args.query.dtype == DType::kF32 ? 4 : 2),
            careful = 4 * tile_rows(d) * d;
  const auto limits = device_limits(context.device.index);
  if (!limits.ok()) return limits.error();
  const auto run = [&](auto slots) {
    constexpr int kSlots = decltype(slots)::value;
    const int threads = kSlots > 0 ? 2 * ((d + 31) / 32 * 32) : kCarefulThreads;
    const Launch how{"balance", dim3(static_cast<unsigned>(args.kv_heads)),
                     dim3(static_cast<unsigned>(threads)),
                     static_cast<std::size_t>(std::max(2 * kSlots * tile, careful)), true};
    return launch(how, context, &balance_heads<C, kSlots>, args);
  };
  const int room = limits.value().shared_bytes - static_cast<int>(sizeof(Shared)) - 64;
  if constexpr (C <= 8)
    if (args.query.dtype == args.keys.dtype && is_aligned(args.query, d) && is_aligned(args.keys, d)) {
      if (8 * tile <= room) return run(std::integral_constant<int, 4>{});
      if (4 * tile <= room) return run(std::integral_constant<int, 2>{});
    }
  return run(std::integral_constant<int, 0>{});
}

}  // namespace

Status balance(const BalanceArgs& args, const Context& context) {
  switch (coordinates_per_lane(args.head_dim)) {
    case 1:
      return launch_balance<1>(args, context);
    case 2:
      return launch_balance<2>(args, context);
    case 4:
      return launch_balance<4>(args, context);
    case 8:
      return launch_balance<8>(args, context);
    case 16:
      return launch_balance<16>(args, context);
    default:
      return launch_balance<32>(args, context);
  }
}

}  // namespace turboquant::kernels::cuda
