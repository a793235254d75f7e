// The norm between a layer's products.
#pragma once

#include <cmath>

#include "vec.h"

namespace mix::MIX_ISA {

// target = x / rms(x) * weight. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization".
template <class T>
inline void rms_norm(const float* x, const float* weight, int size, float epsilon, T* target) {
  Floats squares = {};
  for (int i = 0; i < size; i += LANES) {
    const Floats v = load(x + i);
    squares += v * v;
  }
  const float inverse = 1.0f / std::sqrt(sum(squares) / size + epsilon);
  for (int i = 0; i < size; i += LANES)
    store(target + i, load(x + i) * inverse * load(weight + i));
}

}  // namespace mix::MIX_ISA
