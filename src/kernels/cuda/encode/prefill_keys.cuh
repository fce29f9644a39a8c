// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/centre.cuh"
#include "kernels/cuda/encode/prefill.cuh"

// The keys of a page by a block: every warp rotates eight of its 64 tokens and keeps them in registers, while
// warp 0 adds up means.
namespace turboquant::kernels::cuda {

// |y - c|^2 <= |y|^2 as rule 3 means it, in the lanes of each vector. The sign of |c|^2 - 2 y.c decides
// unless it is so small that rounding might: each of the sums involved is off by less than 2^-18 (|y|^2 +
// |c|^2), so what lies within 2^-16 of that is done as written, and so are sums near the ends of fp32's
// range.
__device__ inline bool nearer_to(const float (&y)[kQuadLane], const float* centre, float centre_squared,
                                 float about_zero) {
  float dot = 0.0f;
#pragma unroll
  for (int j = 0; j < kQuadLane; j += 4) {
    const float4 c = *reinterpret_cast<const float4*>(centre + j);
    dot = __fmaf_rn(y[j], c.x, dot);
    dot = __fmaf_rn(y[j + 1], c.y, dot);
    dot = __fmaf_rn(y[j + 2], c.z, dot);
    dot = __fmaf_rn(y[j + 3], c.w, dot);
  }
  const float difference = centre_squared - 2.0f * quad_sum(dot), size = about_zero + centre_squared;
  const bool is_clear = fabsf(difference) > size * 0x1p-16f && size < 1e36f && size > 1e-28f;
  bool nearer = difference < 0.0f;
  if (!__all_sync(~0u, is_clear)) {
    const float about_centre = quad_squared_norm([&](int j) { return __fadd_rn(y[j], -centre[j]); });
    const bool exactly = about_centre <= quad_squared_norm([&](int j) { return y[j]; });
    if (!is_clear) nearer = exactly;
  }
  return nearer;
}

// Warp 0: the mean of the chosen rows' coordinates 4 lane .. 4 lane + 3, in order.
__device__ inline float4 mean_of_rows(const PrefillKeys& keys, std::uint32_t low, std::uint32_t high) {
  const int lane = static_cast<int>(threadIdx.x & 31), at = padded(4 * lane);
  float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
  const auto add = [&](int t) {
    const float4 y = *reinterpret_cast<const float4*>(&keys.rows[t][at]);
    sum = {__fadd_rn(sum.x, y.x), __fadd_rn(sum.y, y.y), __fadd_rn(sum.z, y.z), __fadd_rn(sum.w, y.w)};
  };
  if ((low & high) == ~0u) {
#pragma unroll 8
    for (int t = 0; t < kPageTokens; ++t) add(t);
  } else {
#pragma unroll 8
    for (int t = 0; t < kPageTokens; ++t)
      if (((t < 32 ? low : high) >> (t & 31) & 1u) != 0) add(t);
  }
  const auto count = static_cast<float>(__popc(low) + __popc(high));
  if (count == 0.0f) return {0.0f, 0.0f, 0.0f, 0.0f};
  return {__fdiv_rn(sum.x, count), __fdiv_rn(sum.y, count), __fdiv_rn(sum.z, count), __fdiv_rn(sum.w, count)};
}

// Warp 0: sets the centre that the other warps measure with.
__device__ inline void publish_centre(const float4& c, PrefillKeys& keys) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  float squared = c.x * c.x + c.y * c.y + c.z * c.z + c.w * c.w;
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) squared += __shfl_xor_sync(~0u, squared, apart);
  const auto no_plus_zero = [](float x) { return x == 0.0f ? -0.0f : x; };  // see encode_keys
  *reinterpret_cast<float4*>(&keys.centre[padded(4 * lane)]) =
      float4{no_plus_zero(c.x), no_plus_zero(c.y), no_plus_zero(c.z), no_plus_zero(c.w)};
  if (lane == 0) keys.centre_squared = squared;
}

// Warp 0: the centre as the page stores it.
__device__ inline float4 round_four(const float4& c, PrefillKeys& keys) {
  float largest = fmaxf(fmaxf(fabsf(c.x), fabsf(c.y)), fmaxf(fabsf(c.z), fabsf(c.w)));
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, apart));
  const std::uint32_t half = half_bits_clamped(__fdiv_rn(largest, 127.0f));
  const float step = float_of_half(half);
  const auto steps_of = [&](float x) {
    const float steps = step > 0.0f ? rintf(__fdiv_rn(x, step)) : 0.0f;
    return fminf(fmaxf(steps, -127.0f), 127.0f);
  };
  const float4 steps{steps_of(c.x), steps_of(c.y), steps_of(c.z), steps_of(c.w)};
  const int lane = static_cast<int>(threadIdx.x & 31);
  *reinterpret_cast<char4*>(keys.steps + 4 * lane) =
      char4{static_cast<signed char>(steps.x), static_cast<signed char>(steps.y),
            static_cast<signed char>(steps.z), static_cast<signed char>(steps.w)};
  if (lane == 0) keys.step = half;
  return {__fmul_rn(step, steps.x), __fmul_rn(step, steps.y), __fmul_rn(step, steps.z),
          __fmul_rn(step, steps.w)};
}

