// How fast the vector unit multiplies and adds when nothing has to be brought.
#pragma once

#include <chrono>

#include "team.h"
#include "vec.h"

namespace mix::MIX_ISA {

// Operations a second, the median of some runs.
inline double peak_flops(int threads) {
  constexpr int CHAINS = 12, TURNS = 200000, RUNS = 7;
  double found[RUNS];
  for (double& rate : found) {
    const auto begin = std::chrono::steady_clock::now();
    with_team(threads, [&](Team& team) {
      team.share(threads, [](int) {
        Floats sums[CHAINS];  // that differ: else one of them is computed for all
        for (int i = 0; i < CHAINS; i++) sums[i] = splat(float(i));
        Floats x = splat(0.5f), w = splat(1.0f);
        for (int turn = 0; turn < TURNS; turn++) {
          // Opaque, and each product of its own: else they are computed once, and only added.
#if defined(__x86_64__)
          asm volatile("" : "+v"(x), "+v"(w));
#else
          asm volatile("" : "+w"(x), "+w"(w));
#endif
#pragma GCC unroll 12
          for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * x + w;
        }
        for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];
        volatile float kept = sum(sums[0]);
        (void)kept;
      });
    });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    rate = 2.0 * LANES * CHAINS * TURNS * threads / taken.count();
  }
  std::sort(found, found + RUNS);
  return found[RUNS / 2];
}

}  // namespace mix::MIX_ISA
