// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace turboquant::command {

// Seconds of one run: the median, and the quartiles as its spread.
struct Timing {
  double median = 0, low = 0, high = 0;
  int runs = 0;
};

// Calls body(run) for `seconds`, at least 5 times, after one call that does not count (run = 0).
template <class F>
Timing measure(double seconds, F&& body) {
  using Clock = std::chrono::steady_clock;
  body(0);
  std::vector<double> times;
  const auto start = Clock::now();
  for (int run = 1; times.size() < 5 || std::chrono::duration<double>(Clock::now() - start).count() < seconds;
       ++run) {
    const auto begin = Clock::now();
    body(run);
    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::sort(times.begin(), times.end());
  const std::size_t n = times.size();
  return {times[n / 2], times[n / 4], times[n - 1 - n / 4], static_cast<int>(n)};
}

}  // namespace turboquant::command
