// Vectors of floats as wide as the machine's, and the number formats that are kept in memory.
//
// Everything is written over the compiler's vector extensions; what has an instruction of its own
// in some sets (products of bf16 pairs, of int8 fours) uses it there.
#pragma once

#include "isa.h"

namespace mix::MIX_ISA {

constexpr int LANES = MIX_LANES;

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 {
  uint16_t bits;
};

template <class V>
inline V load_as(const void* source) {
  V value;
  std::memcpy(&value, source, sizeof(V));
  return value;
}

// In so many words: a sum with zeros would be computed, for it turns -0 into 0.
inline Floats splat(float v) {
#if MIX_LANES == 16
  return Floats{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v};
#elif MIX_LANES == 8
  return Floats{v, v, v, v, v, v, v, v};
#else
  return Floats{v, v, v, v};
#endif
}

inline Floats load(const float* source) { return load_as<Floats>(source); }

// Compilers take five instructions to convert such vectors where one does.
inline Floats load(const bf16* source) {
#if defined(__x86_64__) && MIX_LANES == 16
  const Words wide = (Words)_mm512_cvtepu16_epi32(load_as<__m256i>(source)) << 16;
#elif defined(__x86_64__) && MIX_LANES == 8
  const Words wide = (Words)_mm256_cvtepu16_epi32(load_as<__m128i>(source)) << 16;
#else
  const Words wide = __builtin_convertvector(load_as<Halves>(source), Words) << 16;
#endif
  return (Floats)wide;
}

inline void store(float* target, Floats value) { std::memcpy(target, &value, sizeof(value)); }

// Rounds to nearest, ties to even; a NaN stays one.
inline void store(bf16* target, Floats value) {
#if defined(MIX_BF16_DOT) && MIX_LANES == 16
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
  std::memcpy(target, &rounded, sizeof(rounded));
#else
  const Words bits = load_as<Words>(&value);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words quiet = (bits >> 16) | 0x40;
  const Ints is_nan = value != value;
  const Halves half = __builtin_convertvector(is_nan ? quiet : rounded, Halves);
  std::memcpy(target, &half, sizeof(half));
#endif
}

// The first `count` lanes; the others read as 0 and are not written.
template <class T>
inline Floats load_some(const T* source, int count) {
  if (count >= LANES) return load(source);
  T padded[LANES] = {};
  std::memcpy(padded, source, count * sizeof(T));
  return load(padded);
}

template <class T>
inline void store_some(T* target, Floats value, int count) {
  if (count >= LANES) return store(target, value);
  T padded[LANES];
  store(padded, value);
  std::memcpy(target, padded, count * sizeof(T));
}

// What a product with weights in T reads: T where the machine multiplies such pairs, else fp32.
template <class T>
struct ReadBy {
  typedef T Type;
};
#ifndef MIX_BF16_DOT
template <>
struct ReadBy<bf16> {
  typedef float Type;
};
#endif
template <class T>
using Read = typename ReadBy<T>::Type;

inline float to_float(float value) { return value; }

inline float to_float(bf16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// One number, in the format that products read.
inline void put(float* target, float value) { *target = value; }
inline void put(float* target, bf16 value) { *target = to_float(value); }
inline void put(bf16* target, bf16 value) { *target = value; }

#define MIX_SHUFFLE __builtin_shufflevector

constexpr float INFINITE = std::numeric_limits<float>::infinity();

// The same number, or one that sorting can tell from others: a NaN counts as the highest.
inline float orderly(float value) { return value == value ? value : INFINITE; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Lanes that lie half a vector, then a quarter, ... apart are put together.
template <class Join>
inline float fold(Floats v, const Join& join) {
#if MIX_LANES == 16
  v = join(v, MIX_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = join(v, MIX_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = join(v, MIX_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = join(v, MIX_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#elif MIX_LANES == 8
  v = join(v, MIX_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = join(v, MIX_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  v = join(v, MIX_SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6));
#else
  v = join(v, MIX_SHUFFLE(v, v, 2, 3, 0, 1));
  v = join(v, MIX_SHUFFLE(v, v, 1, 0, 3, 2));
#endif
  return v[0];
}

inline float sum(Floats v) {
  return fold(v, [](Floats a, Floats b) { return a + b; });
}

inline float largest(Floats v) { return fold(v, larger); }

// The sums of as many vectors as there are lanes, in their order.
inline Floats sum_each(const Floats* v) {
#if MIX_LANES == 16
  Floats fours[4];  // in each 128 bits: partial sums of four vectors
  for (int i = 0; i < 4; i++, v += 4) {
    Floats pairs[2];
    for (int j = 0; j < 2; j++) {
      const Floats a = v[2 * j], b = v[2 * j + 1];
      pairs[j] =
          MIX_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
          MIX_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    fours[i] = MIX_SHUFFLE(pairs[0], pairs[1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13,
                           28, 29) +
               MIX_SHUFFLE(pairs[0], pairs[1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15,
                           30, 31);
  }
  Floats eights[2];
  for (int i = 0; i < 2; i++) {
    const Floats a = fours[2 * i], b = fours[2 * i + 1];
    eights[i] = MIX_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                MIX_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
  return MIX_SHUFFLE(eights[0], eights[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26,
                     27) +
         MIX_SHUFFLE(eights[0], eights[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30,
                     31);
#elif MIX_LANES == 8
  Floats fours[2];
  for (int i = 0; i < 2; i++, v += 4) {
    const Floats a = MIX_SHUFFLE(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13) +
                     MIX_SHUFFLE(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const Floats b = MIX_SHUFFLE(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13) +
                     MIX_SHUFFLE(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
    fours[i] = MIX_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
               MIX_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return MIX_SHUFFLE(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         MIX_SHUFFLE(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
  const Floats a = MIX_SHUFFLE(v[0], v[1], 0, 4, 1, 5) + MIX_SHUFFLE(v[0], v[1], 2, 6, 3, 7);
  const Floats b = MIX_SHUFFLE(v[2], v[3], 0, 4, 1, 5) + MIX_SHUFFLE(v[2], v[3], 2, 6, 3, 7);
  return MIX_SHUFFLE(a, b, 0, 1, 4, 5) + MIX_SHUFFLE(a, b, 2, 3, 6, 7);
#endif
}
#undef MIX_SHUFFLE

// The same for any number; sums [a multiple of LANES].
template <int COUNT>
inline void sum_all(const Floats* v, float* sums) {
#pragma GCC unroll 16
  for (int i = 0; i < COUNT; i += LANES) {
    Floats some[LANES] = {};
#pragma GCC unroll 16
    for (int j = 0; j < LANES && i + j < COUNT; j++) some[j] = v[i + j];
    store(sums + i, sum_each(some));
  }
}

// e^x to 2 units in the last place; 0 below -87. Source: the Cephes library's expf.
inline Floats exponential(Floats x) {
  const Floats low = splat(-87.3f), high = splat(88.3f);
  const Ints vanishes = x < low;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (x * 1.44269504088896341f + magic) - magic;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return vanishes ? Floats{} : p * load_as<Floats>(&exponent);
}

// x * sigmoid(x); where `exponential` ends, x is large enough to show that, and 0 is exact.
inline Floats silu(Floats x) {
  const Ints vanishes = x < -88.0f;
  return vanishes ? x * 0.0f : x / (1.0f + exponential(-x));
}

}  // namespace mix::MIX_ISA
