// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "kernels/cuda/encode/flip_shared.cuh"
#include "kernels/cuda/encode/flips.cuh"

// Rule 5a for 8 keys by a warp, a quad each. Lane q has the coordinates 16 s + 4 q + k, s < 8, k < 4, at
// 4 s + k of its arrays. Half a gain of a move D of a coordinate, D^2 M_ee / 2 - D g, is one fused operation:
// fp32 holds D^2 M_ee / 2, g and D M_ee - 2 g exactly, so it is rounded once, as the rule's product of two
// integers is. Gains below 0 are in reverse order as bits, and above all others.
namespace turboquant::kernels::cuda {

// The largest move in levels: a step is at most the largest quotient of a level and its magnitude.
constexpr int largest_move(const core::CodeTable& table) {
  int largest = 0;
  for (int j = 0; j < table.candidates; ++j) {
    double step = 0.0;
    for (int level = 0; level <= core::kMaxLevel; ++level) {
      const double quotient = static_cast<double>(level) / table.magnitudes[core::index_of(table, j, level)];
      step = quotient > step ? quotient : step;
    }
    int gap = 2 * table.magnitudes[0];
    for (int k = 1; k < table.magnitude_count; ++k)
      gap = std::max(gap, table.magnitudes[k] - table.magnitudes[k - 1]);
    largest = std::max(largest, static_cast<int>(step * gap) + 2);
  }
  return largest;
}
constexpr bool gains_are_exact(const core::CodeTable& table) {
  const int move = largest_move(table);
  return move * move * 127 <= 1 << 24 &&
         move * 127 + 2 * (kPrefillDim * kLargestError + kFlips * move) * 127 <= 1 << 24;
}
static_assert(gains_are_exact(core::kKey4) && gains_are_exact(core::kEither3) &&
              gains_are_exact(core::kEither2));

inline constexpr int kLaneCoordinates = kPrefillDim / 4;
inline constexpr int kAhead = 3;  // parts of a row on their way

// Moves of one coordinate up and down by `up` and `down` levels.
struct Gains {
  float up, down, up_cost, down_cost;

  __device__ void set(float u, float d, float half_diagonal) {
    up = u;
    down = d;
    up_cost = __fmul_rn(__fmul_rn(u, u), half_diagonal);
    down_cost = __fmul_rn(__fmul_rn(d, d), half_diagonal);
  }
  // Computed here, not again wherever it is used.
  __device__ void keep() { asm volatile("" : "+f"(up), "+f"(down), "+f"(up_cost), "+f"(down_cost)); }
  __device__ std::uint32_t above(float g) const { return __float_as_uint(__fmaf_rn(-up, g, up_cost)); }
  __device__ std::uint32_t below(float g) const { return __float_as_uint(__fmaf_rn(down, g, down_cost)); }
  __device__ std::uint32_t best(float g) const { return max(above(g), below(g)); }
};
inline constexpr std::uint32_t kNoGain = 0x80000000u;

__device__ inline void multiply_errors(std::uint32_t (&a)[4][2], int (&sums)[4], std::uint32_t from, int k) {
  std::uint32_t b[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(from)
               : "memory");
#pragma unroll
  for (int i = 0; i < 2; ++i)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a[2 * k + i][0]), "r"(0), "r"(a[2 * k + i][1]), "r"(0), "r"(b[2 * i]), "r"(b[2 * i + 1]));
}
// g = M E of the quad's key.
__device__ inline void multiply_errors(const FlipShared& shared, const FlipWarp& own, int first_key,
                                       float (&g)[kLaneCoordinates]) {
  const int lane = this_thread() & 31;
  std::uint32_t a[4][2];
  const auto* errors =
      reinterpret_cast<const std::uint32_t*>(&own.errors[first_key + lane / 4][4 * (lane % 4)]);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    a[k][0] = errors[8 * k];
    a[k][1] = errors[8 * k + 4];
  }
  const auto from =
      static_cast<std::uint32_t>(__cvta_generic_to_shared(&shared.metric[lane % 8][16 * (lane / 8)]));
#pragma unroll
  for (int tile = 0; tile < kPrefillDim / 8; ++tile) {
    int sums[4] = {};
#pragma unroll
    for (int k = 0; k < 2; ++k)
      multiply_errors(a, sums, from + static_cast<std::uint32_t>(8 * (kPrefillDim + 16) * tile + 64 * k), k);
    g[2 * tile] = __int2float_rn(sums[0]);
    g[2 * tile + 1] = __int2float_rn(sums[1]);
  }
}

