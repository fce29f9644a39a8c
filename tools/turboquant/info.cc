// SPDX-License-Identifier: Apache-2.0
// turboquant info: what this machine and this build have.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "turboquant/device.h"
#include "turboquant/version.h"

namespace turboquant::command {
namespace {

// Those that a kernel table asks for, in the order in which they came.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  // The builtin takes literals only.
#define TQ_LOOK_FOR(name) \
  if (__builtin_cpu_supports(name)) found.emplace_back(name)
  TQ_LOOK_FOR("sse4.2");
  TQ_LOOK_FOR("avx");
  TQ_LOOK_FOR("fma");
  TQ_LOOK_FOR("avx2");
  TQ_LOOK_FOR("avx512f");
  TQ_LOOK_FOR("avx512bw");
  TQ_LOOK_FOR("avx512vl");
  TQ_LOOK_FOR("avx512vbmi");
  TQ_LOOK_FOR("avx512vnni");
#undef TQ_LOOK_FOR
#elif defined(__aarch64__)
  found.emplace_back("neon");
#endif
  return found;
}

void print(bool as_json) {
  const std::vector<std::string> sets = instruction_sets();
  const int threads = default_executor().threads();
  if (as_json) {
    const nlohmann::ordered_json out = {
        {"version", version()}, {"threads", threads}, {"instruction_sets", sets}};
    std::cout << out.dump(2) << "\n";
    return;
  }
  std::string joined;
  for (const std::string& set : sets) joined += (joined.empty() ? "" : " ") + set;
  std::cout << "turboquant        " << version() << "\n"
            << "threads           " << threads << "\n"
            << "instruction sets  " << (joined.empty() ? "none that a kernel asks for" : joined) << "\n";
}

}  // namespace

void add_info(CLI::App& app, int&) {
  CLI::App* info =
      app.add_subcommand("info", "version, kernels, instruction sets and threads of this machine");
  auto as_json = std::make_shared<bool>(false);
  info->add_flag("--json", *as_json, "print JSON");
  info->callback([as_json] { print(*as_json); });
}

}  // namespace turboquant::command
