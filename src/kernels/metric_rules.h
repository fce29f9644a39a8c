// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// The rules that decide a key metric's bytes (docs/adr/0008). Sums are exact, and the rest is fp32 in a fixed
// order without contraction, so every machine makes the same bytes of the same queries in any order.
//
//  1. y = H (query_signs * query), fp32 (core/hadamard.h), not yet over sqrt(head_dim). f = 127 / m, m being
//  the
//     greatest |y_e| of those that are numbers: a query's own size does not count. A query counts if f is
//     below 2^127 and not 0: not if it is zero, or holds a NaN or infinity, which leaves no number in y.
//  2. u_e = the integer next to y_e f, ties to even.
//  3. moment_ef += u_e u_f, int32, for e <= f. What lies below the diagonal is neither read nor written.
//  4. The metric is 0 where the moment's trace t is. Else damped = moment, and on the diagonal as much more
//  as
//     a quarter of its mean and 4.5 queries make, t / (4 d) + 4.5 * 45^2 d in integers (u_e is 45 in the
//     quadratic mean where 128 coordinates are normal). Its entries as fp32, times fp32(127 / the largest on
//     the diagonal), to the next integer, ties to even.
namespace turboquant::kernels {

// 131,072 products of at most 127^2 are below 2^31.
static constexpr std::int64_t kMostMetricQueries = std::int64_t{1} << 17;

// Rule 1.
static constexpr bool query_counts(float factor) {
  return factor > 0.0f && factor < 0x1p127f;
}
// The next integer, ties to even, of one that is at most 2^22 in size.
static constexpr float next_integer(float x) {
  const float magic = 0x1.8p23f;
  return (x + magic) - magic;
}
// Rule 4: what is added to the diagonal.
static constexpr std::int64_t damping(std::int64_t trace, int head_dim) {
  return trace / (4 * head_dim) + std::int64_t{9} * 45 * 45 * head_dim / 2;
}

}  // namespace turboquant::kernels
