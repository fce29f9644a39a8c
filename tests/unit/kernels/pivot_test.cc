// SPDX-License-Identifier: Apache-2.0
// Rule 2a of encode: a page's own mean is moved so that one key, the pivot, decodes to what it is.
#include <gtest/gtest.h>

#include <functional>

#include "core/hadamard.h"
#include "core/layout.h"
#include "kernels/encode_rules.h"
#include "kernels/reference/reference.h"
#include "unit/kernels/world.h"

namespace turboquant::kernels {
namespace {

Shape shape_of(int d, int k_bits, int v_bits = 4) {
  Shape shape;
  shape.format = {d, k_bits, v_bits};
  shape.max_pages = 3;
  shape.metric = true;
  return shape;
}

using Spoil = std::function<void(World::Call&, const World&)>;

void expect_same_bytes(const Shape& shape, const std::vector<std::vector<int>>& calls,
                       const std::string& what, const Spoil& spoil = {}) {
  for (const KernelTable* kernels : fast_tables()) {
    World expected(shape, 7), got(shape, 7);
    for (const auto& counts : calls) {
      auto call = expected.random_call(counts), same = got.random_call(counts);
      if (spoil) {
        spoil(call, expected);
        spoil(same, got);
      }
      expected.append(kReference, call);
      got.append(*kernels, same);
      ASSERT_EQ(got.page_bytes, expected.page_bytes) << kernels->name << ", " << what;
    }
  }
}

TEST(Pivot, WritesTheReferencesBytesForEveryNumberOfTokensThatOpenAPage) {
  for (int tokens = 1; tokens <= kPageTokens; ++tokens)
    for (int bits = 2; bits <= 4; ++bits)
      expect_same_bytes(shape_of(tokens % 2 == 0 ? 64 : 80, bits), {{tokens, 65 - tokens}, {3, 1}, {70, 70}},
                        std::to_string(tokens) + " tokens, " + std::to_string(bits) + " bits");
}

TEST(Pivot, WritesTheReferencesBytesAtLargeHeadDims) {
  for (const int d : {96, 256, 384, 512})
    for (int bits = 2; bits <= 4; ++bits)
      expect_same_bytes(shape_of(d, bits, bits), {{64, 2}, {1, 1}, {40, 70}},
                        "head_dim " + std::to_string(d) + ", " + std::to_string(bits) + " bits");
}

TEST(Pivot, WritesTheReferencesBytesWithLeftPadding) {
  for (const int start : {1, 62, 63, 64, 100}) {
    Shape shape = shape_of(128, 4);
    shape.starts = {start, 0};
    expect_same_bytes(shape, {{130, 20}, {1, 1}, {40, 60}}, "start " + std::to_string(start));
  }
}

// Keys of all sizes, and so factors other than 1; a few that are no numbers, too large, zero, or point away.
TEST(Pivot, WritesTheReferencesBytesOfOddKeys) {
  for (int first = 0; first < 6; ++first)
    for (const int d : {64, 80, 128})
      for (int bits = 2; bits <= 4; ++bits)
        expect_same_bytes(shape_of(d, bits), {{70, 33}, {1, 1}, {3, 40}},
                          "from " + std::to_string(first) + ", head_dim " + std::to_string(d),
                          [&](World::Call& call, const World& world) {
                            const int row = world.shape.kv_heads * d;
                            for (int t = 0; t < call.tokens(); ++t) {
                              const int kind = (first + t) % 6;
                              const float scale[] = {NAN, -1.0f, 0x1p-40f, 0x1p90f, 0.0f, 0x1p14f};
                              for (int e = 0; e < row; ++e) call.keys[World::n(t * row + e)] *= scale[kind];
                            }
                          });
}

TEST(Pivot, WritesTheReferencesBytesWhereNoKeyIsFinite) {
  expect_same_bytes(shape_of(64, 4), {{70, 33}, {1, 1}}, "NaN", [](World::Call& call, const World&) {
    for (float& x : call.keys) x = NAN;
  });
}

// Keys of integers times `scale`: encode rotates them without a rounding, so that a test knows what it meant
// to store.
World::Call exact_call(World& world, int tokens, float scale) {
  auto call = world.random_call({tokens});
  const auto row = call.keys.size() / World::n(tokens);
  std::vector<float> common(row);
  for (float& x : common) x = static_cast<float>(static_cast<int>(world.rng() % 13) - 6);
  for (std::size_t i = 0; i < call.keys.size(); ++i)
    call.keys[i] = scale * (common[i % row] + static_cast<float>(static_cast<int>(world.rng() % 7) - 3));
  return call;
}

World exact_world(const Shape& shape) {
  World world(shape, 11);
  for (float& x : world.key_signs) x = x < 0.0f ? -1.0f : 1.0f;
  return world;
}

// A page of the first sequence, the first or another.
struct PageView {
  PageView(World& world, int head, int page = 0)
      : d(world.d()),
        bits(world.shape.format.k_bits),
        bytes(page_of(world.pages(), world.sequences(nullptr), 0, page, head)),
        centre(World::n(d)) {
    reference::load_centre(bytes, world.shape.format, centre.data());
    step = core::half_to_float(half_at(bytes + world.shape.format.centre_step_offset(), 0));
    scales = bytes + world.shape.format.k_scales_offset();
  }
  std::uint16_t scale(int t) const { return half_at(scales, core::scale_index(t)); }
  int code(int t, int e) const { return core::read_code(bytes, core::key_position, d, bits, t, e); }
  // What the key's codes add to its reference.
  double coded(int t, int e) const {
    const float size = core::half_to_float(static_cast<std::uint16_t>(scale(t) & ~kReferenceIsZero));
    return static_cast<double>(size) / 64.0 * reference::signed_steps(core::key_table(bits), code(t, e));
  }

