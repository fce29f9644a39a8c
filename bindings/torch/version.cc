// SPDX-License-Identifier: Apache-2.0
// torch.ops.turboquant.version(): the version of the library inside this file.
#include "turboquant/version.h"

#include <torch/csrc/stable/library.h>

#include <string>

namespace {

std::string library_version() {
  return turboquant::version();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(turboquant, m) {
  m.def("version() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(turboquant, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&library_version));
}
