// y[m, n] = x[m, k] w[n, k]^T over packed weights.
//
// Packed: panels of some blocks of outputs, as many as a tile of the instruction set takes; within
// a panel what belongs to each output (HEAD elements, its scale if it has one), then group after
// group of GROUP inputs, and for each group one vector a block. A panel is one stream of memory,
// read once.
// The order of summation of an output depends on k alone: a row's result is the same, bit for bit,
// whatever rows are computed beside it.
#pragma once

#include "vec.h"

namespace mix::MIX_ISA {

constexpr int PANEL_BLOCKS = MIX_TILE_BLOCKS;
constexpr int PANEL = PANEL_BLOCKS * LANES;  // outputs
constexpr int CACHE_LINE = 64;               // bytes
constexpr int AHEAD = 8192;                  // bytes, within a panel: past the latency of memory
constexpr int MAX_ROWS = MIX_TILE_ROWS;

// Starts to bring [from, from + bytes) near: into the second cache, which holds what is to come.
inline void prefetch(const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += CACHE_LINE)
    __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
}

inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The rows that are multiplied by weights in T: row r at first + r * stride.
template <class T>
struct Rows {
  const Read<T>* first;
  size_t stride;

  const Read<T>* operator[](int r) const { return first + r * stride; }
  Rows from(int r) const { return {first + r * stride, stride}; }
};

// GROUP consecutive inputs lie together; one instruction multiplies one of the PARTS of such a
// group. STRETCH groups are summed as what `add` makes of them, before `finish` turns that into a
// part of the result.
template <class T>
struct Dot;

// Sums that are results, over all inputs at once.
struct PlainSums {
  static constexpr int HEAD = 0;
  static constexpr int STRETCH = INT_MAX;
  typedef Floats Sum;
  template <class T>
  static Sum start(const Rows<T>&, int, int) {
    return Floats{};
  }
  template <class T>
  static Floats finish(Floats base, Sum sum, const Rows<T>&, int, int, const T*) {
    return base + sum;
  }
};

template <>
struct Dot<float> : PlainSums {
  static constexpr int GROUP = 1;
  static constexpr int PARTS = 1;
  typedef Floats Weights;
  typedef Floats Inputs;
  static Weights weights(const float* w, int) { return load(w); }
  static Inputs inputs(const float* x, int) { return splat(*x); }
  static Floats add(Floats sum, Inputs x, Weights w) { return sum + x * w; }
};

template <>
struct Dot<bf16> : PlainSums {
  static constexpr int GROUP = 2;
#if defined(MIX_BF16_DOT) && MIX_LANES == 16
  static constexpr int PARTS = 1;
  typedef __m512bh Weights;
  typedef __m512bh Inputs;
  static Weights weights(const bf16* w, int) { return (__m512bh)_mm512_loadu_si512(w); }
  static Inputs inputs(const bf16* x, int) {
    return (__m512bh)_mm512_set1_epi32(load_as<int32_t>(x));
  }
  static Floats add(Floats sum, Inputs x, Weights w) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, x, w);
  }
#elif defined(MIX_BF16_DOT)
  static constexpr int PARTS = 1;
  typedef bfloat16x8_t Weights;
  typedef bfloat16x8_t Inputs;
  static Weights weights(const bf16* w, int) { return load_as<bfloat16x8_t>(w); }
  static Inputs inputs(const bf16* x, int) {
    return vreinterpretq_bf16_s32(vdupq_n_s32(load_as<int32_t>(x)));
  }
  static Floats add(Floats sum, Inputs x, Weights w) {
    return (Floats)vbfdotq_f32((float32x4_t)sum, w, x);
  }
#else
  // Pairs widen by a shift, or by clearing what the other is: each half is a vector in fp32.
  static constexpr int PARTS = 2;
  typedef Floats Weights;
  typedef Floats Inputs;
  static Weights weights(const bf16* w, int part) {
    const Words pairs = load_as<Words>(w);
    const Words wide = part ? pairs & 0xffff0000u : pairs << 16;
    return (Floats)wide;
  }
  static Inputs inputs(const float* x, int part) { return splat(x[part]); }
  static Floats add(Floats sum, Inputs x, Weights w) { return sum + x * w; }
