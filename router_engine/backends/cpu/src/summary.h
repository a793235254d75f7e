// What sampling asks of every row of logits.
#pragma once

#include "vec.h"

namespace mix::MIX_ISA {

// The first index of the highest of `count` logits, and log sum e^logit. NaN spreads to the sum.
inline void summarise(const float* logits, int count, int64_t* best, float* normaliser) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  Floats top = splat(lowest);
  const int whole = count / LANES * LANES;
  for (int i = 0; i < whole; i += LANES) top = larger(load(logits + i), top);
  float highest = largest(top);
  for (int i = whole; i < count; i++) highest = std::max(highest, logits[i]);
  int64_t index = 0;
  for (int i = 0; i < whole; i += LANES) {
    const Ints equal = load(logits + i) == splat(highest);
    int64_t words[LANES / 2], any = 0;
    std::memcpy(words, &equal, sizeof(words));
    for (int64_t word : words) any |= word;
    index = i;
    if (any) break;
    index = whole;
  }
  // Of NaN alone none is the highest.
  index = std::min(index, int64_t(count) - 1);
  while (index < count - 1 && logits[index] != highest) index++;
  Floats total = {};
  for (int i = 0; i < whole; i += LANES) total += exponential(load(logits + i) - highest);
  float rest = sum(total);
  for (int i = whole; i < count; i++) rest += std::exp(logits[i] - highest);
  *best = index;
  *normaliser = highest + std::log(rest);
}

}  // namespace mix::MIX_ISA
