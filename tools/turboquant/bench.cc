// SPDX-License-Identifier: Apache-2.0
// turboquant bench: how fast this machine encodes and attends, beside what it can read from memory at all.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench_problem.h"
#include "commands.h"
#include "kernels/kernels.h"
#include "measure.h"
#include "turboquant/version.h"

namespace turboquant::command {
namespace {

// Larger than the last-level cache of the machines met so far, so that every read comes from memory.
constexpr std::size_t kColdBytes = std::size_t{256} << 20;

struct Options {
  BenchShape shape;
  double seconds = 1.0;
  bool json = false;
};

struct Row {
  std::string name;
  Timing time;
  double bytes;  // read from memory by one run
};

// All threads read the whole buffer once, 1 MiB a task.
Row read_memory(double seconds) {
  constexpr std::size_t kChunk = (std::size_t{1} << 20) / sizeof(std::uint64_t);
  std::vector<std::uint64_t> buffer(kColdBytes / sizeof(std::uint64_t), 1);
  std::vector<std::uint64_t> sums(buffer.size() / kChunk);
  const Timing time = measure(seconds, [&](int) {
    default_executor().for_each(
        sums.size(), [&](std::size_t i) { sums[i] += sum_of(buffer.data() + i * kChunk, kChunk); });
  });
  // The sums are used, or the compiler would read nothing.
  const bool read = std::all_of(sums.begin(), sums.end(), [](std::uint64_t sum) { return sum != 0; });
  return {"read memory", time, read ? static_cast<double>(kColdBytes) : 0.0};
}

Status in_range(const char* name, int value, int low, int high) {
  if (value >= low && value <= high) return {};
  return invalid(std::string(name) + "=" + std::to_string(value) + " is out of range; use " +
                 std::to_string(low) + " to " + std::to_string(high));
}

void print_json(const Options& options, double error, const std::vector<Row>& rows) {
  const BenchShape& s = options.shape;
  nlohmann::ordered_json out = {{"version", version()},
                                {"kernels", kernels::active()->name},
                                {"threads", default_executor().threads()},
                                {"head_dim", s.head_dim},
                                {"k_bits", s.k_bits},
                                {"v_bits", s.v_bits},
                                {"tokens", s.tokens},
                                {"kv_heads", s.kv_heads},
                                {"q_heads", s.q_heads()},
                                {"page_bytes", s.sequence_bytes()},
                                {"attend_error", error}};
  for (const Row& row : rows)
    out["results"].push_back({{"name", row.name},
                              {"seconds", row.time.median},
                              {"seconds_low", row.time.low},
                              {"seconds_high", row.time.high},
                              {"runs", row.time.runs},
                              {"bytes", row.bytes},
                              {"bytes_per_s", row.bytes / row.time.median}});
  std::cout << out.dump(2) << "\n";
}

void print_table(const Options& options, double error, const std::vector<Row>& rows) {
  const BenchShape& s = options.shape;
  std::printf("turboquant %s, kernels %s, %d threads\n", version(),
              std::string(kernels::active()->name).c_str(), default_executor().threads());
  std::printf("head_dim %d, K%d/V%d, %d tokens, %d KV heads, %d query heads; pages: %.1f KiB\n", s.head_dim,
              s.k_bits, s.v_bits, s.tokens, s.kv_heads, s.q_heads(),
              static_cast<double>(s.sequence_bytes()) / 1024);
  std::printf("attend checked: differs by %.2g of the largest value from a double-precision softmax\n\n",
              error);
  std::printf("%-12s %12s %23s %6s %10s %8s\n", "", "median", "quartiles", "runs", "GB/s", "of read");
  for (const Row& row : rows) {
    const double rate = row.bytes / row.time.median;
    std::printf("%-12s %9.3f ms %9.3f - %8.3f ms %6d %10.2f %7.0f%%\n", row.name.c_str(),
                1e3 * row.time.median, 1e3 * row.time.low, 1e3 * row.time.high, row.time.runs, rate / 1e9,
                100 * rate / (rows[0].bytes / rows[0].time.median));
  }
}

Status run(const Options& options) {
  const BenchShape& s = options.shape;
  for (const Status& status : {in_range("tokens", s.tokens, 1, 1 << 20),
                               in_range("heads", s.kv_heads, 1, 256), in_range("group", s.group, 1, 256)})
    if (!status.ok()) return status.error();
  if (!(options.seconds > 0 && options.seconds <= 60))
    return invalid("seconds=" + std::to_string(options.seconds) +
                   " is out of range; use more than 0, at most 60");
  if (Status status = supports("attend", s.format(), DeviceType::kCpu); !status.ok()) return status;

  const auto copies = static_cast<int>(std::clamp<std::size_t>(kColdBytes / s.sequence_bytes(), 1, 1024));
  auto problem = BenchProblem::make(s, copies);
  if (!problem.ok()) return problem.error();
  // The result is checked before it is timed.
  if (Status status = problem.value().encode_all(); !status.ok()) return status;
  problem.value().copy_pages();
  if (Status status = problem.value().attend_copy(0); !status.ok()) return status;
  const Result<double> error = problem.value().attend_error();
  if (!error.ok()) return error.error();

  std::vector<Row> rows = {read_memory(options.seconds)};
  const double vector_bytes = 2.0 * sizeof(float) * s.tokens * s.kv_heads * s.head_dim;
  Status failed;
  auto keep = [&](Status status) {
    if (!status.ok()) failed = status;
  };
  rows.push_back(
      {"encode", measure(options.seconds, [&](int) { keep(problem.value().encode_all()); }), vector_bytes});
  rows.push_back({"attend",
                  measure(options.seconds, [&](int i) { keep(problem.value().attend_copy(i % copies)); }),
                  static_cast<double>(s.sequence_bytes())});
  if (!failed.ok()) return failed;
  options.json ? print_json(options, error.value(), rows) : print_table(options, error.value(), rows);
  return {};
}

}  // namespace

void add_bench(CLI::App& app, int& status) {
  CLI::App* bench = app.add_subcommand("bench", "times encode and attend, beside a plain read of memory");
  auto options = std::make_shared<Options>();
  auto bits = std::make_shared<int>(4);
  bench->add_option("--head-dim", options->shape.head_dim, "dimension of a head, a multiple of 16")
      ->capture_default_str();
  bench->add_option("--bits", *bits, "bits a number of keys and values, 2 to 4")->capture_default_str();
  CLI::Option* k_bits = bench->add_option("--k-bits", options->shape.k_bits, "of keys alone");
  CLI::Option* v_bits = bench->add_option("--v-bits", options->shape.v_bits, "of values alone");
  bench->add_option("--tokens", options->shape.tokens, "tokens of the sequence")->capture_default_str();
  bench->add_option("--heads", options->shape.kv_heads, "KV heads")->capture_default_str();
  bench->add_option("--group", options->shape.group, "query heads a KV head")->capture_default_str();
  bench->add_option("--seconds", options->seconds, "time for each line")->capture_default_str();
  bench->add_flag("--json", options->json, "print JSON");
  bench->callback([=, &status] {
    if (k_bits->empty()) options->shape.k_bits = *bits;
    if (v_bits->empty()) options->shape.v_bits = *bits;
    const Status done = run(*options);
    if (!done.ok()) status = fail(done.error());
  });
}

}  // namespace turboquant::command