// The quad's key's steps into shared memory, and what its moves gain.
__device__ inline void prepare_moves(const FlipShared& shared, FlipWarp& own, int first_key,
                                     Gains (&gains)[kLaneCoordinates]) {
  const int lane = this_thread() & 31, quad = lane / 4, q = lane % 4;
  const float ratio = own.ratio[first_key + quad];
  float s[8];
#pragma unroll
  for (int k = 0; k < 8; ++k)
    s[k] = __fadd_rn(__fadd_rn(__fmul_rn(ratio, shared.magnitudes[k]), 0x1p23f), -0x1p23f);
  float* steps = own.moves.steps[quad];
#pragma unroll
  for (int k = 0; k < 8; ++k)
    if (k / 2 == q) {
      steps[9 + k] = s[k];
      steps[8 - k] = -s[k];
    }
  if (q == 3) {
    steps[17] = s[7];
    steps[0] = -s[7];
  }
  // By index: how far it is out to the next magnitude and in to the one before, as bytes of fp16 numbers.
  std::uint32_t out[4];
#pragma unroll
  for (int k = 0; k < 4; ++k)
    out[k] = bits_of(__floats2half2_rn(__fadd_rn(s[2 * k + 1], -s[2 * k]),
                                       k < 3 ? __fadd_rn(s[2 * k + 2], -s[2 * k + 1]) : 0.0f));
  const std::uint32_t across = bits_of(__float2half2_rn(__fadd_rn(s[0], s[0])));
  const std::uint32_t out_low[2] = {permute(out[0], out[1], 0x6420), permute(out[2], out[3], 0x6420)},
                      out_high[2] = {permute(out[0], out[1], 0x7531), permute(out[2], out[3], 0x7531)},
                      in_low[2] = {permute(across, out_low[0], 0x6540),
                                   permute(out_low[0], out_low[1], 0x6543)},
                      in_high[2] = {permute(across, out_high[0], 0x6541),
                                    permute(out_high[0], out_high[1], 0x6543)};
  const uint4 chunk = *reinterpret_cast<const uint4*>(&own.codes[first_key + quad][4 * q]);
  const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int segment = 0; segment < 8; ++segment) {
    const int half = segment % 2;
    const std::uint32_t word = words[segment / 2], even = word << 4;
    const std::uint32_t indices = (word & 0x77777777u) >> (16 * half);
    const std::uint32_t outs[2] = {permute(out_low[0], out_low[1], indices),
                                   permute(out_high[0], out_high[1], indices)},
                        ins[2] = {permute(in_low[0], in_low[1], indices),
                                  permute(in_high[0], in_high[1], indices)};
    const float4 diagonal = *reinterpret_cast<const float4*>(&shared.half_diagonal[16 * segment + 4 * q]);
#pragma unroll
    for (int two = 0; two < 2; ++two) {
      // Which of the two are negative: sign bits of nibbles, spread.
      const std::uint32_t negative =
          permute(even, word, two == 0 ? (half == 0 ? 0xcc88 : 0xeeaa) : (half == 0 ? 0xdd99 : 0xffbb));
      const std::uint32_t selector = two == 0 ? 0x5140 : 0x7362;
      const std::uint32_t outward = permute(outs[0], outs[1], selector),
                          inward = permute(ins[0], ins[1], selector);
      const float2 up = __half22float2(as_half2((inward & negative) | (outward & ~negative))),
                   down = __half22float2(as_half2((outward & negative) | (inward & ~negative)));
      gains[4 * segment + 2 * two].set(up.x, down.x, two == 0 ? diagonal.x : diagonal.z);
      gains[4 * segment + 2 * two + 1].set(up.y, down.y, two == 0 ? diagonal.y : diagonal.w);
      gains[4 * segment + 2 * two].keep();
      gains[4 * segment + 2 * two + 1].keep();
    }
  }
}

// A lane's place in its quad, and what its key has in shared memory.
struct Quad {
  int q;                 // the lane in its quad
  int base;              // the quad's first lane
  std::uint32_t* codes;  // [16]
  float* steps;          // of place p at p
  float4* staged;        // [4], a lane's each

