// SPDX-License-Identifier: Apache-2.0
// turboquant info: what this machine and this build have.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "kernels/cuda_table.h"
#include "kernels/kernels.h"
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

void print_json() {
  nlohmann::ordered_json tables = nlohmann::ordered_json::array();
  for (const kernels::KernelTable* table : kernels::all())
    tables.push_back(
        {{"name", table->name}, {"runs_here", table->runs_here()}, {"used", table == kernels::active()}});
  const nlohmann::ordered_json out = {{"version", version()},
                                      {"threads", default_executor().threads()},
                                      {"instruction_sets", instruction_sets()},
                                      {"kernels", tables},
                                      {"cuda", kernels::cuda_table() != nullptr}};
  std::cout << out.dump(2) << "\n";
}

void print_text() {
  std::string sets;
  for (const std::string& set : instruction_sets()) sets += (sets.empty() ? "" : " ") + set;
  std::cout << "turboquant        " << version() << "\n"
            << "threads           " << default_executor().threads() << "\n"
            << "instruction sets  " << (sets.empty() ? "none that a kernel asks for" : sets) << "\n";
  const char* heading = "kernels           ";
  for (const kernels::KernelTable* table : kernels::all()) {
    std::cout << heading << table->name
              << (table == kernels::active() ? ", used"
                  : table->runs_here()       ? ", runs here (TQ_KERNELS=" + std::string(table->name) + ")"
                                             : ", does not run here")
              << "\n";
    heading = "                  ";
  }
  std::cout << "cuda              " << (kernels::cuda_table() != nullptr ? "built in" : "not in this build")
            << "\n";
}

// A forced table that is not there is an error here as everywhere.
Status run(bool as_json) {
  if (Status status = supports("attend", {64, 4, 4}, DeviceType::kCpu); !status.ok()) return status;
  as_json ? print_json() : print_text();
  return {};
}

}  // namespace

void add_info(CLI::App& app, int& status) {
  CLI::App* info =
      app.add_subcommand("info", "version, kernels, instruction sets and threads of this machine");
  auto as_json = std::make_shared<bool>(false);
  info->add_flag("--json", *as_json, "print JSON");
  info->callback([as_json, &status] {
    const Status done = run(*as_json);
    if (!done.ok()) status = fail(done.error());
  });
}

}  // namespace turboquant::command
