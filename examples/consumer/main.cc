// SPDX-License-Identifier: Apache-2.0
#include <turboquant/device.h>
#include <turboquant/version.h>

#include <cstdio>

int main() {
  std::printf("turboquant %s, %d threads\n", turboquant::version(), turboquant::default_executor().threads());
}
