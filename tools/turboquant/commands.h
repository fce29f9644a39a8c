// SPDX-License-Identifier: Apache-2.0
// One function a subcommand: it adds the subcommand to the command line; when chosen, it runs during
// parsing, prints to stdout, and sets `status`, the exit status, if it fails.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdio>

#include "turboquant/status.h"

namespace turboquant::command {

void add_bench(CLI::App& app, int& status);
void add_codebook(CLI::App& app, int& status);
void add_info(CLI::App& app, int& status);

// Prints the error; the exit status for bad input.
inline int fail(const Error& error) {
  std::fprintf(stderr, "turboquant: %s\n", error.message.c_str());
  return 2;
}

}  // namespace turboquant::command
