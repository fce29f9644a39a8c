// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/centre.cuh"
#include "kernels/cuda/encode/prefill.cuh"

// The keys of a page by a pair of warps: lane t of the pair rotates token t and keeps it in registers, while
// the leading warp adds up means.
namespace turboquant::kernels::cuda {

// |y - c|^2 <= |y|^2 as rule 3 means it. The sign of |c|^2 - 2 y.c decides unless it is so small that
// rounding might: each of the sums involved is off by less than 2^-18 (|y|^2 + |c|^2), so what lies within
// 2^-16 of that is done as written, and so are sums near the ends of fp32's range.
struct Nearer {
  float difference, size;  // about |c|^2 - 2 y.c, |y|^2 + |c|^2
  bool nearer;
};
__device__ inline Nearer nearer_to(const LaneVector& y, const float* centre, float centre_squared,
                                   float about_zero) {
  const float dot = lane_dot([&](int j) { return y[j]; }, [&](int j) { return centre[j]; });
  const float difference = centre_squared - 2.0f * dot, size = about_zero + centre_squared;
  const bool is_clear = fabsf(difference) > size * 0x1p-16f && size < 1e36f && size > 1e-28f;
  bool nearer = difference < 0.0f;
  if (!__all_sync(~0u, is_clear)) {
    const float about_centre = lane_squared_norm([&](int j) { return __fadd_rn(y[j], -centre[j]); });
    const bool exactly = about_centre <= lane_squared_norm([&](int j) { return y[j]; });
    if (!is_clear) nearer = exactly;
  }
  return {difference, size, nearer};
}

// The same once the centre has moved by a vector m: the difference by the change of |c|^2 and by at most
// 2 |y| |m|. Null where that does not decide.
__device__ inline bool still_clear(const Nearer& before, float squared_before, float squared_now,
                                   float moved_squared, float about_zero, bool& nearer) {
  const float difference = before.difference + (squared_now - squared_before);
  const float size = fmaxf(before.size, about_zero + squared_now);
  const float beyond = fabsf(difference) - size * 0x1p-14f;
  nearer = difference < 0.0f;
  return beyond > 0.0f && beyond * beyond > 4.1f * about_zero * moved_squared && size < 1e16f &&
         size > 1e-16f;
}

// A warp: the mean of the chosen rows' coordinates 4 lane .. 4 lane + 3, in order.
__device__ inline float4 mean_of_rows(const PrefillKeys& keys, std::uint32_t low, std::uint32_t high) {
  const int at = 4 * static_cast<int>(threadIdx.x & 31);
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

// A warp: sets the centre that all lanes measure with.
__device__ inline void publish_centre(const float4& c, PrefillKeys& keys) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  float4& centre = *reinterpret_cast<float4*>(&keys.centre[4 * lane]);
  const float4 m{c.x - centre.x, c.y - centre.y, c.z - centre.z, c.w - centre.w};
  float squared = c.x * c.x + c.y * c.y + c.z * c.z + c.w * c.w;
  float moved = m.x * m.x + m.y * m.y + m.z * m.z + m.w * m.w;
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    squared += __shfl_xor_sync(~0u, squared, apart);
    moved += __shfl_xor_sync(~0u, moved, apart);
  }
  centre = c;
  if (lane == 0) {
    keys.centre_squared = squared;
    keys.moved_squared = moved;
  }
}

// A warp: the centre as the page stores it.
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

// The codes of rows [begin, end) of the widths of K areas (turboquant/format.h), from words whose nibble is a
// code.
__device__ inline void store_key_codes(const PrefillKeys& keys, const Part& part, int bits, int thread,
                                       std::uint8_t* area) {
  const int begin = part.opens ? 0 : part.begin, end = part.opens ? kPageTokens : part.end;
  const auto low = [](std::uint32_t x) { return x & 0x33333333u; };
  const auto top = [](std::uint32_t x) { return x >> 2 & 0x11111111u; };
  for (int at = thread; at < 4 * kPageTokens; at += kPageTokens) {
    const int t = at / 4;
    if (t < begin || t >= end) continue;
    const uint4 w = *reinterpret_cast<const uint4*>(&keys.codes[t][4 * (at & 3)]);  // a chunk, i = 0..3
    if (bits == 4) {
      reinterpret_cast<uint4*>(area)[at] = w;
      continue;
    }
    reinterpret_cast<uint2*>(area)[at] = uint2{low(w.x) | low(w.z) << 2, low(w.y) | low(w.w) << 2};
    if (bits == 3)
      reinterpret_cast<std::uint32_t*>(area + 16 * kLaneDim)[at] =
          top(w.x) | top(w.y) << 1 | top(w.z) << 2 | top(w.w) << 3;
  }
}

