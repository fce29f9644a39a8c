// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill_centre.cuh"

// What a page has of keys alone, by a team: their centre, and where codes go.
namespace turboquant::kernels::cuda {

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

// A warp: the rounded centre into its page, and zeros after it.
__device__ inline void store_centre(const Stored& centre, std::uint8_t* area) {
  const int lane = this_thread() & 31;
  auto* words = reinterpret_cast<std::uint32_t*>(area);
  words[lane] = centre.steps;
  words[32 + lane] = lane == 0 ? centre.step : 0u;
}

// Where a page's keys are not measured about their own mean: the centre, rounded. All threads of the team
// call it.
__device__ inline Stored other_centre(const EncodeCall& call, const PrefillTask& task, PrefillKeys& keys) {
  const EncodeArgs& a = call.args;
  const Part& part = task.part;
  const PageFormat& format = a.pages.format;
  const Team team = this_team();
  const int lane = this_thread() & 31;
  if (is_for_warp(!part.opens)) {
    const std::uint8_t* area = task.page + format.centre_offset();
    return {reinterpret_cast<const std::uint32_t*>(area)[lane],
            *reinterpret_cast<const std::uint16_t*>(area + kPrefillDim)};
  }
  if (is_for_warp(!part.has_previous)) return {0, 0};
  Block block{};
  block.group = team.group;
  block.centre = keys.centre;
  block.sums = keys.scratch;
  block.group.sync();  // the page before is the team's own work
  previous_centre<16>(page_of(a, part, part.page - 1, task.head), format, part.previous_begin(), kPrefillDim,
                      block);
  const float4 c = reinterpret_cast<const float4*>(keys.centre)[lane];
  float n[4];
  return round_four({c.x, c.y, c.z, c.w}, n);
}

__device__ inline void keep_row(const Team& team, const SideVector& y, PrefillKeys& keys) {
#pragma unroll
  for (int j = 0; j < kSidePairs; j += 4)
    *reinterpret_cast<uint4*>(&keys.rows[team.token][kSidePairs * this_side() + j]) =
        uint4{y[j], y[j + 1], y[j + 2], y[j + 3]};
}
// Again after all that is done with rows: cheaper than to keep them, in registers where they can be stored by
// four.
__device__ inline void take_row(const Team& team, const PrefillKeys& keys, SideVector& y) {
#pragma unroll
  for (int j = 0; j < kSidePairs; j += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(&keys.rows[team.token][kSidePairs * this_side() + j]);
    y[j] = four.x;
    y[j + 1] = four.y;
    y[j + 2] = four.z;
    y[j + 3] = four.w;
  }
}
// The sum of the rows of a warp's own tokens that are `taken`, by their weights.
__device__ inline uint2 sum_taken(const Team& team, bool taken, float weight, PrefillKeys& keys) {
  auto& weights = keys.weights[team.warp];
  __syncwarp();
  if (this_side() == 0) weights[team.token % kWarpVectors] = bits_of(__float2half2_rn(taken ? weight : 0.0f));
  __syncwarp();
  return sum_of_rows(keys.rows + kWarpVectors * team.warp,
                     [&](int t) { return *reinterpret_cast<const uint4*>(&weights[t]); });
}
// The same of all of them by the weight of a factor of 1.
__device__ inline uint2 sum_all(const Team& team, const PrefillKeys& keys) {
  __syncwarp();
  return sum_of_rows(keys.rows + kWarpVectors * team.warp, [](int) {
    constexpr std::uint32_t kWeight = 0x24002400u;  // 2^-6
    return uint4{kWeight, kWeight, kWeight, kWeight};
  });
}

// The centre that a page's keys are measured from, a lane's coordinates of it in steps, and whether the
// lane's token is nearer to it than to 0.
struct Choice {
  Stored stored;
  float n[4];
  Measure measure;
  bool nearer;
};
// Rules 2 and 3 where a page takes its own keys' mean. A warp adds up its own rows and the team meets once a
// round. The first round takes all factors to be 1.
__device__ inline Choice choose_mean(const EncodeCall& call, const Team& team, bool counts, float largest,
                                     float factor, PrefillKeys& keys) {
  const bool scaled = __any_sync(~0u, counts && factor != 1.0f), tells = (this_thread() & 31) == 0;
  float unit = 64.0f, weight = weight_of(1.0f, 1.0f);
  const bool all_count = __all_sync(~0u, counts);
  std::uint32_t mine = chosen_of_warp(counts);
  uint2 sum = all_count ? sum_all(team, keys) : sum_taken(team, counts, weight, keys);
  Chosen first{};
  Choice out;
#pragma unroll 1
  for (int round = 0;; ++round) {
    TeamNews& news = keys.news[round];
    if (tells) {
      news.chosen[team.warp] = static_cast<std::uint16_t>(mine);
      news.scaled[team.warp] = static_cast<std::uint16_t>(scaled);
    }
    keys.sums[round][team.warp][this_thread() & 31] = sum;
    team.group.sync();
    const uint4 told = *reinterpret_cast<const uint4*>(&news);
    const Chosen all{told.x, told.y};
    if (round == 1 && is_for_warp(all == first)) break;
    if (round == 0 && is_for_warp((told.z | told.w) != 0)) {
      const std::uint32_t least = __reduce_min_sync(~0u, counts ? __float_as_uint(factor) : 0x7f000000u);
      if (tells) keys.factors[team.warp] = __uint_as_float(least);
      team.group.sync();
      const float4 f = *reinterpret_cast<const float4*>(keys.factors);
      const float page_least = fminf(fminf(f.x, f.y), fminf(f.z, f.w));
      weight = weight_of(factor, page_least);
      unit *= one_over_power(page_least);
      keys.sums[0][team.warp][this_thread() & 31] = sum_taken(team, counts, weight, keys);
      team.group.sync();
    }
    first = all;
    const auto count = static_cast<float>(all.count());
    const float per_unit = count > 0.0f ? __fmul_rn(unit, divide_normal(call.rotation_scale, count)) : 0.0f;
    out.stored = mean_of_sums(keys.sums[round], per_unit, out.n);
    out.measure = take_centre(out.stored, out.n, call.centre_scale, keys.centres[team.warp]);
    out.nearer = is_nearer(largest, factor, out.measure, team, keys);
    if (round == 1) break;
    mine = chosen_of_warp(out.nearer && counts);
    sum = sum_taken(team, out.nearer && counts, weight, keys);
  }
  return out;
}
// The same of any page. The centre is taken up and, where the page is opened, stored.
__device__ inline Choice choose_centre(const EncodeCall& call, PrefillShared& shared, float largest,
                                       Rotated scaled) {
  const PrefillTask& task = shared.task();
  const Team team = this_team();
  const Part& part = task.part;
  PrefillKeys& keys = shared.keys[team.number];
  WarpCentre& centre = keys.centres[team.warp];
  Choice out;
  if (is_for_warp(task.has_own_mean)) {
    const bool counts = scaled.finite && team.token >= part.begin && team.token < part.end;
    out = choose_mean(call, team, counts, largest, scaled.factor, keys);
  } else {
    out.stored = other_centre(call, task, keys);
    find_steps(out.stored, out.n);
    out.measure = take_centre(out.stored, out.n, call.centre_scale, centre);
    out.nearer = is_nearer(largest, scaled.factor, out.measure, team, keys);
  }
  find_pairs(out.n, out.measure, centre);
  if (is_for_warp(part.opens && team.warp == team.number % kTeamWarps))
    store_centre(out.stored, page_of(shared.task()) + centre_area_at(call.args.pages.format));
  return out;
}

// y less the centre where the token is `centred`, else less `zeros` [kSidePairs]: a product with 0 or 1 would
// lose a -0.
__device__ inline void subtract_centre(SideVector& y, bool centred, float factor, const Measure& measure,
                                       const WarpCentre& centre, const std::uint32_t* zeros) {
  const int first = kSidePairs * this_side();
  if (!__any_sync(~0u, centred && factor != 1.0f)) {
    const std::uint32_t* pairs = centred ? centre.pairs + first : zeros;
#pragma unroll
    for (int j = 0; j < kSidePairs; j += 4) {
      const uint4 c = *reinterpret_cast<const uint4*>(pairs + j);
      y[j] = bits_of(__hsub2_rn(as_half2(y[j]), as_half2(c.x)));
      y[j + 1] = bits_of(__hsub2_rn(as_half2(y[j + 1]), as_half2(c.y)));
      y[j + 2] = bits_of(__hsub2_rn(as_half2(y[j + 2]), as_half2(c.z)));
      y[j + 3] = bits_of(__hsub2_rn(as_half2(y[j + 3]), as_half2(c.w)));
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kSidePairs; ++j) {
    const float* n = &centre.steps[this_side()][2 * j];
    const float low = centre_at(measure.step, n[0], factor), high = centre_at(measure.step, n[1], factor);
    const __half2 c = centred ? __floats2half2_rn(low, high) : as_half2(0);
    y[j] = bits_of(__hsub2_rn(as_half2(y[j]), c));
  }
}

}  // namespace turboquant::kernels::cuda
