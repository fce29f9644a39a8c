// SPDX-License-Identifier: Apache-2.0
#include "turboquant/version.h"

#include <gtest/gtest.h>

#include <regex>

TEST(Version, IsThreeNumbers) {
  EXPECT_TRUE(std::regex_match(turboquant::version(), std::regex(R"(\d+\.\d+\.\d+)")))
      << turboquant::version();
}