__device__ inline void fetch_keys(const EncodeCall& call, const PrefillTask& task, const Pair& pair,
                                  PrefillKeys& keys) {
  if (pair.warp() == 0) prefetch_signs(call.args.basis.key_signs, task.head, keys.signs);
  prefetch_rows(call.args.keys, task.part, task.head, 32 * pair.warp(), keys.raw[pair.warp()]);
}

// The task's keys, which have been fetched, rotated; no coordinate is -0. The pair may write rows afterwards.
template <DType kType>
__device__ inline void load_keys(const EncodeCall& call, PrefillKeys& keys, LaneVector& y) {
  const Pair pair = this_pair();
  wait_for_prefetch();
  pair.group.sync();
#pragma unroll
  for (int piece = 0; piece < 16; ++piece)
    unpack_eight(kType, keys.raw[pair.warp()].piece(piece), y + 8 * piece);
#pragma unroll
  for (int j = 0; j < kLaneDim; j += 4) {
    const float4 s = *reinterpret_cast<const float4*>(&keys.signs[j]);
    y[j] = __fmul_rn(y[j], s.x);
    y[j + 1] = __fmul_rn(y[j + 1], s.y);
    y[j + 2] = __fmul_rn(y[j + 2], s.z);
    y[j + 3] = __fmul_rn(y[j + 3], s.w);
  }
  lane_hadamard(y);
#pragma unroll
  for (int j = 0; j < kLaneDim; ++j) y[j] = __fmaf_rn(y[j], call.rotation_scale, 0.0f);
  pair.group.sync();
}

// What encode/centre.cuh wants.
__device__ inline Block centre_block(const Pair& pair, PrefillKeys& keys) {
  Block out{};
  out.group = pair.group;
  out.centre = keys.other_centre;
  out.sums = keys.centre;
  out.steps = keys.steps;
  out.step = &keys.step;
  return out;
}
// Where a page's keys are not measured about their own mean, sets other_centre.
__device__ inline void prepare_keys(const EncodeCall& call, const PrefillTask& task, PrefillKeys& keys) {
  const EncodeArgs& a = call.args;
  const Part& part = task.part;
  if (part.follows())
    previous_centre(page_of(a, part, part.page - 1, task.head), a.pages.format, part.previous_begin(),
                    kLaneDim, centre_block(this_pair(), keys));
  else if (!part.opens) load_centre(task.page, a.pages.format, kLaneDim, centre_block(this_pair(), keys));
}

// Not in the template below: nvcc 13.0's front end fails on a template called from one.
__device__ inline LaneCodes search_keys(const EncodeCall& call, const LaneVector& u, float norm,
                                        const LaneTable& table) {
  const int bits = call.args.pages.format.k_bits;
  return lane_search<KeyOrder>(u, norm, call.levels_numerator, table, magnitudes_of(bits, true), bits);
}