#endif
};

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
  size_t step;  // bytes a group of inputs, of three lines at most; 0: nothing new

  // `further`: bytes to another stream that goes on beside this one.
  void fetch(int group, size_t further = 0) const {
    const char* at = from + further + group * step;
    __builtin_prefetch(at, 0, 2);
    if (step > CACHE_LINE) __builtin_prefetch(at + CACHE_LINE, 0, 2);
    if (step > 2 * CACHE_LINE) __builtin_prefetch(at + 2 * CACHE_LINE, 0, 2);
  }

  // After a tile of so many groups; nothing is fetched past `end`.
  void pass(int groups, const char* end) {
    from += groups * step;
    if (from >= end) from = end, step = 0;
  }
};

// Rows of x as a tile walks through them: a pointer for three rows, since an instruction reaches
// those one or two strides further without arithmetic.
template <class X, int ROWS>
struct Walk {
  static constexpr int EACH = 3;
  const X* at[(ROWS + EACH - 1) / EACH];
  size_t stride;

  template <class T>
  explicit Walk(const Rows<T>& x) : stride(x.stride) {
    for (int i = 0; i * EACH < ROWS; i++) {
      at[i] = x[i * EACH];
      asm("" : "+r"(at[i]));  // else the compiler finds them all from the first, by adding
    }
  }
  const X* operator[](int r) const { return at[r / EACH] + r % EACH * stride; }
  void advance(int inputs) {
#pragma GCC unroll 3
    for (int i = 0; i * EACH < ROWS; i++) at[i] += inputs;
  }
};

// Rows of y [ROWS, LANES BLOCKS SIDE] at stride `ldy`, set or added to, by SIDE panels that lie
// `apart` elements from each other.
template <class T, int ROWS, int BLOCKS, int SIDE = 1>
void multiply_tile(const Rows<T>& x, const T* panel, size_t apart, int groups, float* y, size_t ldy,
                   bool add, Ahead ahead) {
  typedef Dot<T> D;
  constexpr int WIDE = SIDE * BLOCKS;
  const auto block = [apart](const T* from, int b, int elements) {
    return from + b / BLOCKS * apart + b % BLOCKS * LANES * elements;
  };
  const T* heads = panel;
  Walk<std::remove_const_t<std::remove_pointer_t<decltype(x.first)>>, ROWS> in(x);
  panel += BLOCKS * LANES * D::HEAD;
  for (int g = 0, stretch = 0; g < groups; stretch++, add = true) {
    const int end = groups - g > D::STRETCH ? g + D::STRETCH : groups;
    // The sums stay in registers only if every loop over them is unrolled.
    typename D::Sum sums[ROWS][WIDE];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
      for (int b = 0; b < WIDE; b++) sums[r][b] = D::start(x, r, stretch);
    for (; g < end; g++) {
#pragma GCC unroll 4
      for (int side = 0; side < SIDE; side++) ahead.fetch(g, side * apart * sizeof(T));
#pragma GCC unroll 2
      for (int part = 0; part < D::PARTS; part++) {
        typename D::Weights w[WIDE];
#pragma GCC unroll 16
        for (int b = 0; b < WIDE; b++) w[b] = D::weights(block(panel, b, D::GROUP), part);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
          const typename D::Inputs one = D::inputs(in[r], part);
#pragma GCC unroll 16
          for (int b = 0; b < WIDE; b++) sums[r][b] = D::add(sums[r][b], one, w[b]);
        }
      }
      panel += BLOCKS * LANES * D::GROUP;
      in.advance(D::GROUP);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
      for (int b = 0; b < WIDE; b++) {
        float* target = y + r * ldy + b * LANES;
        const Floats base = add ? load(target) : Floats{};
        store(target, D::finish(base, sums[r][b], x, r, stretch, block(heads, b, D::HEAD)));
      }
  }
}

// A tile of the height and width that are asked for.
template <class T, int ROWS = MAX_ROWS, int BLOCKS = PANEL_BLOCKS>
void multiply_rows(int rows, int blocks, const Rows<T>& x, const T* panel, int groups, float* y,
                   size_t ldy, bool add, Ahead ahead) {
  if constexpr (BLOCKS > 1)
    if (blocks < BLOCKS)
      return multiply_rows<T, ROWS, BLOCKS - 1>(rows, blocks, x, panel, groups, y, ldy, add, ahead);
  if constexpr (ROWS > 1)
    if (rows < ROWS)
      return multiply_rows<T, ROWS - 1, BLOCKS>(rows, blocks, x, panel, groups, y, ldy, add, ahead);
  multiply_tile<T, ROWS, BLOCKS>(x, panel, 0, groups, y, ldy, add, ahead);
}

