// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace turboquant {

// Of the library that is linked, "0.1.0". Static storage.
const char* version();

}  // namespace turboquant
