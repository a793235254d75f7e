// y[m, n] = x[m, k] w[n, k]^T over packed weights.
//
// Packed: panels of up to 48 outputs; within a panel what belongs to each output (HEAD elements,
// its scale if it has one), then group after group of GROUP inputs, and for each group one vector a
// block of 16 outputs. A panel is one stream of memory, read once.
// The order of summation of an output depends on k alone: a row's result is the same, bit for bit,
// whatever rows are computed beside it.
#pragma once

#include <algorithm>
#include <climits>

#include "vec.h"

namespace mix {

constexpr int PANEL_BLOCKS = 3;
constexpr int PANEL = PANEL_BLOCKS * LANES;  // outputs
constexpr int CACHE_LINE = 64;                // bytes: one vector
constexpr int AHEAD = 8192;                   // bytes, within a panel: past the latency of memory
constexpr int MAX_ROWS = 8;                  // x 3 blocks = 24 of 32 vector registers

// Starts to bring [from, from + bytes) near: into the second cache, which holds what is to come.
inline void prefetch(const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += CACHE_LINE)
    __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
}

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The rows that are multiplied: row r at first + r * stride.
template <class T>
struct Rows {
  const T* first;
  size_t stride;

  const T* operator[](int r) const { return first + r * stride; }
  Rows from(int r) const { return {first + r * stride, stride}; }
};

// GROUP consecutive inputs are multiplied by one instruction. STRETCH groups are summed as what
// `add` makes of them, before `finish` turns that into a part of the result.
template <class T>
struct Dot;

// Sums that are results, over all inputs at once.
struct PlainSums {
  static constexpr int HEAD = 0;
  static constexpr int STRETCH = INT_MAX;
  typedef F16 Sum;
  template <class T>
  static Sum start(const Rows<T>&, int, int) {
    return F16{};
  }
  template <class T>
  static F16 finish(F16 base, Sum sum, const Rows<T>&, int, int, const T*) {
    return base + sum;
  }
};

template <>
struct Dot<float> : PlainSums {
  static constexpr int GROUP = 1;
  typedef F16 Weights;
  typedef F16 Inputs;
  static Weights weights(const float* w) { return load(w); }
  static Inputs inputs(const float* x) { return splat(*x); }
  static F16 add(F16 sum, Inputs x, Weights w) { return sum + x * w; }
};

#ifdef MIX_BF16_DOT
template <>
struct Dot<bf16> : PlainSums {
  static constexpr int GROUP = 2;
  typedef __m512bh Weights;
  typedef __m512bh Inputs;
  static Weights weights(const bf16* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static Inputs inputs(const bf16* x) {
    return (__m512bh)_mm512_set1_epi32(load_as<int32_t>(x));
  }
  static F16 add(F16 sum, Inputs x, Weights w) {
    return (F16)_mm512_dpbf16_ps((__m512)sum, x, w);
  }
};
#else
template <>
struct Dot<bf16> : PlainSums {
  static constexpr int GROUP = 2;
  struct Weights {
    F16 even, odd;
  };
  struct Inputs {
    F16 even, odd;
  };
  static Weights weights(const bf16* w) {
    const U16 pairs = load_as<U16>(w);
    const U16 even = pairs << 16, odd = pairs & 0xffff0000u;
    return {load_as<F16>(&even), load_as<F16>(&odd)};
  }
  static Inputs inputs(const bf16* x) { return {splat(to_float(x[0])), splat(to_float(x[1]))}; }
  static F16 add(F16 sum, Inputs x, Weights w) { return sum + x.even * w.even + x.odd * w.odd; }
};
#endif

// Elements of the packed form that each output takes.
template <class T>
inline size_t packed_depth(int inputs) {
  constexpr int G = Dot<T>::GROUP;
  return Dot<T>::HEAD + size_t(ceil_div(inputs, G)) * G;
}

// Elements of the packed form of w [outputs, inputs].
template <class T>
inline size_t packed_size(int outputs, int inputs) {
  return size_t(ceil_div(outputs, LANES)) * LANES * packed_depth<T>(inputs);
}

// Calls visit(element, output, input) for the weights of a packed panel of n outputs, k inputs;
// outputs and inputs that only fill it up have the index -1.
template <class T, class Visit>
void each_packed(T* panel, int n, int k, const Visit& visit) {
  constexpr int G = Dot<T>::GROUP;
  const int lanes = ceil_div(n, LANES) * LANES;
  panel += lanes * Dot<T>::HEAD;
  for (int group = 0; group < ceil_div(k, G); group++)
    for (int lane = 0; lane < lanes; lane++)
      for (int i = 0; i < G; i++) {
        const int input = group * G + i;
        visit(*panel++, lane < n ? lane : -1, input < k ? input : -1);
      }
}

// What a tile fetches meanwhile, for a later one: memory streams while products are computed.
struct Ahead {
  const char* from;
  int lines;  // a group of inputs

