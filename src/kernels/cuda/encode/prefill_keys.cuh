// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/centre.cuh"
#include "kernels/cuda/encode/prefill.cuh"

// The keys of a page by a team: a lane keeps its side of a rotated token in registers, and adds up one
// coordinate of means.

namespace turboquant::kernels::cuda {

// |y - c|^2 <= |y|^2 as rule 3 means it. The sign of |c|^2 - 2 y.c decides unless it is so small that
// rounding might: each of the sums involved is off by less than 2^-18 (|y|^2 + |c|^2), so what lies within
// 2^-16 of that is done as written, and so are sums near the ends of fp32's range.
struct Nearer {
  float difference, size;  // about |c|^2 - 2 y.c, |y|^2 + |c|^2
  bool nearer;
};
__device__ inline Nearer nearer_to(const SideVector& y, const float* centre, float centre_squared,
                                   float about_zero) {
  const float dot = side_dot([&](int j) { return y[j]; }, [&](int j) { return centre[j]; });
  const float difference = centre_squared - 2.0f * dot, size = about_zero + centre_squared;
  const bool is_clear = fabsf(difference) > size * 0x1p-16f && size < 1e36f && size > 1e-28f;
  bool nearer = difference < 0.0f;
  if (!__all_sync(~0u, is_clear)) {
    const float about_centre = side_squared_norm([&](int j) { return __fadd_rn(y[j], -centre[j]); });
    const bool exactly = about_centre <= side_squared_norm([&](int j) { return y[j]; });
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

// A team's tokens, a bit each, of which some are chosen.
struct Chosen {
  std::uint32_t low, high;

  __device__ bool operator==(const Chosen& other) const { return low == other.low && high == other.high; }
};
// All threads of a team: the tokens whose lanes say so.
__device__ inline Chosen choose(const Team& team, bool chosen, PrefillKeys& keys) {
  const std::uint32_t tokens = __ballot_sync(~0u, chosen) & 0xffffu;
  if (this_side() == 0) keys.weights[team.token] = chosen ? 1.0f : 0.0f;
  if ((this_thread() & 31) == 0) keys.chosen[team.warp] = static_cast<std::uint16_t>(tokens);
  team.group.sync();
  const uint2 both = *reinterpret_cast<const uint2*>(keys.chosen);
  return {both.x, both.y};
}

// The mean of the chosen rows' coordinate e, in order. A row's weight is 1 or 0, so that nothing is rounded
// but sums.
__device__ inline float mean_of_column(const PrefillKeys& keys, int e, const Chosen& chosen) {
  float sum = 0.0f;
#pragma unroll 4
  for (int t = 0; t < kPageTokens; t += 4) {
    const float4 weights = *reinterpret_cast<const float4*>(&keys.weights[t]);
    sum = __fmaf_rn(keys.rows[t][e], weights.x, sum);
    sum = __fmaf_rn(keys.rows[t + 1][e], weights.y, sum);
    sum = __fmaf_rn(keys.rows[t + 2][e], weights.z, sum);
    sum = __fmaf_rn(keys.rows[t + 3][e], weights.w, sum);
  }
  const auto count = static_cast<float>(__popc(chosen.low) + __popc(chosen.high));
  return count == 0.0f ? 0.0f : __fdiv_rn(sum, count);
}

// A thread sets coordinate e of the centre that all lanes measure with, which moves it by `moved`.
__device__ inline void publish_centre(const Team& team, int e, float c, float moved, PrefillKeys& keys) {
  float2 squares{c * c, moved * moved};
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    squares.x += __shfl_xor_sync(~0u, squares.x, apart);
    squares.y += __shfl_xor_sync(~0u, squares.y, apart);
  }
  keys.centre[e] = c;
  if (e % 32 == 0) keys.squares[team.warp] = squares;
}
// About |centre|^2 and the square of what it moved by, once all have published.
__device__ inline float2 centre_squares(const PrefillKeys& keys) {
  const float4 a = *reinterpret_cast<const float4*>(keys.squares),
               b = *reinterpret_cast<const float4*>(keys.squares + 2);
  return {(a.x + a.z) + (b.x + b.z), (a.y + a.w) + (b.y + b.w)};
}
// The same of the largest size, as its bits.
__device__ inline void publish_largest(const Team& team, int e, float c, PrefillKeys& keys) {
  const std::uint32_t largest = __reduce_max_sync(~0u, __float_as_uint(fabsf(c)));
  if (e % 32 == 0) keys.largest[team.warp] = largest;
}

// A thread: coordinate e of a centre as its page stores it, times sqrt(d) as keys are.
__device__ inline float round_centre(int e, float c, float centre_scale, PrefillKeys& keys) {
  const uint4 four = *reinterpret_cast<const uint4*>(keys.largest);
  const float largest = __uint_as_float(max(max(four.x, four.y), max(four.z, four.w)));
  const std::uint32_t half = half_bits_clamped(__fdiv_rn(largest, 127.0f));
  const float step = float_of_half(half);
  const float steps = fminf(fmaxf(step > 0.0f ? rintf(__fdiv_rn(c, step)) : 0.0f, -127.0f), 127.0f);
  keys.steps[e] = static_cast<std::int8_t>(steps);
  if (e == 0) keys.step = half;
  return __fmul_rn(__fmul_rn(step, centre_scale), steps);
}

// The lane's token's codes into K areas (turboquant/format.h).
__device__ inline void store_key_codes(const SideCodes& codes, int token, const Part& part, int bits,
                                       std::uint8_t* area) {
  const int side = this_side();
  const bool stores = part.opens || (token >= part.begin && token < part.end);
  if (bits == 4) {
    if (!stores) return;
#pragma unroll
    for (int q = 0; q < 4; ++q)
      reinterpret_cast<uint2*>(area)[8 * token + 2 * q + side] =
          uint2{codes.words[2 * q], codes.words[2 * q + 1]};
    return;
  }
  // A chunk's words of one side lie beside, and between, those of the other. Each side stores two chunks.
  std::uint32_t low[kSideWords], top[4];
#pragma unroll
  for (int w = 0; w < kSideWords; ++w) {
    low[w] = (codes.words[w] & 0x33333333u) << (2 * side);
    low[w] |= other_side(low[w]);
  }
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    top[q] = (codes.words[2 * q] >> 2 & 0x11111111u) | (codes.words[2 * q + 1] >> 1 & 0x22222222u);
    top[q] <<= 2 * side;
    top[q] |= other_side(top[q]);
  }
  if (!stores) return;
  reinterpret_cast<uint4*>(area)[2 * token + side] =
      side == 0 ? uint4{low[0], low[1], low[2], low[3]} : uint4{low[4], low[5], low[6], low[7]};
  if (bits == 3)
    reinterpret_cast<uint2*>(area + 16 * kPrefillDim)[2 * token + side] =
        side == 0 ? uint2{top[0], top[1]} : uint2{top[2], top[3]};
}

__device__ inline void fetch_keys(const EncodeCall& call, PrefillShared& shared, int index) {
  const PrefillTask& task = shared.tasks[index];
  fetch(task.keys, call.args.keys.token_stride, call.args.basis.key_signs + task.head * kPrefillDim,
        task.part, kWarpVectors * this_team().warp, shared.input());
}

// The lane's side of its key, which has been fetched, rotated.
template <DType kType>
__device__ inline void load_keys(const WarpInput& input, SideVector& y) {
  const int side = this_side(), row = this_thread() % kWarpVectors;
#pragma unroll
  for (int piece = 0; piece < 8; ++piece)
    unpack_eight(kType, input.raw.rows[row][8 * side + piece], y + 8 * piece);
#pragma unroll
  for (int j = 0; j < kSideDim; j += 4) {
    const float4 s = *reinterpret_cast<const float4*>(&input.signs[kSideDim * side + j]);
    y[j] = __fmul_rn(y[j], s.x);
    y[j + 1] = __fmul_rn(y[j + 1], s.y);
    y[j + 2] = __fmul_rn(y[j + 2], s.z);
    y[j + 3] = __fmul_rn(y[j + 3], s.w);
  }
  __syncwarp();
  side_hadamard(y);
}

// A warp: the rounded centre into its page, and zeros after it.
__device__ inline void store_centre(const PrefillKeys& keys, std::uint8_t* area) {
  const int lane = this_thread() & 31;
  auto* words = reinterpret_cast<std::uint32_t*>(area);
  words[lane] = *reinterpret_cast<const std::uint32_t*>(&keys.steps[4 * lane]);
  words[32 + lane] = lane == 0 ? keys.step : 0u;
}

// What encode/centre.cuh wants.
__device__ inline Block centre_block(const Group& group, PrefillKeys& keys) {
  Block out{};
  out.group = group;
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
  const Block block = centre_block(this_team().group, keys);
  if (part.follows()) {
    block.group.sync();  // the page before is the team's own work
    previous_centre(page_of(a, part, part.page - 1, task.head), a.pages.format, part.previous_begin(),
                    kPrefillDim, block);
  } else if (!part.opens) load_centre(task.page, call, kPrefillDim, block);
}

// Rules 2 and 3: sets keys.centre. Whether y's reference is the centre, of a token that is finite.
__device__ inline bool choose_centre(const EncodeCall& call, const Part& part, const SideVector& y,
                                     float about_zero, bool finite, PrefillKeys& keys) {
  const Team team = this_team();
  const int side = this_side(), t = team.token, e = team.group.thread();
  const bool own = part.opens && part.has_own_centre(), counts = finite && t >= part.begin && t < part.end;
  float c = 0.0f, before = 0.0f, squared_before = 0.0f;
  Nearer result{};
  if (own) {
#pragma unroll
    for (int j = 0; j < kSideDim; j += 4)
      *reinterpret_cast<float4*>(&keys.rows[t][kSideDim * side + j]) =
          float4{y[j], y[j + 1], y[j + 2], y[j + 3]};
    if (!__all_sync(~0u, finite) && !finite)  // a weight of 0 does not take NaN away
      for (int j = 0; j < kSideDim; ++j) keys.rows[t][kSideDim * side + j] = 0.0f;

    const Chosen first = choose(team, counts, keys);
    before = mean_of_column(keys, e, first);
    c = __fmul_rn(before, call.rotation_scale);
    publish_centre(team, e, before, 0.0f, keys);
    publish_largest(team, e, c, keys);
    team.group.sync();
    squared_before = centre_squares(keys).x;
    result = nearer_to(y, &keys.centre[kSideDim * side], squared_before, about_zero);
    const Chosen second = choose(team, result.nearer && counts, keys);
    if (!(second == first)) {
      c = __fmul_rn(mean_of_column(keys, e, second), call.rotation_scale);
      publish_largest(team, e, c, keys);
      team.group.sync();
    }
  } else {
    if (part.has_previous || !part.opens) c = keys.other_centre[e];
    if (part.opens) publish_largest(team, e, c, keys);
    team.group.sync();
  }
  if (part.opens) c = round_centre(e, c, call.centre_scale, keys);
  publish_centre(team, e, c, c - before, keys);
  team.group.sync();
  const float2 squares = centre_squares(keys);
  bool nearer = false;
  const bool is_clear = own && still_clear(result, squared_before, squares.x, squares.y, about_zero, nearer);
  if (!__all_sync(~0u, is_clear))
    nearer = nearer_to(y, &keys.centre[kSideDim * side], squares.x, about_zero).nearer;
  return nearer && finite;
}

// The task's keys have been fetched; then the next one's are.
template <DType kType>
__device__ inline void encode_keys(const EncodeCall& call, PrefillShared& shared, PrefillKeys& keys) {
  const PageFormat& format = call.args.pages.format;
  prepare_keys(call, shared.task(), keys);
  SideVector y;
  wait_for_fetch();
  load_keys<kType>(shared.input(), y);
  if (shared.next() != kNoTask) fetch_keys(call, shared, shared.next());
  const float about_zero = side_dot([&](int j) { return y[j]; }, [&](int j) { return y[j]; });
  bool finite = about_zero < 1e36f;
  if (!__all_sync(~0u, finite)) finite = side_largest(y) < kLargest;
  const bool centred = choose_centre(call, shared.task().part, y, about_zero, finite, keys);

#pragma unroll
  for (int j = 0; j < kSideDim; j += 4) {
    const float4 c = *reinterpret_cast<const float4*>(&keys.centre[kSideDim * this_side() + j]);
    if (centred) {  // not by a product with 0 or 1: that would lose a -0
      y[j] = __fadd_rn(y[j], -c.x);
      y[j + 1] = __fadd_rn(y[j + 1], -c.y);
      y[j + 2] = __fadd_rn(y[j + 2], -c.z);
      y[j + 3] = __fadd_rn(y[j + 3], -c.w);
    }
  }

  SideCodes codes = code_side<KeyOrder>(y, call.rotation_scale, call.key_coder);
  if (!centred && codes.scale != kNanScale) codes.scale |= kReferenceIsZero;

  const Team team = this_team();
  const PrefillTask& task = shared.task();
  const Part& part = task.part;
  store_side_scale(part, team.token, codes.scale, task.page + format.k_scales_offset());
  store_key_codes(codes, team.token, part, format.k_bits, task.page);
  if (part.opens && team.warp == team.number) store_centre(keys, task.page + format.centre_offset());
}

}  // namespace turboquant::kernels::cuda
