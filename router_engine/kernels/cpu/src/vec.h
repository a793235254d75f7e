// Vectors of 16 floats, and the number formats that are kept in memory.
//
// Everything is written over GCC's vector extensions, so that it runs on any machine; where
// AVX-512 BF16 or VNNI are there, products of bf16 pairs or of int8 fours use their instruction.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
#include <immintrin.h>
#define MIX_BF16_DOT 1
#endif

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define MIX_INT8_DOT 1
#endif

namespace mix {

constexpr int LANES = 16;

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));

struct bf16 {
  uint16_t bits;
};

template <class V>
inline V load_as(const void* source) {
  V value;
  std::memcpy(&value, source, sizeof(V));
  return value;
}

inline F16 splat(float value) { return F16{} + value; }

inline F16 load(const float* source) { return load_as<F16>(source); }

inline F16 load(const bf16* source) {
  const U16 wide = __builtin_convertvector(load_as<H16>(source), U16) << 16;
  return load_as<F16>(&wide);
}

inline void store(float* target, F16 value) { std::memcpy(target, &value, sizeof(value)); }

// Rounds to nearest, ties to even; a NaN stays one.
inline void store(bf16* target, F16 value) {
#ifdef MIX_BF16_DOT
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
  std::memcpy(target, &rounded, sizeof(rounded));
#else
  const U16 bits = load_as<U16>(&value);
  const U16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U16 quiet = (bits >> 16) | 0x40;
  const I16 is_nan = value != value;
  const H16 half = __builtin_convertvector(is_nan ? quiet : rounded, H16);
  std::memcpy(target, &half, sizeof(half));
#endif
}

// The first `count` of 16 lanes; the others read as 0 and are not written.
template <class T>
inline F16 load_some(const T* source, int count) {
  if (count >= LANES) return load(source);
  T padded[LANES] = {};
  std::memcpy(padded, source, count * sizeof(T));
  return load(padded);
}

template <class T>
inline void store_some(T* target, F16 value, int count) {
  if (count >= LANES) return store(target, value);
  T padded[LANES];
  store(padded, value);
  std::memcpy(target, padded, count * sizeof(T));
}

inline float to_float(float value) { return value; }

inline float to_float(bf16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline float sum(F16 v) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int i = 0; i < LANES; i++) total += v[i];
  return total;
#endif
}

// The sums of 16 vectors, in their order.
inline F16 sum_each(const F16* v) {
#define MIX_SHUFFLE __builtin_shufflevector
  F16 fours[4];  // in each 128 bits: partial sums of four vectors
  for (int i = 0; i < 4; i++, v += 4) {
    F16 pairs[2];
    for (int j = 0; j < 2; j++) {
      const F16 a = v[2 * j], b = v[2 * j + 1];
      pairs[j] =
          MIX_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
          MIX_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    fours[i] = MIX_SHUFFLE(pairs[0], pairs[1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13,
                           28, 29) +
               MIX_SHUFFLE(pairs[0], pairs[1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15,
                           30, 31);
  }
  F16 eights[2];
  for (int i = 0; i < 2; i++) {
    const F16 a = fours[2 * i], b = fours[2 * i + 1];
    eights[i] = MIX_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                MIX_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  return MIX_SHUFFLE(eights[0], eights[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26,
                     27) +
         MIX_SHUFFLE(eights[0], eights[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30,
                     31);
#undef MIX_SHUFFLE
}

inline F16 larger(F16 a, F16 b) { return a > b ? a : b; }

inline float largest(F16 v) {
  float result = v[0];
  for (int i = 1; i < LANES; i++) result = v[i] > result ? v[i] : result;
  return result;
}

// e^x to 2 units in the last place; 0 below -87. Source: the Cephes library's expf.
inline F16 exponential(F16 x) {
  const F16 low = splat(-87.3f), high = splat(88.3f);
  const I16 vanishes = x < low;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const F16 magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F16 n = (x * 1.44269504088896341f + magic) - magic;
  const F16 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  F16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const I16 exponent = (__builtin_convertvector(n, I16) + 127) << 23;
  return vanishes ? F16{} : p * load_as<F16>(&exponent);
}

// x * sigmoid(x)
inline F16 silu(F16 x) { return x / (1.0f + exponential(-x)); }

}  // namespace mix