// The codes of rows [begin, end) and their scales, of the widths of K areas (turboquant/format.h), from words
// whose nibble is a code.
__device__ inline void store_key_codes(const PrefillKeys& keys, const Part& part, int bits,
                                       std::uint8_t* area) {
  const int begin = part.opens ? 0 : part.begin, end = part.opens ? kPageTokens : part.end;
  const int thread = static_cast<int>(threadIdx.x);
  if (bits == 4) {
    const int t = thread / 4;
    if (t >= begin && t < end)
      reinterpret_cast<uint4*>(area)[thread] =
          *reinterpret_cast<const uint4*>(&keys.codes[t][4 * (thread & 3)]);
    return;
  }
  const int t = thread / 4, q = thread & 3;
  if (t < begin || t >= end) return;
  const uint4 w = *reinterpret_cast<const uint4*>(&keys.codes[t][4 * q]);  // chunk q, i = 0..3
  const auto low = [](std::uint32_t x) { return x & 0x33333333u; };
  reinterpret_cast<uint2*>(area)[thread] = uint2{low(w.x) | low(w.z) << 2, low(w.y) | low(w.w) << 2};
  const auto top = [](std::uint32_t x) { return x >> 2 & 0x11111111u; };
  if (bits == 3)
    reinterpret_cast<std::uint32_t*>(area + 16 * kQuadDim)[thread] =
        top(w.x) | top(w.y) << 1 | top(w.z) << 2 | top(w.w) << 3;
}

// Starts loading a part's keys, warp w's eight tokens 8 w .. 8 w + 7.
__device__ inline void fetch_keys(const EncodeCall& call, const Part& part, int head, PrefillShared& shared) {
  const int t = static_cast<int>(threadIdx.x) / 4;
  prefetch(call.args.keys, part.row + t - part.begin, head, t >= part.begin && t < part.end, shared);
}

