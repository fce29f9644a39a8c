// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "run.h"

namespace turboquant::testing {
namespace {

using nlohmann::json;

// lloyd_max promises 1e-10 relative; the last digits differ with the C library's gamma function.
void expect_close(const json& found, const json& golden) {
  ASSERT_EQ(found.size(), golden.size());
  for (std::size_t i = 0; i < golden.size(); ++i) {
    const double wanted = golden[i].get<double>();
    EXPECT_NEAR(found[i].get<double>(), wanted, 1e-10 * std::abs(wanted)) << "element " << i;
  }
}

TEST(CodebookCommand, PrintsTheGoldenJson) {
  for (const char* name : {"codebook_128_2", "codebook_64_4"}) {
    const json golden = json::parse(std::ifstream(std::string(TQ_GOLDEN_DIR "/") + name + ".json"));
    const Said said =
        say("codebook --json --dim " + golden["dim"].dump() + " --bits " + golden["bits"].dump());
    ASSERT_EQ(said.status, 0) << said.err;
    EXPECT_EQ(said.err, "");
    const json found = json::parse(said.out);
    EXPECT_EQ(found["dim"], golden["dim"]);
    EXPECT_EQ(found["bits"], golden["bits"]);
    expect_close(found["centroids"], golden["centroids"]);
    expect_close(found["boundaries"], golden["boundaries"]);
    expect_close(json::array({found["mse"]}), json::array({golden["mse"]}));
  }
}

TEST(CodebookCommand, PrintsOneLineACode) {
  const Said said = say("codebook --dim 128 --bits 3");
  EXPECT_EQ(said.status, 0);
  EXPECT_NE(said.out.find("mse 0.0339659257939"), std::string::npos) << said.out;
  EXPECT_EQ(std::count(said.out.begin(), said.out.end(), '\n'), 2 + 8) << said.out;
}

TEST(CodebookCommand, NamesABadValueAndTheRemedy) {
  const struct {
    const char *arguments, *value, *remedy;
  } cases[] = {
      {"--dim 1 --bits 4", "=1 ", "2 to 1024"},
      {"--dim 1025 --bits 4", "=1025 ", "2 to 1024"},
      {"--dim -128 --bits 4", "=-128 ", "2 to 1024"},
      {"--dim 128 --bits 0", "bits=0 ", "1 to 8"},
      {"--dim 128 --bits 9", "bits=9 ", "1 to 8"},
      {"--dim 128 --bits four", "four", "--help"},
      {"--dim 99999999999 --bits 4", "99999999999", "--help"},
      {"--dim 128", "--bits is required", "--help"},
      {"--dim 128 --bits 4 --colour", "--colour", "--help"},
  };
  for (const auto& bad : cases) {
    const Said said = say(std::string("codebook ") + bad.arguments);
    EXPECT_EQ(said.status, 2) << bad.arguments;
    EXPECT_EQ(said.out, "") << bad.arguments;
    EXPECT_NE(said.err.find(bad.value), std::string::npos) << bad.arguments << ": " << said.err;
    EXPECT_NE(said.err.find(bad.remedy), std::string::npos) << bad.arguments << ": " << said.err;
  }
}

}  // namespace
}  // namespace turboquant::testing