  void fetch(int group) const {
    for (int i = 0; i < lines; i++)
      __builtin_prefetch(from + (size_t(group) * lines + i) * CACHE_LINE, 0, 2);
  }
};

// Rows of y [ROWS, 16 BLOCKS] at stride `ldy`, set or added to.
template <class T, int ROWS, int BLOCKS>
void multiply_tile(const Rows<T>& x, const T* panel, int groups, float* y, size_t ldy, bool add,
                   Ahead ahead) {
  typedef Dot<T> D;
  const T* heads = panel;
  panel += BLOCKS * LANES * D::HEAD;
  for (int g = 0, stretch = 0; g < groups; stretch++, add = true) {
    const int end = groups - g > D::STRETCH ? g + D::STRETCH : groups;
    // The sums stay in registers only if every loop over them is unrolled.
    typename D::Sum sums[ROWS][BLOCKS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
      for (int b = 0; b < BLOCKS; b++) sums[r][b] = D::start(x, r, stretch);
    for (; g < end; g++) {
      typename D::Weights w[BLOCKS];
#pragma GCC unroll 3
      for (int b = 0; b < BLOCKS; b++) w[b] = D::weights(panel + b * LANES * D::GROUP);
      ahead.fetch(g);
      panel += BLOCKS * LANES * D::GROUP;
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const typename D::Inputs in = D::inputs(x[r] + g * D::GROUP);
#pragma GCC unroll 3
        for (int b = 0; b < BLOCKS; b++) sums[r][b] = D::add(sums[r][b], in, w[b]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
      for (int b = 0; b < BLOCKS; b++) {
        float* target = y + r * ldy + b * LANES;
        const F16 base = add ? load(target) : F16{};
        store(target, D::finish(base, sums[r][b], x, r, stretch, heads + b * LANES * D::HEAD));
      }
  }
}

template <class T, int BLOCKS>
void multiply_rows(int rows, const Rows<T>& x, const T* panel, int groups, float* y, size_t ldy,
                   bool add, Ahead ahead) {
  switch (rows) {
    case 1: return multiply_tile<T, 1, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
    case 2: return multiply_tile<T, 2, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
    case 3: return multiply_tile<T, 3, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
    case 4: return multiply_tile<T, 4, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
    case 5: return multiply_tile<T, 5, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
    case 6: return multiply_tile<T, 6, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
    case 7: return multiply_tile<T, 7, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
    default: return multiply_tile<T, 8, BLOCKS>(x, panel, groups, y, ldy, add, ahead);
  }
}

// Few rows fetch their own panel ahead; many fetch the next one while they are at it.
// y [rows, 16 blocks] = or += x [rows, k] panel^T. Rows of x hold a whole number of groups.
template <class T>
void multiply_panel(int rows, const Rows<T>& x, const T* panel, int blocks, int k, float* y,
                    size_t ldy, bool add) {
  const int groups = ceil_div(k, Dot<T>::GROUP), passes = ceil_div(rows, MAX_ROWS);
  const size_t bytes = blocks * LANES * packed_depth<T>(k) * sizeof(T);
  Ahead ahead = {reinterpret_cast<const char*>(panel) + (passes == 1 ? AHEAD : bytes),
                 ceil_div(blocks, passes)};
  for (int tiles = passes, first = 0; tiles > 0; tiles--) {
    const int count = ceil_div(rows - first, tiles);  // tiles of nearly equal height
    const Rows<T> in = x.from(first);
    float* out = y + first * ldy;
    if (blocks == 3)
      multiply_rows<T, 3>(count, in, panel, groups, out, ldy, add, ahead);
    else if (blocks == 2)
      multiply_rows<T, 2>(count, in, panel, groups, out, ldy, add, ahead);
    else
      multiply_rows<T, 1>(count, in, panel, groups, out, ldy, add, ahead);
    first += count;
    ahead.from += size_t(groups) * ahead.lines * CACHE_LINE;
    if (ahead.from >= reinterpret_cast<const char*>(panel) + 2 * bytes) ahead.lines = 0;
  }
}

}  // namespace mix
