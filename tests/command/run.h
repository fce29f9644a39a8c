// SPDX-License-Identifier: Apache-2.0
// Runs the `turboquant` command the way a shell does.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace turboquant::testing {

struct Said {
  int status = -1;
  std::string out, err;
};

// `arguments` and `environment` ("TQ_THREADS=3") go through the shell as they are.
inline Said say(const std::string& arguments, const std::string& environment = "") {
  std::string err_file = (std::filesystem::temp_directory_path() / "turboquant-stderr-XXXXXX").string();
  const int handle = mkstemp(err_file.data());
  if (handle < 0) return {};
  Said said;
  const std::string line = environment + " '" TQ_COMMAND "' " + arguments + " 2>&" + std::to_string(handle);
  if (FILE* pipe = popen(line.c_str(), "r")) {
    std::array<char, 4096> chunk;
    while (const std::size_t n = std::fread(chunk.data(), 1, chunk.size(), pipe))
      said.out.append(chunk.data(), n);
    const int status = pclose(pipe);
    if (WIFEXITED(status)) said.status = WEXITSTATUS(status);
  }
  std::stringstream err;
  err << std::ifstream(err_file).rdbuf();
  said.err = err.str();
  close(handle);
  std::filesystem::remove(err_file);
  return said;
}

}  // namespace turboquant::testing
