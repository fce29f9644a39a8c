// SPDX-License-Identifier: Apache-2.0
#include "turboquant/version.h"

#include <gtest/gtest.h>

#include <cstdio>

TEST(Version, IsThreeNumbers) {
  int major = -1, minor = -1, patch = -1, end = 0;
  EXPECT_EQ(std::sscanf(turboquant::version(), "%d.%d.%d%n", &major, &minor, &patch, &end), 3);
  EXPECT_EQ(turboquant::version()[end], '\0') << turboquant::version();
}
