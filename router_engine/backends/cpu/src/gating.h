// Routers inside layers: each token's gates, from what its layer reads.
//
// Equations: adapters_store.expert_types.LayerRouterSpec.
#pragma once

#include "lowrank.h"

namespace mix::MIX_ISA {

enum Threshold { NONE = 0, CONSTANT = 1, NET = 2 };

// One adapter's router in one layer; outputs 0 where it has none.
struct Router {
  const void* wide;          // [rows, features]: R, or W1 and W3; then the threshold's net
  const float* wide_bias;    // [rows]
  const float* narrow;       // W2 [outputs, hidden]
  const float* narrow_bias;  // [outputs]
  int32_t rows;
  int32_t outputs;
  int32_t hidden;     // of swiglu; 0: linear
  int32_t pre_norm;   // whether it reads the residual stream as it is
  int32_t top_k;      // of softmax; 0: sigmoid
  int32_t threshold;  // a Threshold
  float maximum;      // of the threshold
  int32_t of_prompts; // whether one gate is of the mean over a whole prompt
};

constexpr int ROUTED = 8;  // tokens of one task

struct RouterTask {
  const Router* router;
  int32_t column;
  int32_t first;         // among the members of the column
  const Prompt* prompt;  // or that of one request
};

// The routers of one layer and the tokens that they concern.
struct LayerRouting {
  const Audience* audience = nullptr;
  LayerGates gates;
  std::vector<RouterTask> tasks;

  void set(const Weights& weights, const Audience& heard, int layer, int tokens) {
    const Routing& routing = weights.routing;
    gates = {};
    tasks.clear();
    if (routing.width == 0) return;
    audience = &heard;
    gates = {&routing, routing.gates + size_t(layer) * tokens * routing.width};
    for (int column = 0; column < weights.columns; column++) {
      const Router* router = routing.routers[column];
      if (!router || router[layer].outputs == 0 || router[layer].of_prompts) continue;
      for (int first = 0; first < int(heard.members[column].size()); first += ROUTED)
        tasks.push_back({router + layer, column, first, nullptr});
    }
    for (int i = 0; i < routing.num_prompts; i++) {
      const Prompt& prompt = routing.prompts[i];
      const Router* router = routing.routers[prompt.column] + layer;
      if (router->outputs > 0 && router->of_prompts)
        tasks.push_back({router, prompt.column, 0, &prompt});
    }
  }

  float* of(int token, int column) const {
    const Routing& routing = *gates.routing;
    return gates.values + size_t(audience->rows[token]) * routing.width + routing.first[column];
  }
};

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// x . y for rows of any length.
inline float dot(const float* x, const float* y, int count) {
  Floats total = {};
  for (int i = 0; i < count; i += LANES)
    total += load_some(x + i, count - i) * load_some(y + i, count - i);
  return sum(total);
}

// Softmax over the `top_k` highest of `scores`, 0 elsewhere. A NaN is the highest, as in torch.
inline void soften_highest(float* scores, int count, int top_k) {
  static thread_local std::vector<int> order;
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  top_k = std::min(top_k, count);
  std::partial_sort(order.begin(), order.begin() + top_k, order.end(), [&](int a, int b) {
    const float first = orderly(scores[a]), second = orderly(scores[b]);
    return first != second ? first > second : a < b;
  });
  const float top = scores[order[0]];
  float total = 0;
  for (int i = 0; i < count; i++) {
    float& score = scores[order[i]];
    score = i < top_k ? std::exp(score - top) : 0.0f;
    total += score;
  }
  for (int i = 0; i < count; i++) scores[i] /= total;
}

// One token's gates from its wide products z [rows], which are changed.
inline void finish(const Router& router, float* z, float* gates) {
  for (int r = 0; r < router.rows; r++) z[r] += router.wide_bias[r];
  const int hidden = router.hidden, outputs = router.outputs;
  for (int i = 0; i < hidden; i++) z[i] *= sigmoid(z[i]) * z[hidden + i];
  for (int o = 0; o < outputs; o++)
    gates[o] = hidden ? dot(router.narrow + size_t(o) * hidden, z, hidden) + router.narrow_bias[o]
                      : z[o];
  if (router.top_k > 0) return soften_highest(gates, outputs, router.top_k);
  const float net = router.threshold == NET ? sigmoid(z[router.rows - 1]) : 1.0f;
  const float least = router.threshold == NONE ? 0.0f : router.maximum * net;
  for (int o = 0; o < outputs; o++) {
    const float gate = sigmoid(gates[o]);
    // What is not a number is below nothing: the gate stays one that is not.
    gates[o] = gate < least ? 0.0f : gate + (least - least);
  }
}

// Gates of `count` tokens, at most ROUTED, whose x [count, inputs] lie one after another.
template <class T>
void route(const Router& router, const Read<T>* x, int inputs, int count, float* const* gates) {
  static thread_local std::vector<float> wide;
  static thread_local std::vector<int> tokens;
  tokens.resize(count);
  std::iota(tokens.begin(), tokens.end(), 0);
  wide.resize(size_t(count) * router.rows);
  Expert expert = {};
  expert.a = router.wide;
  expert.rank = router.rows;
  for (int row = 0; row < router.rows; row += SHRINK_ROWS) {
    const int end = std::min(row + SHRINK_ROWS, router.rows);
    const T* later = static_cast<const T*>(router.wide) + size_t(end) * inputs;
    shrink<T>(expert, row, end, x, inputs, inputs, tokens, later, [&](int token, int r, float z) {
      wide[token * router.rows + r] = z;
    });
  }
  for (int token = 0; token < count; token++)
    finish(router, &wide[token * router.rows], gates[token]);
}

}  // namespace mix::MIX_ISA
