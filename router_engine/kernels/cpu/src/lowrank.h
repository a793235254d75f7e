// The mixture of low-rank experts: z = x A^T, z *= weights, y += z B, on rows of the adapter pool.
//
// A rows [rank, inputs] and B rows [rank, outputs] are read where the pool keeps them. Each adapter
// meets only the tokens that give it a weight, so a step costs what its (token, adapter) pairs
// cost, and reads each active adapter once.
#pragma once

#include <vector>

#include "gemm.h"

namespace mix {

// One adapter at one linear layer; rank 0 where it does not touch it.
struct Expert {
  const void* a;
  const void* b;
  int32_t rank;
  float scale_root;  // square root of its scale, which b holds
};

// Weights of a step: [tokens, columns] each, or null. See router_engine.mixture.weights.
struct Weights {
  int32_t columns;
  const Expert* const* experts;  // [columns][modules]
  const float* total;
  const float* root;
  const float* merged_root;

  float at(const float* part, int token, int column) const {
    return part ? part[size_t(token) * columns + column] : 0.0f;
  }
  bool uses(int token, int column) const {
    return at(total, token, column) != 0 || at(root, token, column) != 0 ||
           at(merged_root, token, column) != 0;
  }
  bool is_linear() const { return root || merged_root; }
};

// An adapter at one of the layers that a phase computes; its z starts at `offset` of a token's.
struct Span {
  Expert expert;
  int32_t layer;  // among the layers of the phase
  int32_t column;
  int32_t offset;
};

constexpr int SHRINK_ROWS = 8;  // rank rows of one task
struct ShrinkTask {
  int32_t span;
  int32_t row;
};

inline int even(int n) { return n + (n & 1); }

// The tokens that a phase sees (all of them, or the sampled ones), adapter by adapter.
struct Audience {
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

  void set(const Weights& weights, const Audience& audience, const int* modules, int layers) {
    spans.clear();
    tasks.clear();
    first.assign(1, 0);
    width = 0;
    for (int layer = 0; layer < layers; layer++) {
      for (int column = 0; column < weights.columns; column++) {
        const Expert& expert = weights.experts[column][modules[layer]];
        if (expert.rank == 0 || audience.members[column].empty()) continue;
        for (int row = 0; row < expert.rank; row += SHRINK_ROWS)
          tasks.push_back({int32_t(spans.size()), row});
        spans.push_back({expert, layer, column, width});
        width += even(expert.rank);
      }
      first.push_back(int(spans.size()));
    }
  }
};

// Inner products of rows of equal format; WIDTH elements at a time.
template <class T>
struct Inner {
  static constexpr int WIDTH = LANES;
  typedef F16 Vector;
  static Vector read(const T* p) { return load(p); }
  static Vector read_some(const T* p, int count) { return load_some(p, count); }
  static F16 add(F16 sum, Vector a, Vector b) { return sum + a * b; }
};

#ifdef MIX_BF16_DOT
inline __mmask32 first_lanes(int count) {
  return count >= 32 ? 0xffffffffu : (1u << count) - 1u;
}

template <>
struct Inner<bf16> {
  static constexpr int WIDTH = 2 * LANES;
  typedef __m512bh Vector;
  static Vector read(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Vector read_some(const bf16* p, int count) {
    return (__m512bh)_mm512_maskz_loadu_epi16(first_lanes(count), p);
  }
  static F16 add(F16 sum, Vector a, Vector b) { return (F16)_mm512_dpbf16_ps((__m512)sum, a, b); }
};
#endif

// z[t][r] = x_t . a_r for TOKENS tokens and four rows of a.
template <class T, int TOKENS>
void inner_products(const T* const* x, const T* const* a, int inputs, float (*z)[4]) {
  typedef Inner<T> I;
  F16 sums[TOKENS][4] = {};
  int i = 0;
  for (; i + I::WIDTH <= inputs; i += I::WIDTH) {
    typename I::Vector rows[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) rows[r] = I::read(a[r] + i);
#pragma GCC unroll 4
    for (int t = 0; t < TOKENS; t++) {
      const typename I::Vector in = I::read(x[t] + i);
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) sums[t][r] = I::add(sums[t][r], in, rows[r]);
    }
  }
  if (i < inputs)
    for (int t = 0; t < TOKENS; t++)
      for (int r = 0; r < 4; r++)
        sums[t][r] = I::add(sums[t][r], I::read_some(x[t] + i, inputs - i),
                            I::read_some(a[r] + i, inputs - i));
#pragma GCC unroll 4
  for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) z[t][r] = sum(sums[t][r]);
}

