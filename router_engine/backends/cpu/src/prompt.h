// Learned keys and values beside the cache, with a softmax of their own.
//
// Equation: adapters_store.expert_kinds.prompt; the gates of heads are in the values.
#pragma once

#include "attention.h"
#include "lowrank.h"

namespace mix::MIX_ISA {

// attended [heads, dim] += factor softmax(q K^T) V, head by head; q is rotated and scaled.
template <class T>
void attend_prompt(const Expert& prompt, float factor, const float* q, int heads, int kv_heads,
                   int dim, Read<T>* attended) {
  static thread_local std::vector<float> weights;
  const int length = prompt.rank, group = heads / kv_heads;
  const T* keys = static_cast<const T*>(prompt.a);
  const T* values = static_cast<const T*>(prompt.b);
  weights.resize(size_t(ceil_div(length, LANES)) * LANES);
  for (int h = 0; h < heads; h++) {
    for (int i = 0; i < length; i++) {
      const T* key = keys + (size_t(i) * kv_heads + h / group) * dim;
      Floats score = {};
      for (int d = 0; d < dim; d += LANES) score += load(q + h * dim + d) * load(key + d);
      weights[i] = sum(score);
    }
    Partial seen;
    soften(weights.data(), length, seen);
    for (int d = 0; d < dim; d += LANES) {
      Floats total = {};
      for (int i = 0; i < length; i++)
        total += load(values + (size_t(i) * heads + h) * dim + d) * weights[i];
      Read<T>* target = attended + h * dim + d;
      store(target, load(target) + total * (factor / seen.norm));
    }
  }
}

}  // namespace mix::MIX_ISA
