// SPDX-License-Identifier: Apache-2.0
#include "turboquant/codebook.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <string>

// Everything is computed in the angle, x = sin(t): then f(x) dx is proportional to cos(t)^(d-2) dt, an entire
// function for every d (no singular end at d = 2), and 16-point Gauss-Legendre on pieces of at most a
// standard deviation is exact to rounding: the error term of a Gaussian on one such piece is below 1e-25.
// Moments are taken about the cell's centroid and divided by the sum of the cells' masses, so nothing cancels
// and no Gamma is needed. By symmetry only the positive half is solved.
namespace turboquant {
namespace {

constexpr int kMinHeadDim = 2, kMaxHeadDim = 1024, kMinBits = 1, kMaxBits = 8;
constexpr int kNodes = 16;

struct GaussLegendre {
  std::array<double, kNodes> node, weight;  // on [-1, 1]
};

GaussLegendre gauss_legendre() {
  GaussLegendre rule;
  for (int i = 0; i < kNodes; ++i) {
    double x = std::cos(std::numbers::pi * (i + 0.75) / (kNodes + 0.5));
    double slope = 1.0;
    for (int step = 0; step < 8; ++step) {  // Newton on P_16: doubles its digits each step
      double previous = 1.0, value = x;
      for (int n = 2; n <= kNodes; ++n) {
        const double next = ((2 * n - 1) * x * value - (n - 1) * previous) / n;
        previous = value;
        value = next;
      }
      slope = kNodes * (x * value - previous) / (x * x - 1.0);
      x -= value / slope;
    }
    rule.node[static_cast<std::size_t>(i)] = x;
    rule.weight[static_cast<std::size_t>(i)] = 2.0 / ((1.0 - x * x) * slope * slope);
  }
  return rule;
}

// (1 - x^2)^(power/2) with x = sin(t). The logarithm is taken where it loses no digits.
double cosine_power(double t, double x, double power) {
  if (x < 0.5) return std::exp(0.5 * power * std::log1p(-x * x));
  return std::exp(power * std::log(std::cos(t)));
}

struct Moments {
  double mass = 0.0, first = 0.0, second = 0.0;  // of (x - centre)^k, all divided by the same constant
};

class Law {
 public:
  explicit Law(int head_dim) : head_dim_(head_dim), rule_(gauss_legendre()) {}

  // Over x in [low, high], 0 <= low < high <= 1.
  Moments moments(double low, double high, double centre) const {
    const double from = std::asin(low);
    const double to = high < 1.0 ? std::asin(high) : 0.5 * std::numbers::pi;
    const double pieces = std::ceil((to - from) * std::sqrt(head_dim_));
    const double half = 0.5 * (to - from) / pieces;
    Moments sum;
    for (double piece = 0.0; piece < pieces; piece += 1.0) {
      const double middle = from + (2.0 * piece + 1.0) * half;
      for (std::size_t i = 0; i < kNodes; ++i) {
        const double t = middle + half * rule_.node[i];
        const double x = std::sin(t);
        const double mass = half * rule_.weight[i] * cosine_power(t, x, head_dim_ - 2.0);
        sum.mass += mass;
        sum.first += mass * (x - centre);
        sum.second += mass * (x - centre) * (x - centre);
      }
    }
    return sum;
  }

  // f(x), in the unit of the moments.
  double density(double x) const { return std::exp(0.5 * (head_dim_ - 3.0) * std::log1p(-x * x)); }