// Calls done(token, row, x_t . a_row) for `tokens` and rows [row, end) of an expert.
template <class T, class Done>
void shrink(const Expert& expert, int row, int end, const T* x, size_t ldx, int inputs,
            const std::vector<int>& tokens, const Done& done) {
  const T* a = static_cast<const T*>(expert.a);
  const int count = int(tokens.size());
  for (; row < end; row += 4) {
    const T* rows[4];
    for (int r = 0; r < 4; r++) rows[r] = a + size_t(std::min(row + r, end - 1)) * inputs;
    for (int t = 0; t < count; t += 4) {
      const T* in[4];
      for (int i = 0; i < 4; i++) in[i] = x + size_t(tokens[std::min(t + i, count - 1)]) * ldx;
      float z[4][4];
      if (count - t == 1)
        inner_products<T, 1>(in, rows, inputs, z);
      else if (count - t == 2)
        inner_products<T, 2>(in, rows, inputs, z);
      else
        inner_products<T, 4>(in, rows, inputs, z);
      for (int i = 0; i < std::min(4, count - t); i++)
        for (int r = 0; r < std::min(4, end - row); r++) done(tokens[t + i], row + r, z[i][r]);
    }
  }
}

constexpr int EXPAND_TOKENS = 8;

// y_t[0, count) += z_t b[:, 0, count) for TOKENS tokens, count <= 32. z rows are even in length.
template <class T, int TOKENS>
struct Expand {
  static void run(const T* const* z, const T* b, size_t stride, int rank, int count,
                  float* const* y) {
    F16 sums[TOKENS][2] = {};
    for (int r = 0; r < rank; r++, b += stride) {
      const F16 low = load_some(b, count);
      const F16 high = count > LANES ? load_some(b + LANES, count - LANES) : F16{};
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        const F16 in = splat(to_float(z[t][r]));
        sums[t][0] += in * low;
        sums[t][1] += in * high;
      }
    }
    for (int t = 0; t < TOKENS; t++) {
      store_some(y[t], load_some(y[t], count) + sums[t][0], count);
      if (count > LANES)
        store_some(y[t] + LANES, load_some(y[t] + LANES, count - LANES) + sums[t][1],
                   count - LANES);
    }
  }
};

#ifdef MIX_BF16_DOT
template <int TOKENS>
struct Expand<bf16, TOKENS> {
  static void run(const bf16* const* z, const bf16* b, size_t stride, int rank, int count,
                  float* const* y) {
    const __mmask32 mask = first_lanes(count);
    __m512 sums[TOKENS][2];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (int r = 0; r < rank; r += 2, b += 2 * stride) {
      const __m512i one = _mm512_maskz_loadu_epi16(mask, b);
      // Beyond an odd rank z is 0; the row is read twice so that nothing past the pool is.
      const __m512i two = r + 1 < rank ? _mm512_maskz_loadu_epi16(mask, b + stride) : one;
      // Pairs of rows, lane by lane; each 128 bits hold outputs 8i..8i+3, then 8i+4..8i+7.
      const __m512bh low = (__m512bh)_mm512_unpacklo_epi16(one, two);
      const __m512bh high = (__m512bh)_mm512_unpackhi_epi16(one, two);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        const __m512bh in = (__m512bh)_mm512_set1_epi32(load_as<int32_t>(z[t] + r));
        sums[t][0] = _mm512_dpbf16_ps(sums[t][0], in, low);
        sums[t][1] = _mm512_dpbf16_ps(sums[t][1], in, high);
      }
    }
    const __m512i first =
        _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second =
        _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const __mmask16 low = __mmask16(mask), high = __mmask16(mask >> 16);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) {
      const __m512 a = _mm512_permutex2var_ps(sums[t][0], first, sums[t][1]);
      const __m512 c = _mm512_permutex2var_ps(sums[t][0], second, sums[t][1]);
      float* out = y[t];
      _mm512_mask_storeu_ps(out, low, _mm512_add_ps(_mm512_maskz_loadu_ps(low, out), a));
      out += LANES;
      _mm512_mask_storeu_ps(out, high, _mm512_add_ps(_mm512_maskz_loadu_ps(high, out), c));
    }
  }
};
#endif