// The part's keys have been fetched; `fetch_next` starts the next ones.
template <class FetchNext>
__device__ inline void encode_keys(const EncodeCall& call, const Part& part, int head, PrefillShared& shared,
                                   const FetchNext& fetch_next) {
  const EncodeArgs& a = call.args;
  const PageFormat& format = a.pages.format;
  PrefillKeys& keys = shared.keys;
  const int thread = static_cast<int>(threadIdx.x), lane = thread & 31, warp = thread / 32;
  const int q = lane & 3, t = thread / 4;
  const bool present = t >= part.begin && t < part.end;
  std::uint8_t* page = page_of(a, part, part.page, head);
  const bool own = part.opens && part.has_own_centre();
  if (thread < kQuadDim)
    keys.signs[padded(thread)] = a.basis.key_signs[static_cast<std::int64_t>(head) * kQuadDim + thread];
  const Group group{32 * kKeyWarps, 1, 0};
  Block centre_only{};  // what encode/centre.cuh wants
  centre_only.group = group;
  centre_only.centre = keys.other_centre;
  centre_only.sums = keys.rows[0];
  if (part.opens && !own && part.has_previous)
    previous_centre(page_of(a, part, part.page - 1, head), format, part.previous_begin(), kQuadDim,
                    centre_only);
  else if (!part.opens) load_centre(page, format, kQuadDim, centre_only);
  else group.sync();

  float y[kQuadLane];
  wait_for_prefetch();
#pragma unroll
  for (int piece = 0; piece < 4; ++piece)
    unpack_eight(a.keys.dtype, shared.raw[piece][thread], y + 8 * piece);
  fetch_next();
#pragma unroll
  for (int j = 0; j < kQuadLane; j += 4) {
    const float4 s = *reinterpret_cast<const float4*>(&keys.signs[kPaddedLane * q + j]);
    y[j] = __fmul_rn(y[j], s.x);
    y[j + 1] = __fmul_rn(y[j + 1], s.y);
    y[j + 2] = __fmul_rn(y[j + 2], s.z);
    y[j + 3] = __fmul_rn(y[j + 3], s.w);
  }
  quad_hadamard(y);
  float about_zero = 0.0f;  // in any order, but infinite or NaN if the ordered sum is
#pragma unroll
  for (int j = 0; j < kQuadLane; ++j) {
    y[j] = __fmul_rn(y[j], call.rotation_scale);
    about_zero = __fmaf_rn(y[j], y[j], about_zero);
  }
  about_zero = quad_sum(about_zero);
  bool finite = about_zero < 1e36f;
  if (!__all_sync(~0u, finite)) {
    const float exactly = quad_squared_norm([&](int j) { return y[j]; });
    if (!finite) finite = is_finite(exactly);
  }
  if (own) {
#pragma unroll
    for (int j = 0; j < kQuadLane; j += 4)
      *reinterpret_cast<float4*>(&keys.rows[t][kPaddedLane * q + j]) =
          float4{y[j], y[j + 1], y[j + 2], y[j + 3]};
    if (q == 0) keys.chosen[t] = present && finite;
    group.sync();
    std::uint32_t low = 0, high = 0;
    float4 mean{};
    if (warp == 0) {
      low = __ballot_sync(~0u, keys.chosen[lane] != 0);
      high = __ballot_sync(~0u, keys.chosen[32 + lane] != 0);
      mean = mean_of_rows(keys, low, high);
      publish_centre(mean, keys);
    }
    group.sync();
    const bool chosen =
        nearer_to(y, &keys.centre[kPaddedLane * q], keys.centre_squared, about_zero) && finite && present;
    if (q == 0) keys.chosen[t] = chosen;
    group.sync();
    if (warp == 0) {
      const std::uint32_t low2 = __ballot_sync(~0u, keys.chosen[lane] != 0);
      const std::uint32_t high2 = __ballot_sync(~0u, keys.chosen[32 + lane] != 0);
      if (low2 != low || high2 != high) mean = mean_of_rows(keys, low2, high2);
      publish_centre(round_four(mean, keys), keys);
    }
  } else if (warp == 0) {
    float4 c = *reinterpret_cast<const float4*>(&keys.other_centre[4 * lane]);
    if (part.opens && !part.has_previous) c = {0.0f, 0.0f, 0.0f, 0.0f};
    publish_centre(part.opens ? round_four(c, keys) : c, keys);
  }
  group.sync();

  // u = y - reference, whose zeros are all -0: then u is never -0, whose sign bit would be taken for a sign.
  const bool centred = nearer_to(y, &keys.centre[kPaddedLane * q], keys.centre_squared, about_zero) && finite;
  const float* reference = centred ? &keys.centre[kPaddedLane * q] : &keys.minus_zeros[kPaddedLane * q];
#pragma unroll
  for (int j = 0; j < kQuadLane; j += 4) {
    const float4 r = *reinterpret_cast<const float4*>(reference + j);
    y[j] = __fadd_rn(y[j], -r.x);
    y[j + 1] = __fadd_rn(y[j + 1], -r.y);
    y[j + 2] = __fadd_rn(y[j + 2], -r.z);
    y[j + 3] = __fadd_rn(y[j + 3], -r.w);
  }
  const float squared = quad_squared_norm([&](int j) { return y[j]; });
  const float norm = square_root(squared);
  QuadCodes codes =
      quad_search<KeyOrder>(y, norm, call.levels_numerator, shared.key_table + (lane & (kTableCopies - 1)),
                            format.k_bits, shared.scores[warp]);
  const float2 settled = settle(codes, norm, finite);
#pragma unroll
  for (int w = 0; w < 4; ++w) keys.codes[t][4 * w + q] = codes.words[w];  // chunk w, i = q
  if (q == 0) {
    keys.norms[t] = settled;
    keys.chosen[t] = centred;
  }
  group.sync();
  store_key_codes(keys, part, format.k_bits, page);
  if (thread < kPageTokens && (part.opens || (thread >= part.begin && thread < part.end))) {
    std::uint32_t scale = scale_of(keys.norms[thread], stored_scale_unit(format.k_bits, true));
    const bool counted = thread >= part.begin && thread < part.end;
    if (keys.chosen[thread] == 0 && scale != kNanScale && counted) scale |= kReferenceIsZero;
    reinterpret_cast<std::uint16_t*>(page + format.k_scales_offset())[core::scale_index(thread)] =
        static_cast<std::uint16_t>(counted ? scale : 0);
  }
  if (part.opens) {
    centre_only.steps = keys.steps;
    centre_only.step = &keys.step;
    store_centre(page, format, centre_only);
  }
  group.sync();
}

}  // namespace turboquant::kernels::cuda
