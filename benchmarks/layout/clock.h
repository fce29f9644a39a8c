// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <time.h>

#include <cstdint>

namespace turboquant::bench {

// CPU time of this thread: what other processes take away does not count.
inline double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The clock this core runs at now: a chain of dependent multiplications, three cycles each on every x86-64
// core of the last fifteen years. Not additions: recent Intel cores take several constants to one register in
// a cycle. The empty asm keeps the compiler from folding the chain. About 0.1 ms.
inline double core_ghz() {
  constexpr int kRounds = 4000, kChain = 32, kCycles = 3;
  std::uint64_t x = 3;
  const double start = seconds();
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChain; ++j) {
      x *= x;
      asm volatile("" : "+r"(x));
    }
  }
  return kRounds * kChain * kCycles / (seconds() - start) * 1e-9;
}

#if defined(__x86_64__)
inline double tsc_ghz() {
  timespec from, now;
  clock_gettime(CLOCK_MONOTONIC, &from);
  const std::uint64_t ticks = __builtin_ia32_rdtsc();
  double elapsed;
  do {
    clock_gettime(CLOCK_MONOTONIC, &now);
    elapsed = static_cast<double>(now.tv_sec - from.tv_sec) +
              1e-9 * static_cast<double>(now.tv_nsec - from.tv_nsec);
  } while (elapsed < 0.02);
  return static_cast<double>(__builtin_ia32_rdtsc() - ticks) / elapsed * 1e-9;
}
#else
inline double tsc_ghz() {
  return 0.0;
}
#endif

}  // namespace turboquant::bench
