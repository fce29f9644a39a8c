// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/kernels.h"

namespace turboquant::kernels {
namespace {

// ctest runs this once with TQ_KERNELS unset and once with each name, a wrong one included: a wrong name is
// not a slow success.
TEST(Dispatch, UsesTheForcedTableOrNone) {
  const char* forced = std::getenv("TQ_KERNELS");
  const KernelTable* expected = nullptr;
  if (forced == nullptr) {
    for (const KernelTable* table : all())
      if (table->runs_here()) expected = table;
  } else if (const KernelTable* named = find(forced); named != nullptr && named->runs_here()) {
    expected = named;
  }
  EXPECT_EQ(active(), expected);
}

TEST(Dispatch, NamesTheTablesOfThisMachineWhenTheForcedOneIsUnknown) {
  const char* forced = std::getenv("TQ_KERNELS");
  const Status status = supports("attend", {64, 4, 4}, DeviceType::kCpu);
  const bool known = forced == nullptr || (find(forced) != nullptr && find(forced)->runs_here());
  ASSERT_EQ(status.ok(), known);
  if (!known) {
    EXPECT_NE(status.error().message.find("portable"), std::string::npos) << status.error().message;
  }
}

}  // namespace
}  // namespace turboquant::kernels
