// The mixture of low-rank experts: z = x A^T, z *= weights, y += z B, on rows of the adapter pool.
//
// A rows [rank, inputs] and B rows [rank, outputs] are read where the pool keeps them. Each adapter
// reads only the tokens that give it a weight, so a step costs what its (token, adapter) pairs
// cost, and reads each active adapter once.
#pragma once

#include "activation.h"
#include "products.h"

namespace mix::MIX_ISA {

// One adapter at one linear layer, or at one of the sites beside them; rank 0 where it does not
// touch it. See router_engine.experts.base.ExpertRows.
struct Expert {
  const void* a;
  const void* b;
  int32_t rank;
  float scale_root;  // square root of its scale, which b holds
  const float* prototype;  // [rank]: coordinates, in a's rows, of what layer routing scores with
  const int32_t* gate;     // [rank]: which gate of its layer a row has, -1: none; or null
  const float* bias;       // [rank], of a bottleneck's way down, or null
  int32_t activation;      // of a bottleneck: an Activation
  int32_t has_up_bias;     // the last row's z is its bias, which is 1

  bool is_bottleneck() const { return activation != LINEAR; }
  int shrunk() const { return rank - has_up_bias; }  // rows whose z depends on x
};

// Tokens whose weights arise inside the layers: router_engine.mixture.weights.LayerRoutedTokens.
struct LayerRoutedTokens {
  const int32_t* top_k;  // [tokens]: 0 where a token is not routed; null: none is
  const float* temperature;
  const uint8_t* candidates;  // [tokens, columns]

  bool any() const { return top_k != nullptr; }
  bool acts(int token) const { return any() && top_k[token] > 0; }
};

struct GatingNetwork;

// Tokens [first, first + count) of a request, of which `prompt` from the first on are its prompt,
// whose gates an adapter's networks find. See router_engine.mixture.weights.PromptTokens.
struct Prompt {
  int32_t column;
  int32_t first;
  int32_t count;
  int32_t prompt;
};

// The gating networks of the layers, and the gates that they give to tokens of their adapter.
struct Gating {
  const GatingNetwork* const* networks;  // [columns]: an adapter's, by layer; null: it has none
  const int32_t* first;          // [columns]: where an adapter's gates begin among a token's
  float* gates;                  // [layers, tokens, width]; those known before are there already
  const Prompt* prompts;         // [num_prompts], of networks of whole prompts
  int32_t num_prompts;
  int32_t width;                 // 0: no adapter has a network
};

// Weights of a step: [tokens, columns] each, or null. See router_engine.mixture.weights.
struct Weights {
  int32_t columns;
  const Expert* const* experts;  // [columns][modules]
  const float* sum_weights;          // under `sum`
  const float* sqrt_weights;         // their square roots, under `linear`
  const float* merged_sqrt_weights;  // those of the merged mixture, which is taken away
  LayerRoutedTokens routed;
  Gating gating;
  int32_t has_other_sites;  // whether any adapter has experts beside those of linear layers

  float at(const float* part, int token, int column) const {
    return part ? part[size_t(token) * columns + column] : 0.0f;
  }
  bool may_choose(int token, int column) const {
    return routed.acts(token) && routed.candidates[size_t(token) * columns + column];
  }
  bool given(int token, int column) const {
    return at(sum_weights, token, column) != 0 || at(sqrt_weights, token, column) != 0 ||
           at(merged_sqrt_weights, token, column) != 0;
  }
  bool uses(int token, int column) const {
    return may_choose(token, column) || given(token, column);
  }
  bool is_linear() const { return sqrt_weights || merged_sqrt_weights; }
  // Whether a token's z takes more than its raw inner products times given weights.
  bool combines(int token) const { return is_linear() || routed.acts(token); }
};

// An adapter at one of the layers that a phase computes; its z starts at `offset` of a token's.
struct Span {
  Expert expert;
  int32_t layer;  // among the layers of the phase
  int32_t column;
  int32_t offset;
};

// The gates of one layer: of tokens that use their adapter, in rows of the weight matrix.
struct LayerGates {
  const Gating* gating = nullptr;
  float* values = nullptr;  // [tokens, width]

  // That of rank row r.
  float at(int row, const Span& span, int r) const {
    const int32_t* gate = span.expert.gate;
    if (!gate || gate[r] < 0) return 1.0f;
    return values[size_t(row) * gating->width + gating->first[span.column] + gate[r]];
  }
};

constexpr int SHRINK_ROWS = 8;                     // rank rows of one task
constexpr int SHRINK_TOKENS = LANES == 8 ? 2 : 4;  // four times as many sums stay in registers
struct ShrinkTask {
  int32_t span;
  int32_t row;
};

inline int even(int n) { return n + (n & 1); }

// weight value, and 0 where the weight is 0: what is not chosen takes no part, though it be
// infinite or NaN, which 0 times would not remove.
inline float times(float weight, float value) { return weight == 0 ? 0.0f : weight * value; }

// The tokens that a phase sees (all of them, or the sampled ones), adapter by adapter.
struct TokenSet {
  std::vector<int> rows;                  // row of the weight matrix of each token
  std::vector<std::vector<int>> members;  // by column: its tokens

