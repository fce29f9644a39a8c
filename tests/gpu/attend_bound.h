// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "device_world.h"

// How far attend on CUDA may be from the double-precision reference. u = 2^-24, h = 2^-11 (fp16's unit), t
// the unit of the call's dtype; d = head_dim; y a rotated key, v a value, ~q a rotated query.
//
// In fp32 (calls of fp32, all of it). Products with scales, the rotation (28 terms of a base sum, times
// sqrt(28) for its entries, and log2 of the power) and sums of d terms: a score is off by (160 + d) u scale
// |~q| |y|; the exponent is taken in base 2: 8 u |score| more; softcap's tanh has a slope of at most 1 and
// rounds 8 u softcap. Together: s. A shift of every score by at most s moves a weighted average of values by
// at most 2 s max|v| (a coordinate). Sums of n tokens add tile by tile: (64 + n / 64) u max|v|; the rotation
// back 160 u |v|; the result is rounded: t |out|.
//
// In 16 bits (calls of fp16 and bf16) two kernels round more, each in its way; the bound is what covers both.
// * few_rows: ~q becomes integers in steps of max|~q| / 32639, so each coordinate is off by at most
//   r = max|~q| / 65278, a score by scale r |y|_1 <= scale r sqrt(d) |y|. In a tile of 64 tokens p_j n_j (n_j
//   the value's scale) is rounded in steps of the tile's largest / 32639: token j is off by max(p) rho v_j /
//   65278 with rho = max n / min n, and the tiles' largest p add up to at most 1: 64 rho max|v| / 65278.
// * many_rows: ~q and y, the weights and the values become fp16: 2 h scale |~q| |y|, and 2 h max|v|.
// The call's own keys and values are at least as exact as the latter.
//
// The sum of those is `out`, which no element may exceed. It adds up worst cases, and would let a lost token
// pass, so the root mean square over all elements is held to what independent roundings give: one of at most
// b has an rms of b / sqrt(3), and they add in squares: 64 tokens count 8 times; d coordinates of r |y| once,
// and of h ~q y as |~q| |y| / sqrt(d), since a rotation spreads vectors evenly. Twice that, because rows
// share the roundings of their query, of which there may be few.
namespace turboquant::gpu {

struct Allowed {
  double out, out_rms, lse;
};

// The unit of rounding to a dtype.
inline double unit_of(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

// The sizes that the bound speaks of, over all rows of a kind.
struct Sizes {
  double norm = 0, least_norm = INFINITY, largest = 0, squares = 0, count = 0;

  // A row's element divided by divisors[e], where they are given.
  void add(const float* row, int d, const float* divisors = nullptr) {
    double square = 0;
    for (int e = 0; e < d; ++e) {
      const double x = static_cast<double>(row[e]) / (divisors ? static_cast<double>(divisors[e]) : 1.0);
      square += x * x;
      if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
    }
    if (!std::isfinite(square) || square == 0) return;
    squares += square;
    count += d;
    norm = std::max(norm, std::sqrt(square));
    least_norm = std::min(least_norm, std::sqrt(square));
  }
  double ratio() const { return count > 0 ? norm / least_norm : 1; }
  double rms() const { return count > 0 ? std::sqrt(squares / count) : 0; }
};

// Of a call on this world, whose rows are rounded to the dtype already. `positions`: of the longest history,
// where it is longer than the world's, whose pages it repeats.
inline Allowed allowed(World& world, const World::Call& call, const AttendArgs& a, DType dtype,
                       std::int64_t positions = 0) {
  const int d = world.d(), heads = world.shape.kv_heads, group = world.q_heads() / heads;
  const std::int64_t longest = *std::max_element(world.lengths.begin(), world.lengths.end());
  Sizes query, keys, values;
  const auto row = [d](std::int64_t index) { return static_cast<std::size_t>(index * d); };
  if (longest > 0) {
    const auto size = static_cast<std::size_t>(world.shape.sequences * heads * longest * d);
    std::vector<float> k(size), v(size);
    DecodeArgs all{world.pages(), world.basis(), world.fringe(), world.sequences(nullptr),
                   DType::kF32,   longest,       k.data(),       v.data()};
    kernels::kReference.decode(all, default_executor());
    for (int i = 0; i < world.shape.sequences; ++i)
      for (int h = 0; h < heads; ++h)
        for (std::int64_t p = kernels::start_of(all.sequences, i); p < world.lengths[World::n(i)]; ++p) {
          const std::size_t at = row((std::int64_t{i} * heads + h) * longest + p);
          keys.add(k.data() + at, d, world.query_signs.data() + h * d);
          values.add(v.data() + at, d);
        }
  }
  std::vector<float> rotated(call.query.size()), signs;
  for (int h = 0; h < heads * group; ++h)
    signs.insert(signs.end(), world.query_signs.begin() + h / group * d,
                 world.query_signs.begin() + (h / group + 1) * d);
  kernels::kReference.rotate({d,
                              heads * group,
                              call.tokens(),
                              world.rows(call.query, heads * group),
                              {DType::kF32, rotated.data(), std::int64_t{heads} * group * d, d},
                              signs.data(),
                              world.plan.base,
                              world.basis().base_matrix,
                              false},
                             default_executor());
  for (std::int64_t r = 0; r < std::int64_t{call.tokens()} * heads * group; ++r) {
    query.add(rotated.data() + row(r), d);
    query.add(call.query.data() + row(r), d);
  }
  const double history_ratio = values.ratio();
  for (std::int64_t r = 0; a.keys.data != nullptr && r < std::int64_t{call.tokens()} * heads; ++r) {
    keys.add(call.keys.data() + row(r), d);
    values.add(call.values.data() + row(r), d);
  }

  const double u = 0x1p-24, t = unit_of(dtype), scale = static_cast<double>(a.scale);
  const double h = dtype == DType::kF32 ? 0 : 0x1p-11, integer = dtype == DType::kF32 ? 0 : 1.0 / 65278;
  const double reach = scale * query.norm * keys.norm, r = query.largest * integer;
  const double fp32 = (160 + d) * u * reach + 8 * u * (reach + static_cast<double>(a.softcap));
  const double s = scale * r * std::sqrt(d) * keys.norm + 2 * h * reach + fp32;
  const double n = static_cast<double>(std::max(longest, positions) + call.tokens());
  const double sums = (64 + n / 64) * u * values.largest + 160 * u * values.norm;
  const double tile = 64 * history_ratio * integer;
  const auto squared = [](double x) { return x * x; };
  const double v = values.rms();
  const double scores = squared(scale * r * keys.norm) + 2 * squared(h * reach / std::sqrt(d));
  const double rounded = squared(tile / 8) + 2 * squared(h) + squared(t);
  return {.out = (2 * s + tile + 2 * h + t) * values.largest + sums,
          .out_rms = 2 * v * std::sqrt((4 * scores + rounded) / 3) + 2 * fp32 * v + sums,
          .lse = s + (80 + n / 64) * u + 2 * u * (reach + std::log(n + 1))};
}

}  // namespace turboquant::gpu
