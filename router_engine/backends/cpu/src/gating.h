// Gating networks (MoA): each token's gates, from what its layer reads.
//
// Equations: router_engine.kernels.reference.gating_network, adapters_store.expert_kinds.gating.
#pragma once

#include "lowrank.h"

namespace mix::MIX_ISA {

enum Threshold { NONE = 0, CONSTANT = 1, NET = 2 };

// One adapter's network in one layer; outputs 0 where it has none.
struct GatingNetwork {
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
  int32_t of_prompts;  // whether one gate is of the mean over a whole prompt
};

constexpr int TOKENS_A_TASK = 8;  // tokens of one task

struct GatingTask {
  const GatingNetwork* network;
  int32_t column;
  int32_t first;         // among the members of the column
  const Prompt* prompt;  // or that of one request
};

// The networks of one layer and the tokens that they concern.
struct LayerGating {
  const TokenSet* token_set = nullptr;
  LayerGates gates;
  std::vector<GatingTask> tasks;

  void set(const Weights& weights, const TokenSet& users, int layer, int tokens) {
    const Gating& gating = weights.gating;
    gates = {};
    tasks.clear();
    if (gating.width == 0) return;
    token_set = &users;
    gates = {&gating, gating.gates + size_t(layer) * tokens * gating.width};
    for (int column = 0; column < weights.columns; column++) {
      const GatingNetwork* network = gating.networks[column];
      if (!network || network[layer].outputs == 0 || network[layer].of_prompts) continue;
      const int count = int(users.members[column].size());
      for (int first = 0; first < count; first += TOKENS_A_TASK)
        tasks.push_back({network + layer, column, first, nullptr});
    }
    for (int i = 0; i < gating.num_prompts; i++) {
      const Prompt& prompt = gating.prompts[i];
      const GatingNetwork* network = gating.networks[prompt.column] + layer;
      if (network->outputs > 0 && network->of_prompts)
        tasks.push_back({network, prompt.column, 0, &prompt});
    }
  }

  float* of(int token, int column) const {
    const Gating& gating = *gates.gating;
    return gates.values + size_t(token_set->rows[token]) * gating.width + gating.first[column];
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
inline void finish(const GatingNetwork& network, float* z, float* gates) {
  for (int r = 0; r < network.rows; r++) z[r] += network.wide_bias[r];
  const int hidden = network.hidden, outputs = network.outputs;
  for (int i = 0; i < hidden; i++) z[i] *= sigmoid(z[i]) * z[hidden + i];
  for (int o = 0; o < outputs; o++)
    gates[o] = hidden ? dot(network.narrow + size_t(o) * hidden, z, hidden) + network.narrow_bias[o]
                      : z[o];
  if (network.top_k > 0) return soften_highest(gates, outputs, network.top_k);
  const float net = network.threshold == NET ? sigmoid(z[network.rows - 1]) : 1.0f;
  const float least = network.threshold == NONE ? 0.0f : network.maximum * net;
  for (int o = 0; o < outputs; o++) {
    const float gate = sigmoid(gates[o]);
    // What is not a number is below nothing: the gate stays one that is not.
    gates[o] = gate < least ? 0.0f : gate + (least - least);
  }
}

// Gates of `count` tokens, at most TOKENS_A_TASK, whose x [count, inputs] lie one after another.
template <class T>
void gating_values(const GatingNetwork& network, const Read<T>* x, int inputs, int count,
                   float* const* gates) {
  static thread_local std::vector<float> wide;
  static thread_local std::vector<int> tokens;
  tokens.resize(count);
  std::iota(tokens.begin(), tokens.end(), 0);
  wide.resize(size_t(count) * network.rows);
  Expert expert = {};
  expert.a = network.wide;
  expert.rank = network.rows;
  for (int row = 0; row < network.rows; row += SHRINK_ROWS) {
    const int end = std::min(row + SHRINK_ROWS, network.rows);
    const T* later = static_cast<const T*>(network.wide) + size_t(end) * inputs;
    shrink<T>(expert, row, end, x, inputs, inputs, tokens, later, [&](int token, int r, float z) {
      wide[token * network.rows + r] = z;
    });
  }
  for (int token = 0; token < count; token++)
    finish(network, &wide[token * network.rows], gates[token]);
}

}  // namespace mix::MIX_ISA