  void set(const Weights& weights, const int* index, int count) {
    rows.assign(index, index + count);
    members.resize(weights.columns);
    for (int column = 0; column < weights.columns; column++) {
      members[column].clear();
      for (int token = 0; token < count; token++)
        if (weights.uses(rows[token], column)) members[column].push_back(token);
    }
  }
};

// What the layers of one phase need of the step's experts. Layers read the same x.
struct MixPhase {
  std::vector<Span> spans;  // layer after layer
  std::vector<ShrinkTask> tasks;
  std::vector<int> first;  // [layers + 1]: spans of each layer
  int width = 0;           // elements of z a token

  // Elements of z before `from` are left to another phase.
  void set(const Weights& weights, const TokenSet& token_set, const int* modules, int layers,
           int from = 0) {
    spans.clear();
    tasks.clear();
    first.assign(1, 0);
    width = from;
    for (int layer = 0; layer < layers; layer++) {
      for (int column = 0; column < weights.columns; column++) {
        const Expert& expert = weights.experts[column][modules[layer]];
        if (expert.rank == 0 || token_set.members[column].empty()) continue;
        for (int row = 0; row < expert.shrunk(); row += SHRINK_ROWS)
          tasks.push_back({int32_t(spans.size()), row});
        spans.push_back({expert, layer, column, width});
        width += even(expert.rank);
      }
      first.push_back(int(spans.size()));
    }
  }
};

// Rows of a that so many tokens are multiplied by at once: their sums fill half of the registers.
constexpr int rows_beside(int tokens) { return tokens == 1 ? SHRINK_ROWS : 4; }

// z[t][r] = x_t . a_r for TOKENS tokens and rows_beside(TOKENS) rows of a. Meanwhile as much is
// brought near from `later`.
template <class T, int TOKENS>
void inner_products(const Read<T>* const* x, const T* const* a, const T* later, int inputs,
                    float (*z)[SHRINK_ROWS]) {
  typedef Inner<T> I;
  constexpr int ROWS = rows_beside(TOKENS), LINE = CACHE_LINE / sizeof(T);
  Floats sums[TOKENS * ROWS] = {};
  const auto add = [&](const auto& read, int i) __attribute__((always_inline)) {
    typename I::Vector in[TOKENS];
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) in[t] = read(x[t] + i);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const typename I::Vector row = read(a[r] + i);
#pragma GCC unroll 4
      for (int t = 0; t < TOKENS; t++)
        sums[t * ROWS + r] = I::add(sums[t * ROWS + r], in[t], row);
    }
  };
  const auto whole = [](const auto* from) { return I::read(from); };
  int i = 0;
  for (; i + LINE <= inputs; i += LINE) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) __builtin_prefetch(later + r * inputs + i, 0, 3);
#pragma GCC unroll 4
    for (int part = 0; part < LINE; part += I::WIDTH) add(whole, i + part);
  }
  for (; i + I::WIDTH <= inputs; i += I::WIDTH) add(whole, i);
  if (i < inputs) add([&](const auto* from) { return I::read_some(from, inputs - i); }, i);
  float totals[ceil_div(TOKENS * ROWS, LANES) * LANES];
  sum_all<TOKENS * ROWS>(sums, totals);
  for (int t = 0; t < TOKENS; t++) std::copy_n(totals + t * ROWS, ROWS, z[t]);
}

// Calls done(token, row, x_t . a_row) for `tokens` and rows [row, end) of an expert, at most
// SHRINK_ROWS. Meanwhile `later`, which are read after them, are brought near.
template <class T, class Done>
void shrink(const Expert& expert, int row, int end, const Read<T>* x, size_t ldx, int inputs,
            const std::vector<int>& tokens, const T* later, const Done& done) {
  const int count = int(tokens.size());
  const auto multiply = [&]<int TOKENS>(std::integral_constant<int, TOKENS>, int t) {
    constexpr int ROWS = rows_beside(TOKENS);
    const Read<T>* in[TOKENS];
    for (int i = 0; i < TOKENS; i++) in[i] = x + size_t(tokens[std::min(t + i, count - 1)]) * ldx;
    for (int first = row; first < end; first += ROWS) {
      const T* rows[ROWS];
      for (int r = 0; r < ROWS; r++)
        rows[r] = static_cast<const T*>(expert.a) + size_t(std::min(first + r, end - 1)) * inputs;
      float z[TOKENS][SHRINK_ROWS];
      inner_products<T, TOKENS>(in, rows, later + size_t(first - row) * inputs, inputs, z);
      for (int i = 0; i < std::min(TOKENS, count - t); i++)
        for (int r = 0; r < std::min(ROWS, end - first); r++)
          done(tokens[t + i], first + r, z[i][r]);
    }
  };
  for (int t = 0; t < count; t += SHRINK_TOKENS) {
    if (count - t == 1)
      multiply(std::integral_constant<int, 1>(), t);
    else if (count - t == 2)
      multiply(std::integral_constant<int, 2>(), t);
    else
      multiply(std::integral_constant<int, SHRINK_TOKENS>(), t);
  }
}

