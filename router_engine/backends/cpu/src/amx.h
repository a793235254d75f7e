// Products by AMX: tiles of 16 rows by 16 outputs, 64 bytes of inputs an instruction.
//
// A block of packed weights is a tile as it lies: a row of 64 bytes for each group of inputs.
#pragma once

#include "int8.h"
#include "tiles.h"

#if defined(MIX_AMX)

namespace mix::MIX_ISA {

// C tiles, one a block, are 0 to 2. A reads rows of x, B weights; both have a form for the groups
// that a depth leaves over.
constexpr int CHUNK_GROUPS = 128;  // of a panel that stays in the first cache while rows pass

// The compiler's own names for these instructions take no template's argument as a tile.
template <int TILE>
inline void load_tile(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline void store_tile(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

// The instruction of a format: C += A B.
template <class T>
struct TileDot;

template <>
struct TileDot<bf16> {
  template <int C, int A, int B>
  static void add() {
    asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(B), "i"(A), "i"(C));
  }
};

template <>
struct TileDot<int8> {  // signed inputs, unsigned weights
  template <int C, int A, int B>
  static void add() {
    asm volatile("tdpbsud %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(B), "i"(A), "i"(C));
  }
};

// One step of 64 bytes of inputs for all blocks, with tiles A and B, B + 1 in turn.
template <class T, int BLOCKS, int A, int B, int TURNS>
inline void tile_step(const void* x, size_t x_bytes, const char* w) {
  constexpr int STRIDE = BLOCKS * TILE_BYTES;
  load_tile<A>(x, x_bytes);
  load_tile<B>(w, STRIDE);
  TileDot<T>::template add<0, A, B>();
  if constexpr (BLOCKS > 1) {
    load_tile<B + TURNS>(w + TILE_BYTES, STRIDE);
    TileDot<T>::template add<1, A, B + TURNS>();
  }
  if constexpr (BLOCKS > 2) {
    load_tile<B>(w + 2 * TILE_BYTES, STRIDE);
    TileDot<T>::template add<2, A, B>();
  }
}

template <int BLOCKS>
inline void clear_tiles() {
  clear_tile<0>();
  if constexpr (BLOCKS > 1) clear_tile<1>();
  if constexpr (BLOCKS > 2) clear_tile<2>();
}

template <int BLOCKS>
inline void load_tiles(const float* y, size_t ldy) {
  load_tile<0>(y, ldy * sizeof(float));
  if constexpr (BLOCKS > 1) load_tile<1>(y + LANES, ldy * sizeof(float));
  if constexpr (BLOCKS > 2) load_tile<2>(y + 2 * LANES, ldy * sizeof(float));
}

template <int BLOCKS>
inline void store_tiles(void* y, size_t bytes) {
  char* target = static_cast<char*>(y);
  store_tile<0>(target, bytes);
  if constexpr (BLOCKS > 1) store_tile<1>(target + TILE_BYTES, bytes);
  if constexpr (BLOCKS > 2) store_tile<2>(target + 2 * TILE_BYTES, bytes);
}

// Groups [begin, end) of a panel, for up to 16 rows.
template <int BLOCKS>
void tile_rows(const Rows<bf16>& x, const bf16* panel, int begin, int end, float* y, size_t ldy,
               bool add, Ahead ahead) {
  add ? load_tiles<BLOCKS>(y, ldy) : clear_tiles<BLOCKS>();
  const size_t x_bytes = x.stride * sizeof(bf16);
  int g = begin;
  const auto weights = [&](int group) {
    return reinterpret_cast<const char*>(panel) + size_t(group) * BLOCKS * TILE_BYTES;
  };
  for (; g + TILE_ROWS <= end; g += TILE_ROWS) {
    for (int i = 0; i < TILE_ROWS; i++) ahead.fetch(g + i);
    tile_step<bf16, BLOCKS, 3, 4, 1>(x[0] + 2 * g, x_bytes, weights(g));
  }
  if (g < end) tile_step<bf16, BLOCKS, 6, 7, 0>(x[0] + 2 * g, x_bytes, weights(g));
  store_tiles<BLOCKS>(y, ldy * sizeof(float));
}

template <int BLOCKS>
void tile_panel(int rows, const Rows<bf16>& x, const bf16* panel, int k, float* y, size_t ldy,
                bool add) {
  const int groups = ceil_div(k, 2), passes = ceil_div(rows, TILE_ROWS);
  const char* begin = reinterpret_cast<const char*>(panel);
  constexpr int GROUP_BYTES = BLOCKS * TILE_BYTES;
  const size_t bytes = size_t(groups) * GROUP_BYTES;
  for (int chunk = 0; chunk < groups; chunk += CHUNK_GROUPS, add = true) {
    const int end = std::min(groups, chunk + CHUNK_GROUPS);
    Ahead ahead = {begin + (passes == 1 ? AHEAD : bytes), size_t(ceil_div(GROUP_BYTES, passes))};
    for (int first = 0; first < rows; first += TILE_ROWS) {
      Tiles::shape(std::min(TILE_ROWS, rows - first), groups % TILE_ROWS);
      tile_rows<BLOCKS>(x.from(first), panel, chunk, end, y + first * ldy, ldy, add, ahead);
      ahead.pass(groups, begin + 2 * bytes);
    }
  }
}

// A stretch of inputs is a tile's depth: its sums leave the tiles before they are scaled.
template <int BLOCKS>
void tile_stretch(const Rows<int8>& x, const int8* heads, const char* w, int stretch, int groups,
                  int rows, float* y, size_t ldy, bool add) {
  alignas(64) int32_t sums[TILE_ROWS][BLOCKS * LANES];
  clear_tiles<BLOCKS>();
  const Int8Form::Input* in = x[0] + size_t(stretch) * STRETCH_INPUTS;
  if (groups == TILE_ROWS)
    tile_step<int8, BLOCKS, 3, 4, 1>(in, x.stride, w);
  else
    tile_step<int8, BLOCKS, 6, 7, 0>(in, x.stride, w);
  store_tiles<BLOCKS>(sums, sizeof(sums[0]));
  for (int r = 0; r < rows; r++)
    for (int b = 0; b < BLOCKS; b++) {
      float* target = y + r * ldy + b * LANES;
      const Floats base = add ? load(target) : Floats{};
      const Ints sum = load_as<Ints>(sums[r] + b * LANES) + x.offsets[r * x.stretches + stretch];
      store(target, Dot<int8>::finish(base, sum, x, r, stretch,
                                      heads + b * LANES * Dot<int8>::HEAD));
    }
}

template <int BLOCKS>
void tile_panel(int rows, const Rows<int8>& x, const int8* panel, int k, float* y, size_t ldy,
                bool add) {
  const int groups = ceil_div(k, Dot<int8>::GROUP);
  const char* w = reinterpret_cast<const char*>(panel + BLOCKS * LANES * Dot<int8>::HEAD);
  prefetch(w + size_t(groups) * BLOCKS * TILE_BYTES, size_t(groups) * BLOCKS * TILE_BYTES);
  for (int first = 0; first < rows; first += TILE_ROWS) {
    const int count = std::min(TILE_ROWS, rows - first);
    Tiles::shape(count, groups % TILE_ROWS);
    bool adds = add;
    for (int stretch = 0; stretch * TILE_ROWS < groups; stretch++, adds = true)
      tile_stretch<BLOCKS>(x.from(first), panel, w + size_t(stretch) * TILE_ROWS * BLOCKS * TILE_BYTES,
                           stretch, std::min(TILE_ROWS, groups - stretch * TILE_ROWS), count,
                           y + first * ldy, ldy, adds);
  }
}

// A panel of the width that is asked for.
template <class T>
void tile_blocks(int rows, const Rows<T>& x, const T* panel, int blocks, int k, float* y,
                 size_t ldy, bool add) {
  if (blocks == 3) return tile_panel<3>(rows, x, panel, k, y, ldy, add);
  if (blocks == 2) return tile_panel<2>(rows, x, panel, k, y, ldy, add);
  tile_panel<1>(rows, x, panel, k, y, ldy, add);
}

template <>
inline void multiply_panel<bf16>(int rows, const Rows<bf16>& x, const bf16* panel, int blocks,
                                 int k, float* y, size_t ldy, bool add) {
  tile_blocks(rows, x, panel, blocks, k, y, ldy, add);
}

template <>
inline void multiply_panel<int8>(int rows, const Rows<int8>& x, const int8* panel, int blocks,
                                 int k, float* y, size_t ldy, bool add) {
  if (rows < TILE_ROWS / 2) return multiply_vectors(rows, x, panel, blocks, k, y, ldy, add);
  tile_blocks(rows, x, panel, blocks, k, y, ldy, add);
}

}  // namespace mix::MIX_ISA

#endif
