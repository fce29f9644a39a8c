// SPDX-License-Identifier: Apache-2.0
// Rule 2a: pages whose centre is moved for one of their keys. Which key that is, and what becomes of odd
// ones.
#include "expect_bytes.h"

namespace turboquant::gpu {
namespace {

// What keys of a sequence's beginning are, by head.
enum class Odd { kNone, kNan, kFar, kZero, kSmall, kLarge, kAllNan, kAllZero, kSame, kMixed, kCount };

// Of a call that begins its sequences.
void spoil(const Shape& shape, World::Call& call) {
  const std::size_t d = World::n(shape.format.head_dim), heads = World::n(shape.kv_heads);
  for (std::size_t i = 0; i < World::n(shape.sequences); ++i) {
    const auto start = static_cast<std::size_t>(shape.starts.empty() ? 0 : shape.starts[i]);
    const auto first = static_cast<std::size_t>(call.token_starts[i]) + start,
               end = static_cast<std::size_t>(call.token_starts[i + 1]);
    for (std::size_t row = first; row < end && row < first + 90; ++row)
      for (std::size_t h = 0; h < heads; ++h) {
        float* key = call.keys.data() + (row * heads + h) * d;
        const std::size_t at = row - first;
        const auto what = static_cast<Odd>((h + i) % static_cast<std::size_t>(Odd::kCount));
        const float* one = call.keys.data() + (first * heads + h) * d;
        for (std::size_t e = 0; e < d; ++e) {
          if (what == Odd::kNan && at < 20) key[e] = at % 3 != 0 ? NAN : e == 3 ? INFINITY : key[e];
          if (what == Odd::kFar && at < 5 + i) key[e] *= -8.0f;
          if (what == Odd::kZero && at < 2) key[e] = 0.0f;
          if (what == Odd::kSmall) key[e] *= 1e-5f;
          if (what == Odd::kLarge) key[e] *= at < 3 ? 4000.0f : 100.0f;
          if (what == Odd::kAllNan) key[e] = NAN;
          if (what == Odd::kAllZero) key[e] = -0.0f;
          if (what == Odd::kSame) key[e] = one[e];
          if (what == Odd::kMixed) key[e] *= at % 3 == 0 ? 1e-5f : at % 3 == 1 ? 1.0f : 300.0f;
        }
      }
  }
}

// One call that is spoilt, then others. Without shape.metric, with one whose entries are all as large: gains
// of many coordinates are equal. `flat` 0: with zeros, of which no key is longer than another.
void expect_same(const Shape& shape, DType dtype, const std::vector<std::vector<int>>& calls,
                 const std::string& what, int flat = 7,
                 const kernels::KernelTable& reference = kernels::kReference) {
  World world(shape, 11);
  for (int h = 0; !shape.metric && h < shape.kv_heads; ++h)
    world.add_metric(std::vector<int>(World::n(shape.format.head_dim), flat));
  if (flat == 0) std::fill(world.key_metric.begin(), world.key_metric.end(), std::int8_t{0});
  DeviceWorld device(world);
  for (std::size_t c = 0; c < calls.size(); ++c) {
    World::Call call = world.random_call(calls[c]);
    if (c == 0) spoil(shape, call);
    round_to(dtype, call);
    world.append(reference, call);
    const Status status = device.append(world, call, dtype);
    ASSERT_TRUE(status.ok()) << status.error().message << ", " << what;
    if (!expect_same_bytes(world, device, what + ", call " + std::to_string(c))) return;
  }
}

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

TEST(EncodePivot, WritesTheReferencesBytesAtEveryHeadDim) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16) {
    Shape shape;
    shape.format = {d, 2 + d / 16 % 3, 4};
    shape.max_pages = 3;
    shape.kv_heads = 9;
    shape.metric = true;
    expect_same(shape, kDTypes[d / 16 % 3], {{70, 3}, {1, 1}, {3, 40}}, name_of(shape.format));
  }
}

TEST(EncodePivot, TakesTheFirstOfEqualMoves) {
  for (const int d : {32, 64, 80, 128, 256, 512})
    for (int bits = 2; bits <= 4; ++bits) {
      Shape shape;
      shape.format = {d, bits, 3};
      shape.kv_heads = 9;
      expect_same(shape, DType::kF32, {{70, 31}, {3, 40}}, name_of(shape.format));
    }
}

