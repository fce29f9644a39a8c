// SPDX-License-Identifier: Apache-2.0
// Checks and times the rungs: make gpu-ladder, or attend_ladder [--json FILE] [--commit NAME].
// Pages hold random valid bytes. Launches go round over copies of the pages that are larger than any L2, in a
// CUDA graph; a time is the median of 9 replays. The first shape is small, ragged and checked in every head.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "ladder.h"

using namespace ladder;

#define CHECK(call)                                           \
  if (const cudaError_t error = (call); error != cudaSuccess) \
  std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)), std::exit(2)

namespace {

constexpr std::size_t kColdBytes = std::size_t{400} << 20;
struct Shape {
  std::vector<int> lengths;
  bool check_all;
};
const struct {
  const char* name;
  Rung run;
} kRungs[] = {{"1 naive", naive}, {"2 split", split}, {"3 packed", packed}, {"4 tensor", tensor}};

template <class T>
T* on_device(std::size_t count, const T* from = nullptr) {
  T* data = nullptr;
  CHECK(cudaMalloc(&data, count * sizeof(T)));
  if (from != nullptr) CHECK(cudaMemcpy(data, from, count * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

// Codes are any bits; scales are drawn so that scores have a deviation of about 2.
std::vector<std::uint8_t> random_pages(std::size_t count) {
  std::vector<std::uint8_t> pages(count * kPageBytes);
  std::mt19937_64 random(1);
  for (std::size_t at = 0; at < pages.size(); at += 8) {
    const std::uint64_t bits = random();
    std::memcpy(&pages[at], &bits, 8);
  }
  const auto put = [](std::uint8_t* to, double x) {
    const std::uint16_t half = turboquant::core::float_to_half(static_cast<float>(x));
    std::memcpy(to, &half, 2);
  };
  for (std::size_t p = 0; p < count; ++p) {
    std::uint8_t* page = &pages[p * kPageBytes];
    for (std::size_t t = 0; t < kPageTokens; ++t) {
      const double k = 0.6 + 0.8 * static_cast<double>(random() % 1024) / 1024;
      const double v = 0.6 + 0.8 * static_cast<double>(random() % 1024) / 1024;
      put(page + kFormat.k_scales_offset() + 2 * t, random() % 8 == 0 ? -k : k);  // some leave the centre out
      put(page + kFormat.v_scales_offset() + 2 * t, v * v * v);
    }
    for (std::size_t e = 0; e < kHeadDim; ++e)
      if (std::uint8_t& byte = page[kFormat.centre_offset() + e]; byte == 0x80) byte = 0;
    put(page + kFormat.centre_step_offset(), 0.005);
  }
  return pages;
}

// The worst head's error, in standard deviations of what rounding does to it.
double worst_error(const Problem& p, const Shape& shape, const std::vector<std::uint8_t>& pages,
                   const std::vector<std::int32_t>& table, const std::vector<std::int16_t>& queries) {
  std::vector<float> out(queries.size());
  CHECK(cudaMemcpy(out.data(), p.out, out.size() * sizeof(float), cudaMemcpyDeviceToHost));
  double worst = 0;
  for (int i = 0; i < p.sequences; ++i)
    for (int h = 0; h < kKvHeads; ++h) {
      const bool first = i == 0 && h == 1, last = i == p.sequences - 1 && h == 6;
      if (!shape.check_all && !first && !last) continue;
      const int length = shape.lengths[static_cast<std::size_t>(i)];
      std::vector<std::uint8_t> own;
      for (int page = 0; page * kPageTokens < length; ++page) {
        const auto entry = static_cast<std::size_t>(table[static_cast<std::size_t>(i * p.max_pages + page)]);
        const auto begin = pages.begin() + static_cast<std::ptrdiff_t>(
                                               (entry * kKvHeads + static_cast<std::size_t>(h)) * kPageBytes);
        own.insert(own.end(), begin, begin + kPageBytes);
      }
      for (int head = h * kGroup; head < (h + 1) * kGroup; ++head) {
        const std::size_t at = static_cast<std::size_t>(i * kQueryHeads + head) * kHeadDim;
        const Expected expected = attend_in_double(own.data(), &queries[at], length);
        double error = 0, allowed = 0;
        for (std::size_t e = 0; e < kHeadDim; ++e) {
          const double off = static_cast<double>(out[at + e]) - expected.out[e];
          error += off * off, allowed += expected.deviation[e] * expected.deviation[e];
        }
        const double ratio = std::sqrt(error / allowed);
        worst = ratio <= worst ? worst : ratio;  // a NaN is kept
      }
    }
  return worst;
}

// Microseconds a launch of `launch(i)`, i = 0 .. launches - 1, in a graph.
template <class Launch>
double median_us(int launches, const Launch& launch) {
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  cudaEvent_t begin, end;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (int i = 0; i < launches; ++i) launch(i, stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&replay, graph, 0));
  std::vector<float> us;
  for (int run = 0; run < 10; ++run) {
    float ms = 0;
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(replay, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (run > 0) us.push_back(1000 * ms / static_cast<float>(launches));
  }
  CHECK(cudaGraphExecDestroy(replay));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  std::sort(us.begin(), us.end());
  return static_cast<double>(us[us.size() / 2]);
}

}  // namespace

int main(int argc, char** argv) {
  std::string json_path, commit = "unknown";
  for (int i = 1; i + 1 < argc; i += 2) (std::string(argv[i]) == "--json" ? json_path : commit) = argv[i + 1];
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::mt19937 random(2);

  const Shape shapes[] = {{{1, 64, 65, 200, 777}, true},
                          {{11264}, false},
                          {std::vector<int>(8, 11264), false},
                          {std::vector<int>(32, 11264), false}};
  const std::size_t most_pages = 32 * 176 * kKvHeads;
  const std::vector<std::uint8_t> pages = random_pages(most_pages);
  const std::size_t copies = 1 + (kColdBytes + pages.size() - 1) / pages.size();
  std::uint8_t* pool = on_device<std::uint8_t>(copies * pages.size());
  for (std::size_t copy = 0; copy < copies; ++copy)
    CHECK(cudaMemcpy(pool + copy * pages.size(), pages.data(), pages.size(), cudaMemcpyHostToDevice));

  std::string json = "{\n \"benchmark\": \"attend_ladder\", \"device\": \"" + std::string(device.name) +
                     "\", \"commit\": \"" + commit + "\",\n \"rows\": [";
  bool ok = true;
  for (const Shape& shape : shapes) {
    Problem p{};
    p.sequences = static_cast<int>(shape.lengths.size());
    p.max_length = *std::max_element(shape.lengths.begin(), shape.lengths.end());
    p.max_pages = (p.max_length + kPageTokens - 1) / kPageTokens;
    p.sm_count = device.multiProcessorCount;
    std::vector<std::int32_t> table(static_cast<std::size_t>(p.sequences * p.max_pages));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), random);
    std::vector<std::int16_t> queries(static_cast<std::size_t>(p.sequences * kQueryHeads * kHeadDim));
    std::normal_distribution<float> normal(0, 1.9f / kQueryStep);
    for (std::int16_t& x : queries) {
      const float limit = kLargest16;
      x = static_cast<std::int16_t>(std::clamp(normal(random), -limit, limit));
    }
    p.page_table = on_device(table.size(), table.data());
    p.lengths = on_device(shape.lengths.size(), shape.lengths.data());
    p.queries = on_device(queries.size(), queries.data());
    p.out = on_device<float>(queries.size());
    // A warp of rung 4 for each of 12 an SM is the finest split; a small batch cannot have more than its
    // pages.
    const std::size_t parts = static_cast<std::size_t>(12 * p.sm_count / kKvHeads + p.sequences);
    p.partials = on_device<float>(parts * kQueryHeads * (kHeadDim + 4));

    const std::size_t slice = table.size() * kKvHeads * kPageBytes, slices = copies * pages.size() / slice;
    const std::size_t needed = std::max<std::size_t>(4, 1 + kColdBytes / slice);
    const int launches = static_cast<int>(std::min<std::size_t>(needed, 200));
    const auto at = [&](int i) { return pool + static_cast<std::size_t>(i) % slices * slice; };
    for (int i = 0; i < 100; ++i) read(pool, copies * pages.size(), p.partials, nullptr);  // clocks up
    const double read_us =
        median_us(launches, [&](int i, cudaStream_t stream) { read(at(i), slice, p.partials, stream); });
    std::printf("%d x %d, plain read %.1f us, %.0f GB/s\n", p.sequences, p.max_length, read_us,
                static_cast<double>(slice) / read_us / 1e3);
    for (const auto& rung : kRungs) {
      p.pages = pool;
      CHECK(cudaMemset(p.out, 0xff, queries.size() * sizeof(float)));
      rung.run(p, nullptr);
      CHECK(cudaGetLastError());
      CHECK(cudaDeviceSynchronize());
      const double error = worst_error(p, shape, pages, table, queries);
      const bool good = error <= 3;  // three standard deviations; a NaN is not
      ok = ok && good;
      const double us = median_us(launches, [&](int i, cudaStream_t stream) {
        p.pages = at(i);
        rung.run(p, stream);
      });
      std::printf("  %-9s %9.1f us  %6.2f x the read  error %.2f of 3 deviations%s\n", rung.name, us,
                  us / read_us, error, good ? "" : "  WRONG");
      char row[256];
      std::snprintf(
          row, sizeof row,
          "%s\n  {\"rung\": \"%s\", \"sequences\": %d, \"tokens\": %d, \"us\": %.2f, \"read_us\": %.2f, "
          "\"error_deviations\": %.3f}",
          json.back() == '[' ? "" : ",", rung.name, p.sequences, p.max_length, us, read_us, error);
      json += row;
    }
    for (const void* data : {static_cast<const void*>(p.page_table), static_cast<const void*>(p.lengths),
                             static_cast<const void*>(p.queries), static_cast<const void*>(p.out),
                             static_cast<const void*>(p.partials)})
      CHECK(cudaFree(const_cast<void*>(data)));
  }
  if (!json_path.empty()) {
    std::FILE* file = std::fopen(json_path.c_str(), "w");
    if (file == nullptr) return std::fprintf(stderr, "cannot write %s\n", json_path.c_str()), 2;
    std::fprintf(file, "%s\n ]\n}\n", json.c_str());
    std::fclose(file);
  }
  return ok ? 0 : 1;
}
