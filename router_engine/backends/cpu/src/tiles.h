// The shapes of AMX tiles, which are a thread's own, and which other libraries set for themselves.
#pragma once

#include "isa.h"

namespace mix::MIX_ISA {

#if defined(MIX_AMX)

constexpr int TILE_ROWS = 16;
constexpr int TILE_BYTES = 64;

class Tiles {
 public:
  // Tiles 0 to 3 have `rows` rows, 4 and 5 are whole; 6 and 7 are for the `rest` of a depth: rows of
  // that many groups of inputs, and as many groups of weights. Set only when it changes, which
  // costs as much as some products.
  static void shape(int rows, int rest) {
    if (rows == rows_ && rest == rest_) return;
    rows_ = rows, rest_ = rest;
    Config config;
    const auto set = [&](int tile, int tile_rows, int bytes) {
      config.rows[tile] = uint8_t(tile_rows);
      config.bytes[tile] = uint16_t(bytes);
    };
    for (int tile = 0; tile < 4; tile++) set(tile, rows, TILE_BYTES);
    for (int tile = 4; tile < 6; tile++) set(tile, TILE_ROWS, TILE_BYTES);
    if (rest > 0) {
      set(6, rows, rest * 4);
      set(7, rest, TILE_BYTES);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }

  // At the end of what a thread does for us: what it runs then may shape them anew.
  static void release() {
    if (rows_ < 0) return;
    rows_ = rest_ = -1;
    asm volatile("tilerelease");
  }

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  };

  static inline thread_local int rows_ = -1, rest_ = -1;
};

#else

struct Tiles {
  static void release() {}
};

#endif

}  // namespace mix::MIX_ISA