// Rules 2 and 3: sets keys.centre. Whether y's reference is the centre, of a token that is finite.
__device__ inline bool choose_centre(const Part& part, const LaneVector& y, float about_zero, bool finite,
                                     PrefillKeys& keys) {
  const Pair pair = this_pair();
  const int lane = pair.token % 32, t = pair.token;
  const bool own = part.opens && part.has_own_centre(), counts = finite && t >= part.begin && t < part.end;
  const auto choose = [&](bool chosen) {
    const std::uint32_t tokens = __ballot_sync(~0u, chosen);
    if (lane == 0) keys.chosen[pair.warp()] = tokens;
    pair.group.sync();
  };
  std::uint32_t low = 0, high = 0;
  float4 mean{};
  if (own) {
#pragma unroll
    for (int j = 0; j < kLaneDim; j += 4)
      *reinterpret_cast<float4*>(&keys.rows[t][j]) = float4{y[j], y[j + 1], y[j + 2], y[j + 3]};
    choose(counts);
    low = keys.chosen[0];
    high = keys.chosen[1];
    if (pair.leads) {
      mean = mean_of_rows(keys, low, high);
      publish_centre(mean, keys);
    }
  } else if (pair.leads) {
    float4 c = *reinterpret_cast<const float4*>(&keys.other_centre[4 * lane]);
    if (part.opens && !part.has_previous) c = {0.0f, 0.0f, 0.0f, 0.0f};
    publish_centre(part.opens ? round_four(c, keys) : c, keys);
  }
  Nearer result;
  float squared_before = 0.0f;
#pragma unroll 1
  for (int round = own ? 0 : 1; round < 2; ++round) {
    pair.group.sync();
    const float squared = keys.centre_squared;
    bool nearer = false;
    const bool is_clear =
        own && round == 1 &&
        still_clear(result, squared_before, squared, keys.moved_squared, about_zero, nearer);
    result.nearer = nearer;
    if (!__all_sync(~0u, is_clear)) result = nearer_to(y, keys.centre, squared, about_zero);
    if (round == 1) break;
    squared_before = squared;
    choose(result.nearer && counts);
    if (pair.leads) {
      if (keys.chosen[0] != low || keys.chosen[1] != high)
        mean = mean_of_rows(keys, keys.chosen[0], keys.chosen[1]);
      publish_centre(round_four(mean, keys), keys);
    }
  }
  return result.nearer && finite;
}

// The task's keys have been fetched; then the next one's are.
template <DType kType>
__device__ inline void encode_keys(const EncodeCall& call, const PrefillTurn& turn, const LaneTable& table,
                                   PrefillKeys& keys) {
  const PageFormat& format = call.args.pages.format;
  prepare_keys(call, *turn.current(), keys);
  LaneVector y;
  load_keys<kType>(call, keys, y);
  // In any order, but infinite or NaN if the ordered sum is.
  const float about_zero = lane_dot([&](int j) { return y[j]; }, [&](int j) { return y[j]; });
  bool finite = about_zero < 1e36f;
  if (!__all_sync(~0u, finite)) {
    const float exactly = lane_squared_norm([&](int j) { return y[j]; });
    if (!finite) finite = is_finite(exactly);
  }
  const bool centred = choose_centre(turn.current()->part, y, about_zero, finite, keys);
  if (turn.following() != nullptr) fetch_keys(call, *turn.following(), this_pair(), keys);

  // u = y - reference, exactly: y is nowhere -0, so neither is u.
  const float minus_one = centred ? -1.0f : 0.0f;
#pragma unroll
  for (int j = 0; j < kLaneDim; j += 4) {
    const float4 c = *reinterpret_cast<const float4*>(&keys.centre[j]);
    y[j] = __fmaf_rn(c.x, minus_one, y[j]);
    y[j + 1] = __fmaf_rn(c.y, minus_one, y[j + 1]);
    y[j + 2] = __fmaf_rn(c.z, minus_one, y[j + 2]);
    y[j + 3] = __fmaf_rn(c.w, minus_one, y[j + 3]);
  }
  const float norm = square_root(lane_squared_norm([&](int j) { return y[j]; }));
  LaneCodes codes = search_keys(call, y, norm, table);
  std::uint32_t scale = settle(codes, norm, finite, stored_scale_unit(format.k_bits, true));
  if (!centred && scale != kNanScale) scale |= kReferenceIsZero;

  const Pair pair = this_pair();
  const int t = pair.token;
  const PrefillTask& task = *turn.current();
  const Part& part = task.part;
  const bool present = t >= part.begin && t < part.end;
  store_codes(codes, keys.codes[t]);
  if (part.opens || present)
    reinterpret_cast<std::uint16_t*>(task.page + format.k_scales_offset())[core::scale_index(t)] =
        static_cast<std::uint16_t>(present ? scale : 0);
  pair.group.sync();
  store_key_codes(keys, part, format.k_bits, t, task.page);
  if (part.opens) store_centre(task.page, format, centre_block(pair, keys));
  pair.group.sync();
}

}  // namespace turboquant::kernels::cuda