template <class T>
void expand_tokens(int tokens, const T* const* z, const T* b, size_t stride, int rank, int count,
                   float* const* y) {
  switch (tokens) {
    case 1: return Expand<T, 1>::run(z, b, stride, rank, count, y);
    case 2: return Expand<T, 2>::run(z, b, stride, rank, count, y);
    case 3: return Expand<T, 3>::run(z, b, stride, rank, count, y);
    case 4: return Expand<T, 4>::run(z, b, stride, rank, count, y);
    case 5: return Expand<T, 5>::run(z, b, stride, rank, count, y);
    case 6: return Expand<T, 6>::run(z, b, stride, rank, count, y);
    case 7: return Expand<T, 7>::run(z, b, stride, rank, count, y);
    default: return Expand<T, 8>::run(z, b, stride, rank, count, y);
  }
}

// Adds one expert's part to outputs [begin, end) of a layer: y points at output 0 of token 0.
template <class T>
void expand(const Span& span, const T* z, size_t ldz, const std::vector<int>& tokens, int outputs,
            int begin, int end, float* y, size_t ldy) {
  const T* b = static_cast<const T*>(span.expert.b);
  for (int t = 0; t < int(tokens.size()); t += EXPAND_TOKENS) {
    const int count = std::min(EXPAND_TOKENS, int(tokens.size()) - t);
    for (int output = begin; output < end; output += 2 * LANES) {
      const T* in[EXPAND_TOKENS];
      float* out[EXPAND_TOKENS];
      for (int i = 0; i < count; i++) {
        in[i] = z + tokens[t + i] * ldz + span.offset;
        out[i] = y + tokens[t + i] * ldy + output;
      }
      expand_tokens(count, in, b + output, outputs, span.expert.rank,
                    std::min(2 * LANES, end - output), out);
    }
  }
}

// One token's z from its raw inner products, for any combination (design section 4):
// sum: w z; linear: the ranks of all adapters are added before they are expanded, as in PEFT.
template <class T>
void combine(const Weights& weights, const MixPhase& phase, int row, const float* raw, T* z,
             std::vector<float>& folded) {
  const float* parts[2] = {weights.root, weights.merged_root};
  for (size_t layer = 0; layer + 1 < phase.first.size(); layer++) {
    const Span* begin = phase.spans.data() + phase.first[layer];
    const Span* end = phase.spans.data() + phase.first[layer + 1];
    int widest = 0;
    for (const Span* s = begin; s < end; s++) widest = std::max(widest, s->expert.rank);
    folded.assign(2 * size_t(widest), 0.0f);
    for (const Span* s = begin; s < end; s++)
      for (int p = 0; p < 2; p++) {
        const float c = weights.at(parts[p], row, s->column) * s->expert.scale_root;
        if (c != 0)
          for (int r = 0; r < s->expert.rank; r++) folded[p * widest + r] += c * raw[s->offset + r];
      }
    for (const Span* s = begin; s < end; s++) {
      if (!weights.uses(row, s->column)) continue;
      const float total = weights.at(weights.total, row, s->column);
      const float own = weights.at(weights.root, row, s->column) / s->expert.scale_root;
      const float merged = weights.at(weights.merged_root, row, s->column) / s->expert.scale_root;
      for (int r = 0; r < even(s->expert.rank); r++) {
        const bool inside = r < s->expert.rank;
        const float value = inside ? (total != 0 ? total * raw[s->offset + r] : 0.0f) +
                                         own * folded[r] - merged * folded[widest + r]
                                   : 0.0f;
        store_some(z + s->offset + r, splat(value), 1);
      }
    }
  }
}

}  // namespace mix
