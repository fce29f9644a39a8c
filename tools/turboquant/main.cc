// SPDX-License-Identifier: Apache-2.0
// The `turboquant` command. Bad input is answered on stderr with the value and the remedy, exit status 2.
#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <vector>

#include "commands.h"
#include "turboquant/version.h"

int main(int argc, char** argv) {
  CLI::App app{"TurboQuant: a 2 to 4 bit KV cache"};
  app.set_version_flag("--version", std::string("turboquant ") + turboquant::version());
  app.require_subcommand(1);

  int status = 0;
  turboquant::command::add_bench(app, status);
  turboquant::command::add_codebook(app, status);
  turboquant::command::add_info(app, status);

  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& error) {
    // CLI11 asks for a subcommand without naming the word that is none.
    const std::vector<std::string> unknown = app.remaining();
    if (!unknown.empty()) std::cerr << "turboquant: '" << unknown[0] << "' is not a subcommand or option\n";
    app.exit(error);
    return 2;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return status;
}
