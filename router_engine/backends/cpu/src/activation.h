// What a bottleneck makes of its inner products, as adapters_store.expert_kinds.base.Activation.
#pragma once

#include "vec.h"

namespace mix::MIX_ISA {

enum Activation { LINEAR = 0, SILU = 1, GELU = 2, GELU_TANH = 3, RELU = 4 };  // as in library.py

// Source of both forms of GELU: Hendrycks and Gimpel, "Gaussian Error Linear Units".
inline float activate(float x, int32_t activation) {
  switch (activation) {
    case SILU: return x / (1.0f + std::exp(-x));
    case GELU: return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    case GELU_TANH:
      return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case RELU: return x < 0 ? 0.0f : x;  // a NaN stays one
    default: return x;
  }
}

}  // namespace mix::MIX_ISA
