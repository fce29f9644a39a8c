// SPDX-License-Identifier: Apache-2.0
// The inner loops of attention over pages of format v1, one core: GB/s and bytes a cycle of packed codes,
// beside a plain read of the same bytes. Every loop is first checked against core::read_code.
//
//   layout_simd [--out FILE] [--commit HASH] [--dram-mib 1024] [--quick]    (make bench-layout)
//
// What a loop computes stands in layout/loops.h; what it leaves out: scales, centres, softmax, and packing
// the operands, all once a token or a sequence.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "layout/check.h"
#include "layout/clock.h"
#include "turboquant/format.h"

namespace turboquant::bench {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Options {
  std::string out, commit = "unknown";
  std::size_t dram_bytes = std::size_t{1024} << 20;
  bool quick = false;
};

struct Timing {
  double gbps, low, high;  // median and quartiles
  double ghz;
};

struct Place {
  const char* name;
  std::size_t bytes;  // of codes from a cache; of whole pages from memory
  double repetition;  // seconds
  int repetitions;
  bool from_memory;
};

// Calls body on one page after the other, in the order given, over and over.
template <typename Body>
Timing time_pages(const std::uint8_t* first, const std::vector<std::size_t>& order, std::size_t area_bytes,
                  const Place& place, Body body) {
  std::size_t next = 0;
  const auto seconds_of = [&](std::size_t pages) {
    const double start = seconds();
    for (std::size_t i = 0; i < pages; ++i) {
      const std::uint8_t* codes = first + order[next];
      next = next + 1 < order.size() ? next + 1 : 0;
      body(codes, first + order[next]);
    }
    return seconds() - start;
  };
  std::size_t pages = order.size() < 64 ? order.size() : 64;
  for (double warm = 0.0; (warm = seconds_of(pages)) < 0.5 * place.repetition;)
    pages = warm < 0.1 * place.repetition
                ? 4 * pages
                : static_cast<std::size_t>(static_cast<double>(pages) * place.repetition / warm);
  std::vector<double> rates;
  double ghz = 0.0;
  for (int r = 0; r < place.repetitions; ++r) {
    const double before = core_ghz();
    rates.push_back(static_cast<double>(pages * area_bytes) / seconds_of(pages) * 1e-9);
    ghz += 0.5 * (before + core_ghz()) / place.repetitions;
  }
  std::sort(rates.begin(), rates.end());
  const std::size_t n = rates.size();
  return {rates[n / 2], rates[n / 4], rates[n - 1 - n / 4], ghz};
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options), storage_(new std::uint8_t[options.dram_bytes + kHugePage]) {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.get());
    buffer_ = storage_.get() + (kHugePage - address % kHugePage);
    // Pages in random order would otherwise time the TLB.
    madvise(buffer_, options.dram_bytes, MADV_HUGEPAGE);
    for (std::size_t at = 0; at + 8 <= options.dram_bytes; at += 8) {
      const std::uint64_t word = random_();
      std::memcpy(buffer_ + at, &word, 8);
    }
  }

  bool run(const LoopSet& set) {
    for (const int d : {128, 64})
      for (const int bits : {4, 3, 2})
        for (const bool keys : {true, false}) {
          time_case(set, {d, bits, 0, 0}, keys);
          for (const int heads : {1, 3, 4, 8})
            for (const int pieces : {1, 2}) {
              const Shape shape{d, bits, heads, pieces};
              if (set.operand_bytes == 2 && pieces == 1) continue;
              if (options_.quick && (d != 128 || heads == 3 || heads == 8)) continue;
              if (!(keys ? scores_are_exact : values_are_exact)(set, shape, buffer_, random_)) {
                std::fprintf(stderr, "%s %s d=%d bits=%d heads=%d pieces=%d: wrong integers\n", set.name,
                             keys ? "qk" : "pv", d, bits, heads, pieces);
                return false;
              }
              time_case(set, shape, keys);
              if (keys && set.score_side_by_side(shape)) time_case(set, shape, keys, true);
            }
        }
    return true;
  }

  const std::string& rows() const { return rows_; }

 private:
  // Of heads = 0: the plain read.
  void time_case(const LoopSet& set, const Shape& shape, bool keys, bool side_by_side = false) {
    const PageFormat format{shape.head_dim, shape.bits, shape.bits};
    const std::size_t page = format.page_bytes(), area = format.v_codes_offset();
    const std::uint8_t* first = buffer_ + (keys ? format.k_codes_offset() : format.v_codes_offset());
    std::mt19937_64 random(1);
    Operands operands;
    alignas(64) std::int32_t scores[kMaxHeads * 64];
    alignas(64) float sums[kMaxHeads * 128 * 4] = {};
    const bool plain = shape.heads == 0;
    const auto count = static_cast<std::size_t>(shape.heads * (keys ? shape.head_dim : 64));
    if (!plain && keys) {
      const int limit = query_limit(set, shape.pieces);
      pack_queries(set, shape, random_integers(count, -limit, limit, random).data(), &operands);
    } else if (!plain) {
      pack_probabilities(set, shape,
                         random_integers(count, 0, probability_limit(set, shape.pieces), random).data(),
                         &operands);
    }
    const ScoreLoop score = plain ? nullptr : side_by_side ? set.score_side_by_side(shape) : set.score(shape);
    const ValueLoop value = plain ? nullptr : set.value(shape);
    std::uint64_t sink = 0;
    const auto body = [&](const std::uint8_t* codes, const std::uint8_t* ahead) {
      if (plain) sink ^= set.read(codes, ahead, area);
      else if (keys) score(codes, ahead, operands, scores);
      else value(codes, ahead, operands, 1e-9f, sums);
    };
    const char* op = plain          ? (keys ? "read k" : "read v")
                     : side_by_side ? "qk side by side"
                     : keys         ? "qk"
                                    : "pv";
    char head[160];
    std::snprintf(head, sizeof head,
                  "\"loops\": \"%s\", \"op\": \"%s\", \"head_dim\": %d, \"bits\": %d, \"heads\": %d, "
                  "\"operand_bits\": %d",
                  set.name, op, shape.head_dim, shape.bits, shape.heads, operand_bits(set, shape, keys));
    std::string row = head;
    const int times = options_.quick ? 5 : 15;
    for (const Place& place :
         {Place{"l1", 12288, 0.003, times, false}, Place{"l2", 196608, 0.003, times, false},
          Place{"dram", options_.dram_bytes, 0.02, times / 2, true}}) {
      const std::size_t pages = place.bytes / (place.from_memory ? page : area);
      std::vector<std::size_t> order(pages);
      std::iota(order.begin(), order.end(), std::size_t{0});
      std::shuffle(order.begin(), order.end(), random);
      for (std::size_t& o : order) o *= page;
      row += cells(place, time_pages(first, order, area, place, body));
    }
    std::fprintf(stderr, "%s\n", row.c_str());
    rows_ += (rows_.empty() ? "    {" : ",\n    {") + row + "}";
    if (sink == 1) std::fputs("", stderr);
  }

  static std::string cells(const Place& place, const Timing& t) {
    char out[160];
    std::snprintf(out, sizeof out, ", \"%s\": [%.2f, %.2f, %.2f, %.2f, %.2f]", place.name, t.gbps, t.low,
                  t.high, t.gbps / t.ghz, t.ghz);
    return out;
  }

  static int operand_bits(const LoopSet& set, const Shape& s, bool keys) {
    if (s.heads == 0) return 0;
    if (set.operand_bytes == 2) return 16;
    return s.pieces * ((keys ? set.query_radix : set.probability_radix) == 256 ? 8 : 7);
  }

  const Options& options_;
  std::unique_ptr<std::uint8_t[]> storage_;
  std::uint8_t* buffer_;
  std::mt19937_64 random_{20250731};
  std::string rows_;
};