TEST(EncodePivot, TakesTheFirstKeyWhereNoneIsLonger) {
  for (const int d : {48, 128})
    for (const int heads : {2, 30}) {  // 30: a prefill's kernel, at head_dim 128
      Shape shape;
      shape.format = {d, 4, 4};
      shape.kv_heads = heads;
      expect_same(shape, DType::kF16, {{200, 31}, {3, 140}}, name_of(shape.format), 0);
    }
}

TEST(EncodePivot, ServesLeftPadding) {
  Shape shape;
  shape.format = {80, 4, 4};
  shape.kv_heads = 9;
  shape.sequences = 4;
  shape.starts = {62, 5, 100, 0};
  shape.metric = true;
  expect_same(shape, DType::kBF16, {{120, 30, 200, 1}, {1, 70, 1, 5}, {20, 20, 2, 9}}, "padding");
}

// As many tokens as sequences, though not one of each.
TEST(EncodePivot, ServesShortCallsOfSeveralTokens) {
  for (const int d : {32, 64, 128, 192, 512}) {
    Shape shape;
    shape.format = {d, 4, 4};
    shape.kv_heads = 9;
    shape.sequences = 12;
    shape.max_pages = 2;
    shape.metric = true;
    expect_same(shape, DType::kF16,
                {{2, 0, 5, 1, 0, 0, 2, 0, 0, 1, 1, 0}, {0, 2, 1, 1, 3, 0, 1, 1, 1, 1, 1, 0}},
                name_of(shape.format));
  }
}

// A kernel of its own: head_dim 128, 16-bit rows, as many pages as an H100 has SMs.
TEST(EncodePivot, WritesTheReferencesBytesOfPrefills) {
  for (const bool tied : {false, true})
    for (int bits = 2; bits <= 4; ++bits) {
      Shape shape;
      shape.format = {128, bits, 4};
      shape.kv_heads = 9;
      shape.sequences = 4;
      shape.max_pages = 24;
      shape.fringe_first = 4;
      shape.fringe_recent = 28;
      shape.metric = !tied;
      const DType dtype = bits == 3 ? DType::kF16 : DType::kBF16;
      // Pages that are whole, that the call leaves part full, and that another follows.
      expect_same(shape, dtype, {{700, 40, 64 + 7, 64 * 2}, {1, 300, 200, 700}, {1, 1, 1, 1}},
                  name_of(shape.format));
      shape.starts = {62, 5, 100, 31};
      expect_same(shape, dtype, {{700, 400, 64 + 60, 31 + 33 + 9}, {300, 200, 1, 700}},
                  "padding, " + name_of(shape.format));
    }
}

TEST(EncodePivot, WritesTheReferencesBytesOfPrefillsOfManyShortSequences) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.kv_heads = 9;
  shape.sequences = 40;
  shape.max_pages = 3;
  shape.metric = true;
  std::vector<int> counts, more;
  for (int i = 0; i < shape.sequences; ++i) {
    counts.push_back(i % 7 == 6 ? 0 : 10 + i * 29 % 130);
    more.push_back(i % 5);
  }
  expect_same(shape, DType::kBF16, {counts, more}, "short sequences");
}

// The reference's bytes by a faster table: 72,000 keys, then 167,610.
void expect_same_of_many(const Shape& shape, const std::vector<int>& counts, const std::string& what) {
  expect_same(shape, DType::kBF16, {counts}, what, 7, *kernels::fast_tables().back());
}

// 1,125 pages: each team of an H100's 132 blocks has two or three of its own, one after another.
TEST(EncodePivot, MovesTheCentresOfPagesThatATeamMeetsInARow) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.kv_heads = 9;
  shape.group = 1;
  shape.sequences = 1;
  shape.max_pages = 125;
  shape.metric = true;
  expect_same_of_many(shape, {8000}, "pages in a row");
}

// A block's list has 64 (slot, head): for 30 heads of these 343 slots each of an H100's blocks makes a second
// one.
TEST(EncodePivot, GoesOnWithABlocksNextList) {
  Shape shape;
  shape.format = {128, 4, 4};
  shape.kv_heads = 30;
  shape.group = 1;
  shape.sequences = 130;
  shape.max_pages = 1;
  shape.metric = true;
  std::vector<int> counts;
  for (int i = 0; i < shape.sequences; ++i) counts.push_back(40 + 3 * (i % 3));
  expect_same_of_many(shape, counts, "a second list");
}

}  // namespace
}  // namespace turboquant::gpu
