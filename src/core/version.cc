// SPDX-License-Identifier: Apache-2.0
#include "turboquant/version.h"

namespace turboquant {

const char* version() {
  return TQ_VERSION;
}

}  // namespace turboquant