// The value of the first line of /proc/cpuinfo that starts with `key`.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind(key, 0) == 0 && line.find(':') != std::string::npos)
      return line.substr(line.find(':') + 2);
  return "unknown";
}

int run(const Options& options) {
  Bench bench(options);
  std::string sets;
  for (const LoopSet* set : {&kPortable, &kAvx2, &kAvx512}) {
    const bool here = set->runs_here();
    sets += std::string(sets.empty() ? "" : ", ") + "\"" + set->name + "\": \"" +
            (here ? set->flags : "does not run here") + "\"";
    if (here && !bench.run(*set)) return 1;
  }
  std::string json =
      "{\n  \"benchmark\": \"layout_simd\", \"format_version\": " + std::to_string(kFormatVersion);
  json += ", \"commit\": \"" + options.commit + "\",\n  \"cpu\": \"" + cpuinfo("model name") + ", family " +
          cpuinfo("cpu family") + ", model " + cpuinfo("model\t") +
          "\", \"tsc_ghz\": " + std::to_string(tsc_ghz()) + ", \"compiler\": \"" + TQ_LAYOUT_COMPILER +
          "\",\n  \"dram_mib\": " + std::to_string(options.dram_bytes >> 20) + ", \"loops\": {" + sets +
          "},\n  \"columns\": [\"GB/s, median\", \"lower quartile\", \"upper quartile\", \"bytes a cycle\", "
          "\"core GHz\"],\n  \"rows\": [\n" +
          bench.rows() + "\n  ]\n}\n";
  if (options.out.empty()) std::fputs(json.c_str(), stdout);
  else std::ofstream(options.out) << json;
  return 0;
}

}  // namespace
}  // namespace turboquant::bench

int main(int argc, char** argv) {
  turboquant::bench::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const bool has_value = i + 1 < argc;
    if (arg == "--quick") options.quick = true;
    else if (arg == "--out" && has_value) options.out = argv[++i];
    else if (arg == "--commit" && has_value) options.commit = argv[++i];
    else if (arg == "--dram-mib" && has_value) options.dram_bytes = std::stoul(argv[++i]) << 20;
    else {
      std::fprintf(stderr, "usage: layout_simd [--out FILE] [--commit HASH] [--dram-mib N] [--quick]\n");
      return 2;
    }
  }
  return turboquant::bench::run(options);
}
