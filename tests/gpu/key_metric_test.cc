// SPDX-License-Identifier: Apache-2.0
// key_metric decides codes: the bytes of the reference.
#include "expect_bytes.h"
#include "kernels/reference/reference.h"
#include "unit/kernels/metric_case.h"

namespace turboquant::gpu {
namespace {

using kernels::MetricCase;
using kernels::MetricShape;

// Entries on and above each diagonal; the others are not defined.
std::vector<std::int32_t> upper(std::vector<std::int32_t> moment, int d) {
  for (std::size_t i = 0; i < moment.size(); ++i)
    if (i / World::n(d) % World::n(d) > i % World::n(d)) moment[i] = 0;
  return moment;
}

void expect_same(const MetricShape& shape, std::size_t offset_bytes = 0) {
  const MetricCase c(shape);
  KeyMetricArgs on_host = c.args();
  auto moment = c.zeros<std::int32_t>();
  auto metric = c.zeros<std::int8_t>();
  on_host.moment = moment.data();
  on_host.metric = metric.data();

  std::vector<std::uint8_t> bytes(offset_bytes);
  bytes.insert(bytes.end(), c.query.begin(), c.query.end());
  const DeviceArray<std::uint8_t> query(bytes);
  const DeviceArray<std::int32_t> starts(c.starts);
  const DeviceArray<float> signs(c.signs),
      base_matrix(c.plan.base > 1 ? c.plan.base_matrix : std::vector<float>());
  DeviceArray<std::int32_t> got_moment(moment);
  DeviceArray<std::int8_t> got_metric(metric.size());
  DeviceStream stream;
  KeyMetricArgs a = on_host;
  a.query.data = query.data() + offset_bytes;
  a.starts = on_host.starts == nullptr ? nullptr : starts.data();
  a.query_signs = signs;
  a.base_matrix = base_matrix;
  a.moment = got_moment.data();
  a.metric = got_metric.data();
  got_moment.fill_bytes(0x11);            // nothing that counts
  for (int call = 0; call < 2; ++call) {  // the second adds to the first
    on_host.begins = a.begins = call == 0;
    kernels::reference::key_metric(on_host);
    const Status status =
        key_metric(a, {.device = {DeviceType::kCuda, 0}, .stream = {stream}, .executor = nullptr});
    ASSERT_TRUE(status.ok()) << status.error().message;
  }
  const std::string what = "head_dim " + std::to_string(shape.head_dim) + ", " +
                           turboquant::name_of(shape.dtype) + ", " + std::to_string(shape.tokens) +
                           " tokens, step " + std::to_string(shape.step);
  const auto sums = upper(got_moment.download(), shape.head_dim), expected = upper(moment, shape.head_dim);
  const auto [count, first] = differences(sums, expected);
  ASSERT_EQ(count, 0u) << what << ": sum " << first << ": " << sums[first] << " instead of "
                       << expected[first];
  const auto got = got_metric.download();
  const auto [entries, entry] = differences(got, metric);
  ASSERT_EQ(entries, 0u) << what << ": entry " << entry << ": " << int{got[entry]} << " instead of "
                         << int{metric[entry]};
}

TEST(KeyMetric, GivesTheReferencesBytesAtEveryHeadDimAndDType) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16)
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      expect_same({.head_dim = d, .dtype = dtype, .step = 1 + d / 16 % 3});
      expect_same({.head_dim = d, .dtype = dtype, .kv_heads = 1, .group = 1, .sequences = 1, .tokens = 1});
    }
}

TEST(KeyMetric, GivesTheReferencesBytesOfManyQueries) {
  for (const int d : {64, 128, 256})
    for (const int tokens : {85, 86, 500})
      expect_same({.head_dim = d, .dtype = DType::kBF16, .tokens = tokens});
  for (const int heads : {1, 40, 200})
    expect_same({.head_dim = 128, .dtype = DType::kBF16, .kv_heads = heads, .group = 2, .tokens = 20});
}

TEST(KeyMetric, ReadsQueriesThatBeginAnywhere) {
  for (const int d : {48, 64, 128, 256})
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const std::size_t offset : {std::size_t{0}, size_of(dtype)})
        expect_same({.head_dim = d, .dtype = dtype}, offset);
}

}  // namespace
}  // namespace turboquant::gpu
