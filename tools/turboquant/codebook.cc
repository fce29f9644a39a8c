// SPDX-License-Identifier: Apache-2.0
// turboquant codebook: the Lloyd-Max codebook of one coordinate of a random unit vector.
#include "turboquant/codebook.h"

#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "commands.h"

namespace turboquant::command {
namespace {

struct Options {
  int dim = 0;
  int bits = 0;
  bool json = false;
};

// One line a cell: its code, where it begins and ends, what it decodes to.
void print_table(const Codebook& book) {
  std::printf("Lloyd-Max codebook, dim %d, %d bits, mse %.12g a unit vector\n", book.head_dim, book.bits,
              book.mse);
  std::printf("%5s  %22s  %22s  %22s\n", "code", "from", "centroid", "to");
  const std::size_t cells = book.centroids.size();
  for (std::size_t i = 0; i < cells; ++i) {
    const double from = i == 0 ? -1.0 : book.boundaries[i - 1];
    const double to = i + 1 == cells ? 1.0 : book.boundaries[i];
    std::printf("%5zu  %22.15g  %22.15g  %22.15g\n", i, from, book.centroids[i], to);
  }
}

int run(const Options& options) {
  const Result<Codebook> book = lloyd_max(options.dim, options.bits);
  if (!book.ok()) return fail(book.error());
  if (options.json) {
    const nlohmann::ordered_json out = {{"dim", book.value().head_dim},
                                        {"bits", book.value().bits},
                                        {"centroids", book.value().centroids},
                                        {"boundaries", book.value().boundaries},
                                        {"mse", book.value().mse}};
    std::cout << out.dump(2) << "\n";  // shortest digits that read back as the same double
  } else {
    print_table(book.value());
  }
  return 0;
}

}  // namespace

void add_codebook(CLI::App& app, int& status) {
  CLI::App* codebook =
      app.add_subcommand("codebook", "the Lloyd-Max codebook of a random unit vector's coordinate");
  auto options = std::make_shared<Options>();
  codebook->add_option("--dim", options->dim, "dimension of the vectors, 2 to 1024")->required();
  codebook->add_option("--bits", options->bits, "bits a coordinate, 1 to 8")->required();
  codebook->add_flag("--json", options->json, "print JSON: centroids, boundaries, mse");
  codebook->callback([options, &status] { status = run(*options); });
}

}  // namespace turboquant::command