  __device__ Quad(FlipWarp& own, int first_key) {
    const int lane = lane_id();
    q = lane % 4;
    base = lane & 28;
    codes = own.codes[first_key + lane / 4];
    steps = &own.moves.steps[lane / 4][1];
    staged = &own.moves.staged[base];
  }
  // The quad's first lane of those that are in `ballot`; the last one if none is.
  __device__ int first_of(std::uint32_t ballot) const {
    return __clz(static_cast<int>(__brev(ballot >> base | 8u)));
  }
};

// A coordinate that has moved: the main arrays know it no more. A quad's lanes have two each.
struct Moved {
  float g = kNotANumber;
  int at = 0;
  Gains gains{};
};

// What a lane offers its quad: four coordinates from `at` on, whose g are in its place of staged; of these
// only coordinate one - 1, unless `one` is 0.
struct Offer {
  std::uint32_t best;
  int at_and_one;

  __device__ void take(std::uint32_t gain, const Moved& moved) {
    best = gain;
    at_and_one = (moved.at & ~3) | ((moved.at & 3) + 1) << 8;
  }
};

// Where several coordinates of some quad gain alike: the quad's first one that gains `most`. Returns the
// ballot of lanes that have it.
__device__ inline std::uint32_t break_tie(std::uint32_t most, const float (&g)[kLaneCoordinates],
                                          const Gains (&gains)[kLaneCoordinates], const Moved (&moved)[2],
                                          const Quad& quad, Offer& offer) {
  Moved first;
  first.at = kNoRow;
#pragma unroll
  for (int j = kLaneCoordinates - 1; j >= 0; --j)
    if (gains[j].best(g[j]) == most) {
      first.at = 16 * (j / 4) + 4 * quad.q + j % 4;
      first.g = g[j];
    }
#pragma unroll
  for (const Moved& m : moved)
    if (m.gains.best(m.g) == most && m.at < first.at) {
      first.at = m.at;
      first.g = m.g;
    }
  int quads = min(first.at, __shfl_xor_sync(~0u, first.at, 1));
  quads = min(quads, __shfl_xor_sync(~0u, quads, 2));
  offer.take(most, first);
  quad.staged[quad.q] = float4{first.g, first.g, first.g, first.g};
  return __ballot_sync(~0u, first.at == quads && quads < kNoRow);
}

// The move that gains most, as all lanes of the quad know it; its coordinate's g and place afterwards.
struct Move {
  float by;
  int at;  // kNoRow: none
  float g;
  int place;
};

// `most` is gained by one coordinate, which the quad's first lane of `bests` offers.
__device__ inline Move find_move(std::uint32_t most, std::uint32_t bests, const Offer& offer, bool goes_on,
                                 const Quad& quad, const FlipShared& shared) {
  const int q = quad.q, winner = quad.first_of(bests);
  __syncwarp();
  const int at_and_one = __shfl_sync(~0u, offer.at_and_one, quad.base + winner), at = at_and_one & 127;
  const float g = reinterpret_cast<const float*>(&quad.staged[winner])[q];
  std::uint32_t& word = quad.codes[(at & 12) + (at >> 5)];
  const int shift = (at & 16) + 4 * q;
  const std::uint32_t code = word >> shift & 15u;
  const int place = static_cast<int>(code < 8 ? 8 + code : 15 - code);
  const float* steps = quad.steps + place;
  const float half_diagonal = shared.half_diagonal[at + q];
  const float here = steps[0], up = __fadd_rn(steps[1], -here), down = __fadd_rn(here, -steps[-1]);
  // As Gains, in two operations, of which the first is exact.
  const auto gain = [&](float by) {
    return __float_as_uint(__fmul_rn(by, __fmaf_rn(by, half_diagonal, -g)));
  };
  const bool rises = gain(up) == most, falls = gain(-down) == most;
  const bool matches = (rises | falls) & ((at_and_one < 256) | (at_and_one >> 8 == q + 1));
  const int k = quad.first_of(__ballot_sync(~0u, goes_on & matches));
  __syncwarp();
  const float by = rises ? up : -down;
  const int next = place + (rises ? 1 : -1);
  if (goes_on && k == q)
    word ^= (code ^ static_cast<std::uint32_t>(next >= 8 ? next - 8 : 15 - next)) << shift;
  Move out;
  out.by = __shfl_sync(~0u, goes_on ? by : 0.0f, quad.base + k);
  out.at = goes_on ? at + k : kNoRow;
  out.g = __shfl_sync(~0u, __fmaf_rn(-by, 2.0f * half_diagonal, g), quad.base + k);
  out.place = __shfl_sync(~0u, next, quad.base + k);
  return out;
}

