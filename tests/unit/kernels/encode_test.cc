// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "core/hadamard.h"
#include "core/layout.h"
#include "kernels/encode_rules.h"
#include "unit/kernels/world.h"

namespace turboquant::kernels {
namespace {

// Feeds the same calls to the reference and to every other table and compares every byte.
void expect_same_bytes(const Shape& shape, const std::vector<std::vector<int>>& calls,
                       const std::string& what) {
  for (const KernelTable* kernels : fast_tables()) {
    World expected(shape, 5), got(shape, 5);
    for (std::size_t c = 0; c < calls.size(); ++c) {
      expected.append(kReference, expected.random_call(calls[c]));
      got.append(*kernels, got.random_call(calls[c]));
      ASSERT_EQ(got.page_bytes, expected.page_bytes) << kernels->name << ", " << what << ", call " << c;
      ASSERT_EQ(got.fringe_halves, expected.fringe_halves) << kernels->name << ", " << what << ", call " << c;
    }
  }
}

TEST(Encode, WritesTheReferencesBytesAtEveryHeadDim) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16) {
    Shape shape;
    shape.format = {d, 2 + d / 16 % 3, 2 + d / 48 % 3};
    shape.max_pages = 3;
    expect_same_bytes(shape, {{70, 33}, {1, 1}, {3, 40}}, "head_dim " + std::to_string(d));
  }
}

TEST(Encode, WritesTheReferencesBytesAtEveryPairOfWidths) {
  for (int k = 2; k <= 4; ++k)
    for (int v = 2; v <= 4; ++v)
      for (const int d : {64, 80, 96, 128}) {
        Shape shape;
        shape.format = {d, k, v};
        shape.fringe_first = 4;
        shape.fringe_recent = 28;
        expect_same_bytes(shape, {{130, 5}, {1, 1}, {0, 60}, {17, 1}},
                          std::to_string(d) + "/" + std::to_string(k) + "/" + std::to_string(v));
      }
}

TEST(Encode, WritesTheReferencesBytesWithAMetric) {
  for (int d = kMinPageHeadDim; d <= 256; d += 16)
    for (int bits = 2; bits <= 4; ++bits) {
      Shape shape;
      shape.format = {d, bits, 4};
      shape.max_pages = 3;
      shape.metric = true;
      expect_same_bytes(shape, {{70, 33}, {1, 1}, {3, 40}},
                        "head_dim " + std::to_string(d) + ", " + std::to_string(bits) + " bits");
    }
}

// e^T M e of rotated errors, for the metric of `measure`, of all keys but those that open a page: these come
// without the metric, so that it moves no centre for a pivot (pivot_test.cc).
double cost_of_errors(World& world, const World& measure, int tokens) {
  World::Call call;
  const auto metric = world.key_metric;
  for (int page = 0; page < tokens / kPageTokens; ++page)
    for (const int count : {kCentreTokens, kPageTokens - kCentreTokens}) {
      world.key_metric = count == kCentreTokens ? std::vector<std::int8_t>{} : metric;
      const auto part = world.random_call({count});
      world.append(kReference, part);
      call.keys.insert(call.keys.end(), part.keys.begin(), part.keys.end());
    }
  std::vector<float> keys(call.keys.size()), values(call.keys.size()), scratch(World::n(world.d()));
  DecodeArgs a{world.pages(), world.basis(), {},          world.sequences(nullptr),
               DType::kF32,   tokens,        keys.data(), values.data()};
  kReference.decode(a, default_executor());
  double cost = 0;
  for (int t = 0; t < tokens; ++t) {
    if (t % kPageTokens < kCentreTokens) continue;
    std::vector<float> e(World::n(world.d()));
    for (int i = 0; i < world.d(); ++i) {
      const auto at = World::n(t * world.d() + i);
      e[World::n(i)] = (keys[at] - call.keys[at]) * world.key_signs[World::n(i)];
    }
    core::hadamard_forward(e.data(), world.plan.base, world.d() / world.plan.base, nullptr, scratch.data());
    for (int i = 0; i < world.d(); ++i)
      for (int j = 0; j < world.d(); ++j)
        cost += static_cast<double>(e[World::n(i)]) * e[World::n(j)] *
                measure.key_metric[World::n(i * world.d() + j)];
  }
  return cost;
}

// Of the metric's trace a direction has the share |f|^2 / (127 d), about a seventh. With it gone, and nothing
// else worse by more than flips of coordinates next to a threshold cost, a tenth is left to gain at least.
TEST(Encode, AMetricLowersWhatErrorsCost) {
  for (int bits = 2; bits <= 4; ++bits) {
    Shape shape;
    shape.format = {64, bits, 4};
    shape.kv_heads = shape.sequences = 1;
    shape.metric = true;
    World with(shape, 9), without(shape, 9);
    without.key_metric.clear();
    const double before = cost_of_errors(without, with, 256), after = cost_of_errors(with, with, 256);
    EXPECT_LT(after, 0.9 * before) << bits << " bits";
  }
}

TEST(Encode, WritesTheReferencesBytesWithLeftPadding) {
  Shape shape;
  shape.sequences = 3;
  shape.starts = {0, 5, 100};
  shape.fringe_first = 4;
  shape.fringe_recent = 8;
  expect_same_bytes(shape, {{120, 120, 120}, {1, 1, 1}, {20, 20, 20}}, "padding");
}

TEST(Encode, WritesTheReferencesBytesOneTokenACall) {
  Shape shape;
  shape.sequences = 1;
  shape.max_pages = 4;
  shape.fringe_first = 2;
  shape.fringe_recent = 7;
  expect_same_bytes(shape, std::vector<std::vector<int>>(200, {1}), "append");
}

