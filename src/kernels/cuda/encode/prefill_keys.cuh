// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill_centre.cuh"

// The keys of a page by a team: a lane keeps its side of a rotated token in registers.
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

__device__ inline void fetch_keys(const EncodeCall& call, PrefillShared& shared, int index) {
  const PrefillTask& task = shared.tasks[index];
  fetch(task.keys, call.args.keys.token_stride, call.args.basis.key_signs + task.head * kPrefillDim,
        task.part, kWarpVectors * this_team().warp, shared.input());
}

// The lane's side of its key, which has been fetched, rotated, and its largest coordinate.
template <DType kType>
__device__ inline Rotated load_keys(const WarpInput& input, float& largest, SideVector& y) {
#pragma unroll
  for (int piece = 0; piece < 8; ++piece) {
    float x[8];
    unpack_signed<kType>(input, piece, x);
    pack_side(x, piece, y);
  }
  return rotate_packed<kType>(input, largest, y);
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
  if (!part.opens) {
    const std::uint8_t* area = task.page + format.centre_offset();
    return {reinterpret_cast<const std::uint32_t*>(area)[lane],
            *reinterpret_cast<const std::uint16_t*>(area + kPrefillDim)};
  }
  if (!part.has_previous) return {0, 0};
  Block block{};
  block.group = team.group;
  block.centre = keys.centre;
  block.sums = keys.scratch;
  block.group.sync();  // the page before is the team's own work
  previous_centre<16>(page_of(a, part, part.page - 1, task.head), format, part.previous_begin(), kPrefillDim,
                      block);
  const float4 c = reinterpret_cast<const float4*>(keys.centre)[lane];
  return round_four({c.x, c.y, c.z, c.w});
}

// A team's keys into its rows. Of a page that takes their mean: their weights, too; what a sum of all weights
// is worth, over sqrt(d) but for the count; which tokens count.
struct Mean {
  float unit;
  std::uint32_t weight;  // of the lane's token
  Chosen chosen;
};
__device__ inline void keep_row(const Team& team, const SideVector& y, PrefillKeys& keys) {
#pragma unroll
  for (int j = 0; j < kSidePairs; j += 4)
    *reinterpret_cast<uint4*>(&keys.rows[team.token][kSidePairs * this_side() + j]) =
        uint4{y[j], y[j + 1], y[j + 2], y[j + 3]};
}
__device__ inline Mean prepare_mean(const Team& team, bool counts, float factor, PrefillKeys& keys) {
  const auto twice = [](float x) { return bits_of(__float2half2_rn(x)); };
  Mean out{64.0f, twice(counts ? weight_of(1.0f, 1.0f) : 0.0f), {}};
  const bool writes = this_side() == 0;
  if (writes) keys.weights[team.token] = out.weight;
  const std::uint32_t least = __reduce_min_sync(~0u, counts ? __float_as_uint(factor) : 0x7f000000u);
  const bool any = __any_sync(~0u, counts && factor != 1.0f);
  if ((this_thread() & 31) == 0) keys.factors[team.warp] = least | (any ? 1u : 0u);
  publish(team, counts, keys.chosen[0]);
  team.group.sync();
  const uint4 all = *reinterpret_cast<const uint4*>(keys.factors);
  if (((all.x | all.y | all.z | all.w) & 1u) != 0) {
    const float page_least = __uint_as_float(min(min(all.x, all.y), min(all.z, all.w)) & ~1u);
    out.weight = twice(counts ? weight_of(factor, page_least) : 0.0f);
    if (writes) keys.weights[team.token] = out.weight;
    out.unit *= one_over_power(page_least);
    team.group.sync();
  }
  out.chosen = read(keys.chosen[0]);
  return out;
}

// Rules 2 and 3: whether the lane's token is nearer to the page's centre, which is taken up and, where the
// page is opened, stored.
__device__ inline bool choose_centre(const EncodeCall& call, const PrefillTask& task, const SideVector& y,
                                     float largest, Rotated scaled, PrefillKeys& keys, Measure& measure) {
  const Team team = this_team();
  const Part& part = task.part;
  const bool own = part.opens && part.has_own_centre();
  const bool counts = scaled.finite && team.token >= part.begin && team.token < part.end;
  keep_row(team, y, keys);
  Stored stored;
  Mean mean;
  if (own) mean = prepare_mean(team, counts, scaled.factor, keys);
  else stored = other_centre(call, task, keys);
  bool nearer;
#pragma unroll 1
  for (int round = 0;; ++round) {
    if (own) {
      const auto count = static_cast<float>(mean.chosen.count());
      const float per_unit =
          count > 0.0f ? __fmul_rn(mean.unit, divide_normal(call.rotation_scale, count)) : 0.0f;
      stored = mean_of_rows(team, per_unit, keys);
    }
    measure = take_centre(stored, call.centre_scale, keys.centres[team.warp]);
    nearer = is_nearer(largest, scaled.factor, measure, team, keys);
    if (!own || round == 1) break;
    publish(team, nearer && counts, keys.chosen[1]);
    if (this_side() == 0) keys.weights[team.token] = nearer ? mean.weight : 0u;
    team.group.sync();
    const Chosen second = read(keys.chosen[1]);
    if (second == mean.chosen) break;
    mean.chosen = second;
  }
  if (part.opens && team.warp == team.number % kTeamWarps)
    store_centre(stored, task.page + call.args.pages.format.centre_offset());
  return nearer;
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
    const float2 n = __half22float2(as_half2(centre.steps[first + j]));
    const float low = centre_at(measure.step, n.x, factor), high = centre_at(measure.step, n.y, factor);
    const __half2 c = centred ? __floats2half2_rn(low, high) : as_half2(0);
    y[j] = bits_of(__hsub2_rn(as_half2(y[j]), c));
  }
}

// The task's keys have been fetched; then the next one's are.
template <DType kType>
__device__ inline void encode_keys(const EncodeCall& call, PrefillShared& shared, PrefillKeys& keys) {
  const PageFormat& format = call.args.pages.format;
  SideVector y;
  float largest;
  wait_for_fetch();
  const Rotated scaled = load_keys<kType>(shared.input(), largest, y);
  if (shared.next() != kNoTask) fetch_keys(call, shared, shared.next());

  Measure measure;
  const bool centred = choose_centre(call, shared.task(), y, largest, scaled, keys, measure) && scaled.finite;
  const Team team = this_team();
  subtract_centre(y, centred, scaled.factor, measure, keys.centres[team.warp], shared.zeros);

  SideCodes codes = code_side<KeyOrder>(y, side_largest(y), scaled, call.rotation_scale, call.key_coder);
  if (!centred && codes.scale != kNanScale) codes.scale |= kReferenceIsZero;

  const PrefillTask& task = shared.task();
  store_side_scale(task.part, team.token, codes.scale, task.page + format.k_scales_offset());
  store_key_codes(codes, team.token, task.part, format.k_bits, task.page);
}

}  // namespace turboquant::kernels::cuda
