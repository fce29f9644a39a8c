// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "run.h"

namespace turboquant::testing {
namespace {

using nlohmann::json;

TEST(Command, SaysItsVersion) {
  const Said said = say("--version");
  EXPECT_EQ(said.status, 0);
  EXPECT_EQ(said.out, "turboquant " TQ_VERSION "\n");
}

TEST(Command, RefusesAWordItDoesNotKnow) {
  for (const char* arguments : {"", "encrypt", "--colour"}) {
    const Said said = say(arguments);
    EXPECT_EQ(said.status, 2) << arguments;
    EXPECT_EQ(said.out, "") << arguments;
    EXPECT_NE(said.err.find(*arguments == 0 ? "subcommand is required" : arguments), std::string::npos)
        << said.err;
  }
}

TEST(Command, HelpNamesEverySubcommand) {
  const Said said = say("--help");
  EXPECT_EQ(said.status, 0);
  for (const char* name : {"bench", "codebook", "info"})
    EXPECT_NE(said.out.find(name), std::string::npos) << name;
}

TEST(InfoCommand, SpeaksJson) {
  const Said said = say("info --json", "TQ_THREADS=3");
  ASSERT_EQ(said.status, 0) << said.err;
  const json found = json::parse(said.out);
  EXPECT_EQ(found["version"], TQ_VERSION);
  EXPECT_EQ(found["threads"], 3);
  EXPECT_TRUE(found["instruction_sets"].is_array());
  int used = 0;
  for (const json& table : found["kernels"])
    used += table["used"].get<bool>() && table["runs_here"].get<bool>();
  EXPECT_EQ(used, 1) << said.out;
  EXPECT_TRUE(found["cuda"].is_boolean());
}

TEST(InfoCommand, UsesTheForcedKernels) {
  const json found = json::parse(say("info --json", "TQ_KERNELS=reference").out);
  for (const json& table : found["kernels"]) EXPECT_EQ(table["used"], table["name"] == "reference");
}

TEST(InfoCommand, RefusesKernelsThatAreNotThere) {
  const Said said = say("info", "TQ_KERNELS=abacus");
  EXPECT_EQ(said.status, 2);
  EXPECT_EQ(said.out, "");
  EXPECT_NE(said.err.find("TQ_KERNELS"), std::string::npos) << said.err;
  EXPECT_NE(said.err.find("reference"), std::string::npos) << said.err;
}

TEST(InfoCommand, PrintsTheSameForAPerson) {
  const Said said = say("info");
  EXPECT_EQ(said.status, 0);
  EXPECT_NE(said.out.find(TQ_VERSION), std::string::npos) << said.out;
}

}  // namespace
}  // namespace turboquant::testing