 private:
  double head_dim_;
  GaussLegendre rule_;
};

// Start: centroids at the quantiles of a law proportional to f^(1/3), the optimum for many levels (Panter and
// Dite). In the angle its density is cos(t)^(d/3), summed here by the midpoint rule.
std::vector<double> starting_centroids(int head_dim, std::size_t levels) {
  constexpr std::size_t kGrid = 16384;
  const double step = 0.5 * std::numbers::pi / kGrid;
  std::vector<double> cumulative{0.0};
  for (std::size_t i = 0; i < kGrid; ++i) {
    const double t = (static_cast<double>(i) + 0.5) * step;
    cumulative.push_back(cumulative.back() + cosine_power(t, std::sin(t), head_dim / 3.0));
  }
  std::vector<double> centroids;
  std::size_t cell = 0;
  for (std::size_t k = 0; k < levels; ++k) {
    const double wanted = cumulative.back() * (static_cast<double>(k) + 0.5) / static_cast<double>(levels);
    while (cumulative[cell + 1] < wanted) ++cell;
    const double part = (wanted - cumulative[cell]) / (cumulative[cell + 1] - cumulative[cell]);
    centroids.push_back(std::sin((static_cast<double>(cell) + part) * step));
  }
  return centroids;
}

// Edges of the positive cells: 0, the midpoints, 1.
std::vector<double> edges_of(const std::vector<double>& centroids) {
  std::vector<double> edges{0.0};
  for (std::size_t i = 1; i < centroids.size(); ++i) edges.push_back(0.5 * (centroids[i - 1] + centroids[i]));
  edges.push_back(1.0);
  return edges;
}

bool ascend_in_unit_interval(const std::vector<double>& centroids) {
  double last = 0.0;
  for (const double c : centroids) {
    if (!(c > last && c < 1.0)) return false;
    last = c;
  }
  return true;
}

// One Newton step for c_i = mean(cell i), or Lloyd's own step (c_i becomes that mean) where Newton's would
// leave the order. With mean M and mass P of [a, b]: dM/da = f(a) (M - a) / P and dM/db = f(b) (b - M) / P,
// and an edge moves by half of each neighbour, so the Jacobian is tridiagonal. Returns the largest relative
// change.
double improve(const Law& law, std::vector<double>& centroids) {
  const std::size_t n = centroids.size();
  const std::vector<double> edges = edges_of(centroids);
  std::vector<double> offset(n), lower(n, 0.0), upper(n, 0.0), newton(n);
  for (std::size_t i = 0; i < n; ++i) {
    const Moments cell = law.moments(edges[i], edges[i + 1], centroids[i]);
    offset[i] = cell.first / cell.mass;
    const double mean = centroids[i] + offset[i];
    if (i > 0) lower[i] = -0.5 * law.density(edges[i]) * (mean - edges[i]) / cell.mass;
    if (i + 1 < n) upper[i] = -0.5 * law.density(edges[i + 1]) * (edges[i + 1] - mean) / cell.mass;
  }
  std::vector<double> ratio(n), step(n);
  for (std::size_t i = 0; i < n; ++i) {  // Thomas' elimination
    const double left = i > 0 ? lower[i] : 0.0;
    const double pivot = 1.0 + lower[i] + upper[i] - (i > 0 ? left * ratio[i - 1] : 0.0);
    ratio[i] = upper[i] / pivot;
    step[i] = (offset[i] - (i > 0 ? left * step[i - 1] : 0.0)) / pivot;
  }
  for (std::size_t i = n; i-- > 0;) {
    if (i + 1 < n) step[i] -= ratio[i] * step[i + 1];
    newton[i] = centroids[i] + step[i];
  }
  if (!ascend_in_unit_interval(newton)) step = offset;
  double change = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    change = std::max(change, std::fabs(step[i]) / centroids[i]);
    centroids[i] += step[i];
  }
  return change;
}

Codebook mirrored(const Law& law, int head_dim, int bits, const std::vector<double>& positive) {
  const std::vector<double> edges = edges_of(positive);
  double mass = 0.0, squared = 0.0;
  for (std::size_t i = 0; i < positive.size(); ++i) {
    const Moments cell = law.moments(edges[i], edges[i + 1], positive[i]);
    mass += cell.mass;
    squared += cell.second;
  }
  Codebook book{head_dim, bits, {}, {}, head_dim * squared / mass};
  for (std::size_t i = positive.size(); i-- > 0;) book.centroids.push_back(-positive[i]);
  for (const double c : positive) book.centroids.push_back(c);
  for (std::size_t i = positive.size(); i-- > 1;) book.boundaries.push_back(-edges[i]);
  for (std::size_t i = 0; i < positive.size(); ++i) book.boundaries.push_back(edges[i]);
  return book;
}

}  // namespace

Result<Codebook> lloyd_max(int head_dim, int bits) {
  if (head_dim < kMinHeadDim || head_dim > kMaxHeadDim) {
    return invalid("head_dim=" + std::to_string(head_dim) + " has no codebook; use 2 to 1024");
  }
  if (bits < kMinBits || bits > kMaxBits) {
    return invalid("bits=" + std::to_string(bits) + " has no codebook; use 1 to 8");
  }
  const Law law(head_dim);
  std::vector<double> centroids = starting_centroids(head_dim, std::size_t{1} << (bits - 1));
  // Newton squares the error, so after a step of 1e-10 what is left is rounding. It takes at most 5 steps.
  double change = 1.0;
  for (int step = 0; step < 100 && change > 1e-10; ++step) change = improve(law, centroids);
  assert(change <= 1e-10);
  return mirrored(law, head_dim, bits, centroids);
}

}  // namespace turboquant
