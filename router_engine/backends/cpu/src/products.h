// Products with few rows of a matrix that is not packed: adapters' rows, keys and values.
#pragma once

#include "gemm.h"

namespace mix::MIX_ISA {

// Inner products of a row of x and one in T; WIDTH elements at a time.
template <class T>
struct Inner {
  static constexpr int WIDTH = LANES;
  typedef Floats Vector;
  template <class P>
  static Vector read(const P* p) {
    return load(p);
  }
  template <class P>
  static Vector read_some(const P* p, int count) {
    return load_some(p, count);
  }
  static Floats add(Floats sum, Vector a, Vector b) { return sum + a * b; }
};

#if defined(MIX_BF16_DOT) && MIX_LANES == 16
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
  static Floats add(Floats sum, Vector a, Vector b) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, a, b);
  }
};
#elif defined(MIX_BF16_DOT)
template <>
struct Inner<bf16> {
  static constexpr int WIDTH = 2 * LANES;
  typedef bfloat16x8_t Vector;
  static Vector read(const bf16* p) { return load_as<bfloat16x8_t>(p); }
  static Vector read_some(const bf16* p, int count) {
    bf16 padded[WIDTH] = {};
    std::memcpy(padded, p, std::min(count, WIDTH) * sizeof(bf16));
    return read(padded);
  }
  static Floats add(Floats sum, Vector a, Vector b) {
    return (Floats)vbfdotq_f32((float32x4_t)sum, a, b);
  }
};
#endif

constexpr int EXPAND_TOKENS = LANES == 8 ? 4 : 8;  // twice as many sums stay in registers

// Vectors of outputs for so many tokens: the sums of few would wait for each other, and rows of
// short vectors are read in pieces of a line.
constexpr int expand_blocks(int tokens) { return LANES < 16 && tokens <= 2 ? 4 : 2; }
constexpr int expand_width(int tokens) { return expand_blocks(tokens) * LANES; }

// Rows at equal distances, as in the adapter pool. Reading a row fetches what is read later.
template <class T>
struct Strided {
  const T* first;
  const T* later;
  size_t stride;
  const T* operator()(int row) const {
    __builtin_prefetch(later + row * stride, 0, 3);
    return first + row * stride;
  }
};

// y_t[0, count) += z_t b[:, 0, count) for TOKENS tokens, count <= expand_width(TOKENS); b(r) is
// where row r lies. Rows of z are even in length, 0 past an odd rank.
template <class T, int TOKENS>
struct Expand {
  static constexpr int BLOCKS = expand_blocks(TOKENS);

  template <class Rows>
  static void run(const Read<T>* const* z, const Rows& b, int rank, int count, float* const* y) {
    if (count == BLOCKS * LANES)
      run_blocks(z, b, rank, y, [](const auto* from, int) { return load(from); },
                 [](float* to, Floats value, int) { store(to, value); });
    else
      run_blocks(
          z, b, rank, y,
          [count](const auto* from, int begin) {
            return count > begin ? load_some(from, count - begin) : Floats{};
          },
          [count](float* to, Floats value, int begin) {
            if (count > begin) store_some(to, value, count - begin);
          });
  }

 private:
  // read, write: lanes of a block, of which some may lie past the last output.
  template <class Rows, class Reads, class Writes>
  static void run_blocks(const Read<T>* const* z, const Rows& b, int rank, float* const* y,
                         const Reads& read, const Writes& write) {
    Floats sums[TOKENS][BLOCKS] = {};
    for (int r = 0; r < rank; r++) {
      const T* row = b(r);
      Floats weights[BLOCKS];
#pragma GCC unroll 4
      for (int i = 0; i < BLOCKS; i++) weights[i] = read(row + i * LANES, i * LANES);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; t++) {
        const Floats in = splat(to_float(z[t][r]));
#pragma GCC unroll 4
        for (int i = 0; i < BLOCKS; i++) sums[t][i] += in * weights[i];
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++)
#pragma GCC unroll 4
      for (int i = 0; i < BLOCKS; i++) {
        float* out = y[t] + i * LANES;
        write(out, read(out, i * LANES) + sums[t][i], i * LANES);
      }
  }
};

#if defined(MIX_BF16_DOT) && MIX_LANES == 16
template <int TOKENS>
struct Expand<bf16, TOKENS> {
  template <class Rows>
  static void run(const bf16* const* z, const Rows& b, int rank, int count, float* const* y) {
    const __mmask32 mask = first_lanes(count);
    __m512 sums[TOKENS][2];
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (int r = 0; r < rank; r += 2) {
      const __m512i one = _mm512_maskz_loadu_epi16(mask, b(r));
      // Beyond an odd rank z is 0; the row is read twice so that nothing past the pool is.
      const __m512i two = _mm512_maskz_loadu_epi16(mask, b(std::min(r + 1, rank - 1)));
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

template <class T, int TOKENS = EXPAND_TOKENS, class Rows>
void expand_tokens(int tokens, const Read<T>* const* z, const Rows& b, int rank, int count,
                   float* const* y) {
  if constexpr (TOKENS > 1)
    if (tokens < TOKENS) return expand_tokens<T, TOKENS - 1>(tokens, z, b, rank, count, y);
  Expand<T, TOKENS>::run(z, b, rank, count, y);
}

}  // namespace mix::MIX_ISA
