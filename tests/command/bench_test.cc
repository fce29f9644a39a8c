// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "run.h"

namespace turboquant::testing {
namespace {

using nlohmann::json;

TEST(BenchCommand, ReportsReadEncodeAndAttend) {
  const Said said =
      say("bench --head-dim 32 --k-bits 3 --v-bits 2 --tokens 70 --heads 1 --group 2 --seconds 0.01 --json");
  ASSERT_EQ(said.status, 0) << said.err;
  const json found = json::parse(said.out);
  EXPECT_EQ(found["k_bits"], 3);
  EXPECT_EQ(found["v_bits"], 2);
  EXPECT_EQ(found["q_heads"], 2);
  ASSERT_EQ(found["results"].size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    const json& row = found["results"][i];
    EXPECT_EQ(row["name"], (std::array{"read memory", "encode", "attend"}[i]));
    EXPECT_GT(row["seconds"], 0.0);
    EXPECT_GT(row["bytes"], 0.0);
  }
}

TEST(BenchCommand, ChecksAttendBeforeItIsTimed) {
  // Random vectors of 70 tokens: a wrong sum would differ by some tenths. Each kernel's own bound is held in
  // tests/unit.
  const json found = json::parse(say("bench --tokens 70 --heads 1 --seconds 0.01 --json").out);
  EXPECT_LT(found["attend_error"], 0.02);
}

TEST(BenchCommand, NamesABadValueAndTheRemedy) {
  const struct {
    const char *arguments, *value, *remedy;
  } cases[] = {
      {"--head-dim 100", "head_dim=100", "96"}, {"--bits 5", "bits=5", "use"},
      {"--tokens 0", "tokens=0", "use 1 to"},   {"--heads -1", "heads=-1", "use 1 to"},
      {"--group 0", "group=0", "use 1 to"},     {"--seconds 0", "seconds=0", "more than 0"},
      {"--seconds nan", "seconds=nan", "60"},   {"--tokens many", "many", "--help"},
  };
  for (const auto& bad : cases) {
    const Said said = say(std::string("bench ") + bad.arguments);
    EXPECT_EQ(said.status, 2) << bad.arguments;
    EXPECT_EQ(said.out, "") << bad.arguments;
    EXPECT_NE(said.err.find(bad.value), std::string::npos) << bad.arguments << ": " << said.err;
    EXPECT_NE(said.err.find(bad.remedy), std::string::npos) << bad.arguments << ": " << said.err;
  }
}

}  // namespace
}  // namespace turboquant::testing
