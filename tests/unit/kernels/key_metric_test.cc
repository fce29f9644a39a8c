// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "kernels/reference/reference.h"
#include "unit/kernels/metric_case.h"

namespace turboquant::kernels {
namespace {

TEST(KeyMetric, GivesTheReferencesBytesAtEveryHeadDimAndDType) {
  for (int d = kMinPageHeadDim; d <= kMaxPageHeadDim; d += 16)
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      // More than a block at some.
      MetricCase c({.head_dim = d,
                    .dtype = dtype,
                    .step = 1 + d / 16 % 3,
                    .tokens = d % 64 == 0 && d < 200 ? 150 : 20});
      KeyMetricArgs a = c.args(), b = c.args();
      std::vector<std::int32_t> moments[2] = {c.zeros<std::int32_t>(), c.zeros<std::int32_t>()};
      moments[0][0] = moments[1][1] = 99;  // nothing that counts
      std::vector<std::int8_t> metrics[2] = {c.zeros<std::int8_t>(), c.zeros<std::int8_t>()};
      a.moment = moments[0].data();
      a.metric = metrics[0].data();
      b.moment = moments[1].data();
      b.metric = metrics[1].data();
      for (int call = 0; call < 2; ++call) {  // the second adds to the first
        a.begins = b.begins = call == 0;
        ASSERT_TRUE(key_metric(a).ok());
        reference::key_metric(b);
      }
      ASSERT_EQ(moments[0], moments[1]) << "head_dim " << d;
      ASSERT_EQ(metrics[0], metrics[1]) << "head_dim " << d;
    }
}

TEST(KeyMetric, HoldsAsManyQueriesAsItSays) {
  // One query along an axis, again and again: a sum of 127^2 each, the greatest that there is.
  MetricCase c({.head_dim = 32, .kv_heads = 1, .group = 1, .sequences = 1, .tokens = 1});
  c.set_axis(7);
  KeyMetricArgs a = c.args();
  auto moment = c.zeros<std::int32_t>();
  auto metric = c.zeros<std::int8_t>();
  a.moment = moment.data();
  a.metric = metric.data();
  a.query.token_stride = 0;
  a.tokens = kMostMetricQueries;
  ASSERT_TRUE(key_metric(a).ok());
  EXPECT_EQ(moment[7 * 32 + 7], kMostMetricQueries * 127 * 127);
  EXPECT_EQ(metric[7 * 32 + 7], 127);
  a.tokens += 1;
  EXPECT_FALSE(key_metric(a).ok());
}

}  // namespace
}  // namespace turboquant::kernels