// y [rows, LANES blocks] = or += x [rows, k] panel^T. Rows of x hold a whole number of groups.
// Few rows fetch their own panel ahead; many fetch the next one while they are at it.
template <class T>
void multiply_vectors(int rows, const Rows<T>& x, const T* panel, int blocks, int k, float* y,
                    size_t ldy, bool add) {
  const int groups = ceil_div(k, Dot<T>::GROUP), passes = ceil_div(rows, MAX_ROWS);
  const size_t bytes = blocks * LANES * packed_depth<T>(k) * sizeof(T);
  const int group_bytes = int(blocks * LANES * Dot<T>::GROUP * sizeof(T));
  const char* begin = reinterpret_cast<const char*>(panel);
  Ahead ahead = {begin + (passes == 1 ? AHEAD : bytes), size_t(ceil_div(group_bytes, passes))};
  for (int tiles = passes, first = 0; tiles > 0; tiles--) {
    const int count = ceil_div(rows - first, tiles);  // tiles of nearly equal height
    multiply_rows<T>(count, blocks, x.from(first), panel, groups, y + first * ldy, ldy, add, ahead);
    first += count;
    ahead.pass(groups, begin + 2 * bytes);
  }
}

// The same by whatever the set multiplies panels with; see amx.h.
template <class T>
void multiply_panel(int rows, const Rows<T>& x, const T* panel, int blocks, int k, float* y,
                    size_t ldy, bool add) {
  multiply_vectors(rows, x, panel, blocks, k, y, ldy, add);
}

// Panels that the rows beyond whole tiles are multiplied by at once. A sum waits for the one before
// it: only as many sums as there are registers keep the units busy, and one row of a panel has a
// few. With 16 lanes these few take all that memory gives, and further streams of it are slower.
// Beyond three rows or more tiles of nearly equal height do as well.
constexpr int side_by_side(int rows, int panels) {
  constexpr int SUMS = MIX_TILE_ROWS * MIX_TILE_BLOCKS;
  const int rest = rows % MAX_ROWS;
  const bool is_even = rest == 0 || (rows > MAX_ROWS && rest > 2);
  int side = LANES == 16 || is_even ? 1 : 4;
  while (side > 1 && (side > panels || rest * side * PANEL_BLOCKS > SUMS)) side /= 2;
  return side;
}

// The same for few rows by as many panels at once as `side_by_side` says.
template <class T, int ROWS = MAX_ROWS / 2, int SIDE = 4>
void multiply_beside(int rows, int side, const Rows<T>& x, const T* packed, int k, float* y,
                     size_t ldy, bool add) {
  if constexpr (ROWS > 1)
    if (rows < ROWS)
      return multiply_beside<T, ROWS - 1, SIDE>(rows, side, x, packed, k, y, ldy, add);
  if constexpr (SIDE > 2)
    if (side < SIDE)
      return multiply_beside<T, ROWS, SIDE / 2>(rows, side, x, packed, k, y, ldy, add);
  if constexpr (side_by_side(ROWS, SIDE) == SIDE) {
    const size_t apart = PANEL * packed_depth<T>(k);
    // Fetched is the same place of the panels after these.
    const Ahead ahead = {reinterpret_cast<const char*>(packed + SIDE * apart),
                         PANEL * Dot<T>::GROUP * sizeof(T)};
    multiply_tile<T, ROWS, PANEL_BLOCKS, SIDE>(x, packed, apart, ceil_div(k, Dot<T>::GROUP), y, ldy,
                                               add, ahead);
  }
}

// y [rows, outputs] = or += x packed^T, by all its panels.
template <class T>
void multiply_panels(int rows, const Rows<T>& x, const T* packed, int outputs, int k, float* y,
                     size_t ldy, bool add) {
  if (rows == 0) return;  // of a step that samples nothing
  const size_t depth = packed_depth<T>(k);
  for (int output = 0, side; output < outputs; output += side * PANEL) {
    const T* panel = packed + output * depth;
    const auto multiply_one = [&](int count, int beside, int blocks) {
      multiply_panel(count, x, panel + beside * PANEL * depth, blocks, k,
                     y + output + beside * PANEL, ldy, add);
    };
    side = side_by_side(rows, (outputs - output) / PANEL);
    if (side == 1) {
      multiply_one(rows, 0, ceil_div(std::min(PANEL, outputs - output), LANES));
      continue;
    }
    const int whole = rows - rows % MAX_ROWS;
    for (int beside = 0; whole > 0 && beside < side; beside++)
      multiply_one(whole, beside, PANEL_BLOCKS);
    multiply_beside(rows - whole, side, x.from(whole), panel, k, y + whole * ldy + output, ldy,
                    add);
  }
}

}  // namespace mix::MIX_ISA