// A cache that is filled by decoding alone: its first page has no centre, its second the mean of the first's
// keys.
TEST(Encode, KeysThatComeOneByOneFromTheFirstOnHaveACentreFromTheSecondPageOn) {
  Shape shape;
  shape.sequences = 1;
  World world(shape, 5);
  for (int t = 0; t < 3 * kPageTokens; ++t) world.append(kReference, world.random_call({1}));
  for (int page = 0; page < 3; ++page)
    for (int head = 0; head < shape.kv_heads; ++head) {
      const std::uint8_t* bytes = page_of(world.pages(), world.sequences(nullptr), 0, page, head);
      const float step = core::half_to_float(half_at(bytes + shape.format.centre_step_offset(), 0));
      EXPECT_EQ(step > 0.0f, page > 0) << "page " << page << ", head " << head;
    }
}

// What a token's value costs, at every width: less than the same codes without the search for a scale, more
// than any code of that rate (4^-bits, Shannon). Norm-corrected codes at cosine c are off by 2 - 2 c, those
// of values of 3 and 2 bits, as long along the vector as the vector is, by 1 / c^2 - 1.
TEST(Encode, ReachesTheCodebooksDistortion) {
  const double corrected[] = {0, 0, 0.11885, 0.033819,
                              0.0091745};  // of a unit vector, d = 128 (docs/algorithm.md)
  for (int bits = 2; bits <= 4; ++bits) {
    Shape shape;
    shape.format = {128, bits, bits};
    shape.sequences = 1;
    shape.kv_heads = 1;
    shape.max_pages = 16;
    World world(shape, 9);
    auto call = world.random_call({1024});
    world.append(kReference, call);
    std::vector<float> keys(call.keys.size()), values(call.values.size());
    DecodeArgs a{world.pages(), world.basis(), {},          world.sequences(nullptr),
                 DType::kF32,   1024,          keys.data(), values.data()};
    kReference.decode(a, default_executor());
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      error += std::pow(static_cast<double>(values[i] - call.values[i]), 2);
      norm += std::pow(static_cast<double>(call.values[i]), 2);
    }
    const double cosine = 1 - corrected[bits] / 2;
    EXPECT_LT(error / norm, bits == 4 ? corrected[bits] : 1 / (cosine * cosine) - 1) << bits << " bits";
    EXPECT_GT(error / norm, std::pow(4.0, -bits)) << bits << " bits";
  }
}

class Odd : public testing::TestWithParam<const KernelTable*> {};

TEST_P(Odd, NanAndInfinityStayInTheirToken) {
  Shape shape;
  shape.sequences = 1;
  shape.fringe_first = 2;
  shape.fringe_recent = 4;
  World clean(shape, 3), dirty(shape, 3);
  auto call = clean.random_call({64});
  const auto same = dirty.random_call({64});
  // Token 10 is left out of the clean world's centre too: both hold NaN there, in different coordinates.
  const std::size_t row = World::n(shape.kv_heads * 64);
  auto spoiled = same;
  for (std::size_t e = 0; e < row; ++e) {
    call.keys[10 * row + e] = call.values[10 * row + e] = NAN;
    spoiled.keys[10 * row + e] = e % 7 == 0 ? INFINITY : 1e30f;
    spoiled.values[10 * row + e] = e % 9 == 0 ? -INFINITY : 2.0f;
  }
  clean.append(*GetParam(), call);
  dirty.append(*GetParam(), spoiled);
  EXPECT_EQ(clean.page_bytes, dirty.page_bytes);
  const std::uint8_t* page = page_of(dirty.pages(), dirty.sequences(nullptr), 0, 0, 0);
  EXPECT_EQ(half_at(page + shape.format.k_scales_offset(), core::scale_index(10)), kNanScale);
  EXPECT_NE(half_at(page + shape.format.k_scales_offset(), core::scale_index(11)), kNanScale);
}

TEST_P(Odd, ZerosDecodeToZerosAndHugeNormsClamp) {
  Shape shape;
  shape.sequences = 1;
  shape.kv_heads = 1;
  World world(shape, 3);
  auto call = world.random_call({3});
  for (int e = 0; e < 64; ++e) {
    call.keys[World::n(e)] = call.values[World::n(e)] = 0.0f;
    call.keys[World::n(64 + e)] = call.values[World::n(64 + e)] = e % 2 != 0 ? 1e-42f : -1e-42f;  // denormal
    call.keys[World::n(128 + e)] = call.values[World::n(128 + e)] = 1e9f;
  }
  world.append(*GetParam(), call);
  std::vector<float> keys(call.keys.size(), NAN), values(keys);
  DecodeArgs a{world.pages(), world.basis(), {}, world.sequences(nullptr), DType::kF32, 3,
               keys.data(),   values.data()};
  GetParam()->decode(a, default_executor());
  for (int e = 0; e < 128; ++e) EXPECT_EQ(values[World::n(e)], 0.0f) << e;
  const std::uint8_t* page = page_of(world.pages(), world.sequences(nullptr), 0, 0, 0);
  EXPECT_EQ(half_at(page + shape.format.v_scales_offset(), core::scale_index(2)), 0x7bff);
  for (const float x : values) EXPECT_TRUE(std::isfinite(x));
  for (const float x : keys) EXPECT_TRUE(std::isfinite(x));
}

INSTANTIATE_TEST_SUITE_P(Kernels, Odd, testing::ValuesIn(all().begin(), all().end()),
                         [](const auto& table) { return std::string(table.param->name); });

}  // namespace
}  // namespace turboquant::kernels
