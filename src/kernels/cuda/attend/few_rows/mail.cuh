// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/attend/few_rows/finish.cuh"

// Sums of a row from CTA to CTA. Of a segment that several CTAs share, all but the last send their part of
// each row, and the last one adds them. A word that is 0 has not come yet: the sums are their own message,
// and no fence, counter or second look is on their way, which would take 0.7 microseconds. A zero is sent as
// -0. Whoever has read a word makes it 0 again, for the next launch.
//
// A CTA sends one part at most: of the segment that its last units are of. It waits only for CTAs of lower
// numbers, which started before it did (docs/adr/0005).
namespace turboquant::kernels::cuda::few_rows {

// The largest of a warp's numbers; none is NaN.
__device__ __forceinline__ float warp_max(float x) {
  const int bits = __float_as_int(x), ordered = bits ^ (bits >> 31 & 0x7fffffff);
  const int most = __reduce_max_sync(~0u, ordered);
  return __int_as_float(most ^ (most >> 31 & 0x7fffffff));
}

template <class S>
struct Merged {
  RowsInLanes<S::kDim, 1> values = {};
  float maximum = kUnseen, sum = 0;
};

// kN floats of this lane, in memory that other CTAs read or write at the same time.
template <int kN>
__device__ __forceinline__ void send_lane(float* to, const float (&x)[kN]) {
  if constexpr (kN % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kN; i += 4)
      asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to + i), "f"(x[i]),
                   "f"(x[i + 1]), "f"(x[i + 2]), "f"(x[i + 3])
                   : "memory");
  } else if constexpr (kN % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kN; i += 2)
      asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1,%2};" ::"l"(to + i), "f"(x[i]), "f"(x[i + 1])
                   : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i)
      asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to + i), "f"(x[i]) : "memory");
  }
}
template <int kN>
__device__ __forceinline__ void receive_lane(const float* from, float (&x)[kN]) {
  if constexpr (kN % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kN; i += 4)
      asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];"
                   : "=f"(x[i]), "=f"(x[i + 1]), "=f"(x[i + 2]), "=f"(x[i + 3])
                   : "l"(from + i)
                   : "memory");
  } else if constexpr (kN % 2 == 0) {
#pragma unroll
    for (int i = 0; i < kN; i += 2)
      asm volatile("ld.relaxed.gpu.global.v2.f32 {%0,%1}, [%2];"
                   : "=f"(x[i]), "=f"(x[i + 1])
                   : "l"(from + i)
                   : "memory");
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i)
      asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(x[i]) : "l"(from + i) : "memory");
  }
}

__device__ __forceinline__ float as_mail(float x) {
  return __float_as_uint(x) == 0 ? -0.0f : x;
}

template <class S>
__device__ __forceinline__ void send_row(Part<S> to, int row, const Merged<S>& sums) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  float x[kEach<S::kDim>];
#pragma unroll
  for (int i = 0; i < kEach<S::kDim>; ++i) x[i] = as_mail(sums.values[0][i]);
  send_lane<kEach<S::kDim>>(to.values(row) + lane * kEach<S::kDim>, x);
  if (lane == 0) {
    const float end[2] = {as_mail(sums.maximum), as_mail(sums.sum)};
    send_lane<2>(&to.maximum(row), end);
  }
}

// Waits for a row of `count` parts, of which `from` is the first and the others follow it in memory, and adds
// them and `last`, in this order.
template <class S>
__device__ __forceinline__ void receive_row(Part<S> from, int row, int count, Merged<S>& last) {
  // Of the parts whose loads are in flight together, some behind the last one may be loaded too: they are in
  // the workspace. Offsets are constants: a poll is nothing but its loads.
  constexpr int kN = kEach<S::kDim>, kAhead = kN <= 4 ? 16 : 8, kGroup = 4;
  const int lane = static_cast<int>(threadIdx.x & 31);
  Merged<S> out;
#pragma unroll 1
  for (int first = 0; first < count; first += kAhead) {
    const int here = min(kAhead, count - first);
    float* values = from.values(row) + first * S::kPartFloats + lane * kN;
    float* end_at = &from.maximum(row) + (first + min(lane, here - 1)) * S::kPartFloats;  // lane k: of part k
    float x[kAhead][kN], end[2];
    receive_lane<2>(end_at, end);
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n % kGroup == 0 && n >= here) break;
      receive_lane<kN>(values + n * S::kPartFloats, x[n]);
    }
    // Only what has not come is asked for again: whoever waits must not crowd out those that still send.
    bool missing;
    do {
      missing = __float_as_uint(end[0]) == 0 || __float_as_uint(end[1]) == 0;
      if (missing) receive_lane<2>(end_at, end);
#pragma unroll
      for (int n = 0; n < kAhead; ++n) {
        if (n % kGroup == 0 && n >= here) break;
        bool is_missing = false;
#pragma unroll
        for (int i = 0; i < kN; ++i) is_missing = is_missing || __float_as_uint(x[n][i]) == 0;
        is_missing = is_missing && n < here;
        if (is_missing) receive_lane<kN>(values + n * S::kPartFloats, x[n]);
        missing = missing || is_missing;
      }
    } while (__any_sync(~0u, missing));
    const float most = warp_max(fmaxf(end[0], out.maximum)), keep = exp2_approx(out.maximum - most);
    const float factor = lane < here ? exp2_approx(end[0] - most) : 0.0f;
#pragma unroll
    for (int i = 0; i < kN; ++i) out.values[0][i] *= keep;
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (n % kGroup == 0 && n >= here) break;
      const float f = __shfl_sync(~0u, factor, n);
#pragma unroll
      for (int i = 0; i < kN; ++i)
        out.values[0][i] = n < here ? fmaf(f, x[n][i], out.values[0][i]) : out.values[0][i];
    }
    float sum = end[1] * factor;
#pragma unroll
    for (int lanes = 1; lanes < kAhead; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    out.sum = fmaf(out.sum, keep, __shfl_sync(~0u, sum, 0));
    out.maximum = most;
    const float none[kN] = {}, no_end[2] = {};
#pragma unroll
    for (int n = 0; n < kAhead; ++n)
      if (n < here) send_lane<kN>(values + n * S::kPartFloats, none);
    if (lane < here) send_lane<2>(end_at, no_end);
  }
  const float most = fmaxf(out.maximum, last.maximum), keep = exp2_approx(out.maximum - most),
              keep_last = exp2_approx(last.maximum - most);
#pragma unroll
  for (int i = 0; i < kN; ++i)
    last.values[0][i] = fmaf(out.values[0][i], keep, last.values[0][i] * keep_last);
  last.sum = fmaf(out.sum, keep, last.sum * keep_last);
  last.maximum = most;
}

}  // namespace turboquant::kernels::cuda::few_rows