// Eight keys of own.errors from first_key on: their codes in own.codes, and B.
__device__ inline void move_codes(int first_key, uint2 magnitudes, const FlipShared& shared, FlipWarp& own) {
  float g[kLaneCoordinates];
  Gains gains[kLaneCoordinates];
  multiply_errors(shared, own, first_key, g);
  prepare_moves(shared, own, first_key, gains);
  __syncwarp();
  const Quad quad(own, first_key);
  const float* rows = (quad.base % 8 == 0 ? shared.rows[0] : shared.shifted[0]) + 4 * quad.q;
  Moved moved[2];
  Move move{0.0f, kNoRow, 0.0f, 0};
#pragma unroll 1
  for (int flip = 0; flip < kFlips; ++flip) {
    Offer offer{kNoGain, 0};
    const float* row = rows + kPrefillDim * move.at;
    const auto part = [&](int segment) { return *reinterpret_cast<const float4*>(row + 16 * segment); };
    float4 ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = part(i);
#pragma unroll
    for (int segment = 0; segment < 8; ++segment) {
      float4& m = ahead[segment % kAhead];
      const float four[4] = {m.x, m.y, m.z, m.w};
      if (segment + kAhead < 8) m = part(segment + kAhead);
      std::uint32_t best = kNoGain;
      float* x = g + 4 * segment;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        x[k] = __fmaf_rn(-move.by, four[k], x[k]);
        const Gains& gain = gains[4 * segment + k];
        best = __vimax3_u32(best, gain.above(x[k]), gain.below(x[k]));
      }
      if (best > offer.best) {
        offer = {best, 16 * segment + 4 * quad.q};
        quad.staged[quad.q] = float4{x[0], x[1], x[2], x[3]};
      }
    }
    bool tied = false;
    const auto add = [&](const Moved& m) {
      const std::uint32_t best = m.gains.best(m.g);
      tied = tied || best == offer.best;
      if (best <= offer.best) return;
      offer.take(best, m);
      reinterpret_cast<float*>(&quad.staged[quad.q])[m.at & 3] = m.g;
    };
    add(moved[0]);
    if (flip > 4) add(moved[1]);
    std::uint32_t most = max(offer.best, __shfl_xor_sync(~0u, offer.best, 1));
    most = max(most, __shfl_xor_sync(~0u, most, 2));
    const bool goes_on = most > kNoGain;
    if (!__any_sync(~0u, goes_on)) break;
    const bool best = goes_on && offer.best == most;
    std::uint32_t bests = __ballot_sync(~0u, best);
    const std::uint32_t quads = bests >> quad.base & 15u;
    if (__any_sync(~0u, (best && tied) || (quads & (quads - 1)) != 0))
      bests = break_tie(most, g, gains, moved, quad, offer);
    move = find_move(most, bests, offer, goes_on, quad, shared);
    if (flip + 1 == kFlips) break;
    const float* of_row = shared.rows[move.at];
    moved[0].g = __fmaf_rn(-move.by, of_row[moved[0].at], moved[0].g);
    if (flip > 4) moved[1].g = __fmaf_rn(-move.by, of_row[moved[1].at], moved[1].g);
    Moved fresh;
    fresh.g = move.g;
    fresh.at = move.at;
    const float* steps = quad.steps + move.place;
    fresh.gains.set(__fadd_rn(steps[1], -steps[0]), __fadd_rn(steps[0], -steps[-1]),
                    shared.half_diagonal[move.at & 127]);
    if (goes_on && flip % 4 == quad.q) (flip < 4 ? moved[0] : moved[1]) = fresh;
  }
  __syncwarp();
  const uint4 chunk = *reinterpret_cast<const uint4*>(quad.codes + 4 * quad.q);
  const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
  std::uint32_t squares = 0;
#pragma unroll
  for (const std::uint32_t word : words) {
    const std::uint32_t low = permute(magnitudes.x, magnitudes.y, word & 0x77777777u),
                        high = permute(magnitudes.x, magnitudes.y, word >> 16 & 0x7777u);
    squares = __dp4a(low, low, __dp4a(high, high, squares));
  }
  squares += __shfl_xor_sync(~0u, squares, 1);
  squares += __shfl_xor_sync(~0u, squares, 2);
  if (quad.q == 0) own.squares[first_key + quad.base / 4] = squares;
  __syncwarp();
}

}  // namespace turboquant::kernels::cuda