  int d, bits;
  const std::uint8_t* bytes;
  std::vector<float> centre;
  float step;
  const std::uint8_t* scales;
};

// The rotated key of token t, over sqrt(d).
std::vector<double> rotated(const World& world, const World::Call& call, int t, int head) {
  const int d = world.d();
  std::vector<float> x(World::n(d)), scratch(x.size());
  for (int e = 0; e < d; ++e)
    x[World::n(e)] = call.keys[World::n((t * world.shape.kv_heads + head) * d + e)] *
                     world.key_signs[World::n(head * d + e)];
  const int base = world.plan.base;
  core::hadamard_forward(x.data(), base, d / base, base > 1 ? world.plan.base_matrix.data() : nullptr,
                         scratch.data());
  std::vector<double> out;
  for (const float value : x) out.push_back(static_cast<double>(value) / std::sqrt(static_cast<double>(d)));
  return out;
}

double cost(const World& world, int head, const std::vector<double>& error) {
  double sum = 0;
  for (int i = 0; i < world.d(); ++i)
    for (int j = 0; j < world.d(); ++j)
      sum += error[World::n(i)] * error[World::n(j)] *
             world.key_metric[World::n((head * world.d() + i) * world.d() + j)];
  return sum;
}

// Rule 2a's v, of a metric [d, d].
std::vector<double> main_direction(const std::int8_t* metric, int d) {
  int at = 0;
  for (int e = 1; e < d; ++e) at = metric[e * d + e] > metric[at * d + at] ? e : at;
  std::vector<double> v(metric + at * d, metric + (at + 1) * d);
  for (int round = 0; round < 3; ++round) {
    std::vector<double> w(World::n(d));
    double most = 0;
    for (int e = 0; e < d; ++e) {
      for (int f = 0; f < d; ++f) w[World::n(e)] += metric[e * d + f] * v[World::n(f)];
      most = std::max(most, std::fabs(w[World::n(e)]));
    }
    for (int e = 0; e < d; ++e) v[World::n(e)] = most == 0 ? 0 : std::nearbyint(w[World::n(e)] * 127 / most);
  }
  return v;
}

// Which of the first page's keys rule 2a takes, seen from a cache whose centre has not moved.
int pivot_of(World& unmoved, const World::Call& call, int head, const std::vector<double>& v) {
  const PageView page(unmoved, head);
  int pivot = -1;
  double most = -1;
  for (int t = 0; t < std::min(call.tokens(), kPageTokens); ++t) {
    if (page.scale(t) == kNanScale || (page.scale(t) & kReferenceIsZero) != 0) continue;
    const auto k = rotated(unmoved, call, t, head);
    double along = 0;
    for (int e = 0; e < page.d; ++e) along += (k[World::n(e)] - page.centre[World::n(e)]) * v[World::n(e)];
    if (!(std::fabs(along) > most)) continue;
    most = std::fabs(along);
    pivot = t;
  }
  return pivot;
}

// The pivot k is off by what the moved centre k - S T is rounded by: half a step a coordinate, where no flip
// moves it, and 8 flips move it by 8 steps in all. Next to that fp32 counts: k, S T and their difference are
// rounded to 2^-24 of themselves a few times, the quotient by a step, up to 127, too. So, in steps, over all
// coordinates.
TEST(Pivot, IsDecodedToWithinTheCentresRounding) {
  double of_all_flipped = 0;
  int cases = 0;
  for (const int d : {32, 64, 80, 96, 128, 256, 512})
    for (int bits = 2; bits <= 4; ++bits)
      for (const int tokens : {2, 5, 64})
        for (const float scale : {1.0f, 0x1p-10f, 0x1p9f}) {
          Shape shape = shape_of(d, bits);
          shape.sequences = 1;
          double rounded_cost = 0, flipped_cost = 0;
          for (const bool flips : {false, true}) {
            World world = exact_world(shape), unmoved = exact_world(shape);
            const auto call = exact_call(world, tokens, scale), same = exact_call(unmoved, tokens, scale);
            const auto measure = world;
            if (!flips) world.key_metric.assign(world.key_metric.size(), 0);
            unmoved.key_metric.clear();
            world.append(kReference, call);
            unmoved.append(kReference, same);
            for (int head = 0; head < shape.kv_heads; ++head) {
              SCOPED_TRACE("head_dim " + std::to_string(d) + ", " + std::to_string(bits) + " bits, " +
                           std::to_string(tokens) + " tokens");
              const PageView page(world, head), before(unmoved, head);
              const auto v = main_direction(world.key_metric.data() + head * d * d, d);
              const int pivot = pivot_of(unmoved, same, head, v);
              ASSERT_GE(pivot, 0);
              ASSERT_EQ(page.scale(pivot) & kReferenceIsZero, 0);
              const auto k = rotated(world, call, pivot, head);
              double moved = 0;
              int beyond = 0;
              std::vector<double> error, error_before, error_rounded;
              for (int e = 0; e < d; ++e) {
                const double value = k[World::n(e)], codes = page.coded(pivot, e), step = page.step;
                const double centre = page.centre[World::n(e)];
                error.push_back(centre + codes - value);
                error_before.push_back(before.centre[World::n(e)] + codes - value);
                const double wanted = std::nearbyint((value - codes) / step);
                error_rounded.push_back(step * std::min(127.0, std::max(-127.0, wanted)) + codes - value);
                const double off = std::fabs(error.back()) / step;
                const double most = 0.5 + 0x1p-22 * (127 + (std::fabs(value) + std::fabs(codes)) / step);
                beyond += off > most ? 1 : 0;
                moved += off > most ? off - most : 0;
              }
              EXPECT_LE(beyond, flips ? 8 : 0);
              EXPECT_LE(moved, flips ? 8 : 0);
              EXPECT_LT(cost(measure, head, error), cost(measure, head, error_before));
              if (!flips) continue;
              flipped_cost += cost(measure, head, error);
              rounded_cost += cost(measure, head, error_rounded);
            }
          }
          EXPECT_LE(flipped_cost, rounded_cost);
          of_all_flipped += flipped_cost / rounded_cost;
          ++cases;
        }
  EXPECT_LT(of_all_flipped / cases, 1.0);
}

// Which keys of a first page that `call` opened are off by no more than the centre's rounding.
std::vector<int> exact_keys(World& world, const World::Call& call, int head) {
  const PageView page(world, head);
  std::vector<int> found;
  for (int t = 0; t < call.tokens(); ++t) {
    if (page.scale(t) == kNanScale) continue;
    const auto k = rotated(world, call, t, head);
    double worst = 0;
    for (int e = 0; e < page.d; ++e)
      worst = std::max(worst, std::fabs(page.centre[World::n(e)] + page.coded(t, e) - k[World::n(e)]));
    if (worst < 0.501 * static_cast<double>(page.step)) found.push_back(t);
  }
  return found;
}

// Without a direction all keys are alike, and the first counts: not a NaN token, not one that chooses zero.
TEST(Pivot, IsTheFirstFiniteKeyThatChoosesTheCentreOfEquals) {
  Shape shape = shape_of(64, 4);
  shape.sequences = 1;
  World world = exact_world(shape);
  world.key_metric.assign(world.key_metric.size(), 0);
  auto call = exact_call(world, 20, 1.0f);
  const auto row = World::n(shape.kv_heads * 64);
  for (std::size_t e = 0; e < row; ++e) {
    call.keys[e] = NAN;
    call.keys[row + e] *= -1.0f;
  }
  world.append(kReference, call);
  for (int head = 0; head < shape.kv_heads; ++head) {
    const PageView page(world, head);
    EXPECT_EQ(page.scale(0), kNanScale);
    EXPECT_NE(page.scale(1) & kReferenceIsZero, 0);
    EXPECT_EQ(exact_keys(world, call, head), std::vector{2});
  }
}

// A metric that costs a single coordinate: the key furthest from the centre there, in either sense.
TEST(Pivot, IsTheKeyFurthestFromTheCentreAlongTheMetricsMainDirection) {
  Shape shape = shape_of(64, 4);
  shape.sequences = shape.kv_heads = 1;
  for (int at = 0; at < 64; ++at) {
    World world = exact_world(shape), unmoved = exact_world(shape);
    const auto call = exact_call(world, 40, 1.0f), same = exact_call(unmoved, 40, 1.0f);
    unmoved.key_metric.clear();
    std::fill(world.key_metric.begin(), world.key_metric.end(), std::int8_t{0});
    world.key_metric[World::n(at * 64 + at)] = 127;
    world.append(kReference, call);
    unmoved.append(kReference, same);
    std::vector<double> v(64);
    v[World::n(at)] = 127;
    const PageView page(world, 0);
    const int pivot = pivot_of(unmoved, same, 0, v);
    const auto k = rotated(world, call, pivot, 0);
    for (int e = 0; e < 64; ++e)
      EXPECT_LT(std::fabs(page.centre[World::n(e)] + page.coded(pivot, e) - k[World::n(e)]),
                0.501 * static_cast<double>(page.step))
          << at;
  }
}

// Without flips and a direction all that a metric does is to move own means: values are what they are without
// a metric, and so are the first key's codes and a page that is opened otherwise, by one token or by few
// behind another page that has no mean of its own.
TEST(Pivot, OnlyAMeanOfItsOwnMoves) {
  Shape shape = shape_of(64, 4);
  for (const KernelTable* kernels : all()) {
    if (!kernels->runs_here()) continue;
    World without(shape, 5), with(shape, 5);
    without.key_metric.clear();
    with.key_metric.assign(with.key_metric.size(), 0);
    for (const auto& counts : std::vector<std::vector<int>>{{128, 1}, {0, 63}, {0, 15}}) {
      without.append(*kernels, without.random_call(counts));
      with.append(*kernels, with.random_call(counts));
    }
    const auto bytes = [&](World& world, int page, int head) {
      const auto* begin = page_of(world.pages(), world.sequences(nullptr), 1, page, head);
      return std::vector<std::uint8_t>(begin, begin + shape.format.page_bytes());
    };
    for (int head = 0; head < shape.kv_heads; ++head) {
      for (const int page : {0, 1}) EXPECT_EQ(bytes(with, page, head), bytes(without, page, head));
      for (const int page : {0, 1}) {
        const PageView moved(with, head, page), unmoved(without, head, page);
        EXPECT_NE(moved.centre, unmoved.centre) << kernels->name;
        EXPECT_EQ(moved.scale(0), unmoved.scale(0)) << kernels->name;
        for (int e = 0; e < 64; ++e) EXPECT_EQ(moved.code(0, e), unmoved.code(0, e)) << kernels->name;
        const auto begin = shape.format.v_codes_offset(), end = shape.format.k_scales_offset();
        EXPECT_TRUE(std::equal(moved.bytes + begin, moved.bytes + end, unmoved.bytes + begin));
      }
    }
  }
}

}  // namespace
}  // namespace turboquant::kernels