// Starts to bring what `expand` reads of an expert.
template <class T>
void prefetch_expand(const Expert& expert, int outputs, int begin, int end) {
  const T* b = static_cast<const T*>(expert.b) + begin;
  for (int r = 0; r < expert.rank; r++)
    prefetch(b + size_t(r) * outputs, size_t(end - begin) * sizeof(T));
}

// Adds one expert's part to outputs [begin, end) of a layer: y points at output 0 of token 0.
// Meanwhile `next`, which will be expanded after it, is brought near.
template <class T>
void expand(const Span& span, const Expert& next, const Read<T>* z, size_t ldz,
            const std::vector<int>& tokens, int outputs, int begin, int end, float* y, size_t ldy) {
  const T* b = static_cast<const T*>(span.expert.b);
  const T* later = static_cast<const T*>(next.b);
  for (int t = 0; t < int(tokens.size()); t += EXPAND_TOKENS) {
    const int count = std::min(EXPAND_TOKENS, int(tokens.size()) - t);
    const int wide = expand_width(count);
    for (int output = begin; output < end; output += wide) {
      const Read<T>* in[EXPAND_TOKENS];
      float* out[EXPAND_TOKENS];
      for (int i = 0; i < count; i++) {
        in[i] = z + tokens[t + i] * ldz + span.offset;
        out[i] = y + tokens[t + i] * ldy + output;
      }
      const Strided<T> rows = {b + output, later + output, size_t(outputs)};
      expand_tokens<T>(count, in, rows, span.expert.rank, std::min(wide, end - output), out);
    }
  }
}

// One token's z from its raw inner products, for any combination (design section 4):
// sum: w z; linear: the ranks of all adapters are added before they are expanded, as in PEFT.
// chosen [spans]: what layer routing adds to the weights; null without it. Bottlenecks take no part:
// their z is not linear. Z: what z is kept in.
template <class Z>
void combine(const Weights& weights, const LayerGates& gates, const MixPhase& phase, int row,
             const float* chosen, const float* raw, Z* z, std::vector<float>& folded) {
  const float* parts[2] = {weights.sqrt_weights, weights.merged_sqrt_weights};
  for (size_t layer = 0; layer + 1 < phase.first.size(); layer++) {
    const Span* begin = phase.spans.data() + phase.first[layer];
    const Span* end = phase.spans.data() + phase.first[layer + 1];
    int widest = 0;
    for (const Span* s = begin; s < end; s++) widest = std::max(widest, s->expert.rank);
    folded.assign(2 * size_t(widest), 0.0f);
    for (const Span* s = begin; s < end; s++)
      for (int p = 0; p < 2; p++) {
        const float c = times(weights.at(parts[p], row, s->column), s->expert.scale_root);
        if (c != 0)
          for (int r = 0; r < s->expert.rank; r++) folded[p * widest + r] += c * raw[s->offset + r];
      }
    for (const Span* s = begin; s < end; s++) {
      const float found = chosen ? chosen[s - phase.spans.data()] : 0.0f;
      if (s->expert.is_bottleneck() || (found == 0 && !weights.given(row, s->column))) continue;
      const float total = weights.at(weights.sum_weights, row, s->column) + found;
      const float shrink = 1.0f / s->expert.scale_root;
      const float own = times(weights.at(weights.sqrt_weights, row, s->column), shrink);
      const float merged = times(weights.at(weights.merged_sqrt_weights, row, s->column), shrink);
      for (int r = 0; r < even(s->expert.rank); r++) {
        const bool inside = r < s->expert.rank;
        const float gated = inside && total != 0 ? times(gates.at(row, *s, r), total) : 0.0f;
        const float value = inside ? times(gated, raw[s->offset + r]) + times(own, folded[r]) -
                                         times(merged, folded[widest + r])
                                   : 0.0f;
        store_some(z + s->offset + r, splat(value), 1);
      }
    }
  }
}

}  // namespace mix::MIX_ISA
