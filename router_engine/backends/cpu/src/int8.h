// Products of 8-bit integers: weights with one scale an output, inputs with one for each row and
// stretch of 64. The sums of a stretch are exact in 32 bits, so every instruction set has the same.
#pragma once

#include "gemm.h"

namespace mix::MIX_ISA {

// How a set multiplies integers: GROUP of them that lie together, inputs as wide as `Input`.
#if MIX_INT8 == MIX_INT8_VNNI
// The instruction multiplies unsigned by signed bytes. Weights are packed BIAS too high, and the
// sums of a row's stretch start BIAS times the sum of its inputs too low.
struct Int8Form {
  static constexpr int GROUP = 4, BIAS = 128;
  typedef int8_t Input;
  typedef Ints Weights;
  static Weights weights(const void* w) { return load_as<Ints>(w); }
  static Ints inputs(const Input* x) { return Ints{} + load_as<int32_t>(x); }
  static Ints add(Ints sum, Ints x, Weights w) {
#if MIX_LANES == 16
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#else
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#endif
  }
};
#elif MIX_INT8 == MIX_INT8_PAIRS
// Weights widen to 16 bits on their way in: products of bytes would saturate when they are added.
struct Int8Form {
  static constexpr int GROUP = 2, BIAS = 0;
  typedef int16_t Input;
#if MIX_LANES == 16
  typedef __m512i Weights;
  static Weights weights(const void* w) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(w)));
  }
  static Ints add(Ints sum, Ints x, Weights w) {
    return sum + (Ints)_mm512_madd_epi16((__m512i)x, w);
  }
#else
  typedef __m256i Weights;
  static Weights weights(const void* w) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(w)));
  }
  static Ints add(Ints sum, Ints x, Weights w) {
    return sum + (Ints)_mm256_madd_epi16((__m256i)x, w);
  }
#endif
  static Ints inputs(const Input* x) { return Ints{} + load_as<int32_t>(x); }
};
#elif MIX_INT8 == MIX_INT8_DOT
struct Int8Form {
  static constexpr int GROUP = 4, BIAS = 0;
  typedef int8_t Input;
  typedef int8x16_t Weights;
  static Weights weights(const void* w) { return load_as<int8x16_t>(w); }
  static Ints inputs(const Input* x) { return (Ints)vdupq_n_s32(load_as<int32_t>(x)); }
  static Ints add(Ints sum, Ints x, Weights w) {
    return (Ints)vdotq_s32((int32x4_t)sum, w, (int8x16_t)x);
  }
};
#else
struct Int8Form {
  static constexpr int GROUP = 1, BIAS = 0;
  typedef int32_t Input;
  typedef Ints Weights;
  typedef int8_t Bytes __attribute__((vector_size(LANES)));
  static Weights weights(const void* w) {
    return __builtin_convertvector(load_as<Bytes>(w), Ints);
  }
  static Ints inputs(const Input* x) { return Ints{} + *x; }
  static Ints add(Ints sum, Ints x, Weights w) { return sum + x * w; }
};
#endif

// A packed weight, BIAS more than it is.
struct int8 {
  uint8_t bits;
};

template <>
struct Rows<int8> {
  typedef Int8Form::Input Input;
  const Input* first;
  size_t stride;
  const float* scales;  // [rows, stretches]
  const int32_t* offsets;
  int stretches;

  const Input* operator[](int r) const { return first + r * stride; }
  Rows from(int r) const {
    const size_t at = size_t(r) * stretches;
    return {first + r * stride, stride, scales + at, offsets + at, stretches};
  }
};

constexpr int STRETCH_INPUTS = 64;

template <>
struct Dot<int8> {
  static constexpr int GROUP = Int8Form::GROUP;
  static constexpr int PARTS = 1;
  static constexpr int STRETCH = STRETCH_INPUTS / GROUP;
  static constexpr int HEAD = sizeof(float);  // the scale of an output
  typedef Ints Sum;
  typedef Int8Form::Weights Weights;
  typedef Ints Inputs;
  static Sum start(const Rows<int8>& x, int r, int stretch) {
    return Ints{} + x.offsets[r * x.stretches + stretch];
  }
  static Floats finish(Floats base, Sum sum, const Rows<int8>& x, int r, int stretch,
                       const int8* head) {
    const float scale = x.scales[r * x.stretches + stretch];
    Floats value = __builtin_convertvector(sum, Floats) * (scale * load_as<Floats>(head));
    // Rounded here: the compiler would fuse product and sum in tiles of some heights only.
    asm("" : "+m"(value));
    return base + value;
  }
  static Weights weights(const int8* w, int) { return Int8Form::weights(w); }
  static Inputs inputs(const Int8Form::Input* x, int) { return Int8Form::inputs(x); }
  static Sum add(Sum sum, Inputs x, Weights w) { return Int8Form::add(sum, x, w); }
};

// One panel of w [n, k], row i at w + i * k.
inline void pack_panel(const int8_t* w, const float* scales, int n, int k, int8* packed) {
  for (int lane = 0; lane < ceil_div(n, LANES) * LANES; lane++) {
    const float scale = lane < n ? scales[lane] : 0.0f;
    std::memcpy(packed + lane * sizeof(scale), &scale, sizeof(scale));
  }
  each_packed(packed, n, k, [&](int8& element, int output, int input) {
    const bool inside = output >= 0 && input >= 0;
    element.bits = uint8_t(Int8Form::BIAS + (inside ? w[size_t(output) * k + input] : 0));
  });
}

// Rows in 8 bits, by stretches: q = round(x 127 / max |x|), x ~ q max |x| / 127. One scale a row
// would follow the few inputs that are far larger than the others, and round those away.
// A NaN makes its stretch's scale one.
class QuantizedRows {
 public:
  void reserve(int rows, int widest) {
    values_.resize(rows * stride(widest));
    scales_.resize(size_t(rows) * stretches(widest));
    offsets_.resize(scales_.size());
  }

  Rows<int8> rows(int inputs) const {
    return {values_.data(), stride(inputs), scales_.data(), offsets_.data(), stretches(inputs)};
  }

  template <class T>
  void set(int row, const T* x, int inputs) {
    Input* q = values_.data() + row * stride(inputs);
    size_t at = size_t(row) * stretches(inputs);
    for (int i = 0; i < inputs; i += WIDTH, at++)
      set_stretch(x + i, std::min(WIDTH, inputs - i), q + i, scales_[at], offsets_[at]);
    std::fill(q + inputs, q + stride(inputs), Input(0));
  }

 private:
  typedef Int8Form::Input Input;
  static constexpr int GROUP = Dot<int8>::GROUP;
  static constexpr int WIDTH = STRETCH_INPUTS;
  static constexpr float LEAST = 1e-30f;  // keeps 127 / top finite

  static size_t stride(int inputs) { return size_t(ceil_div(inputs, GROUP)) * GROUP; }
  static int stretches(int inputs) { return ceil_div(inputs, WIDTH); }

  template <class T>
  static void set_stretch(const T* x, int count, Input* q, float& scale, int32_t& offset) {
    Floats tops = {}, spoilt = {};
    for (int i = 0; i < count; i += LANES) {
      const Floats v = load_some(x + i, count - i);
      tops = larger(tops, larger(v, -v));
      spoilt += v * 0.0f;
    }
    const float top = std::max(largest(tops), LEAST), inverse = 1.0f / top * 127.0f;
    int32_t total = 0;
    for (int i = 0; i < count; i++) {
      q[i] = Input(std::nearbyint(to_float(x[i]) * inverse));
      total += q[i];
    }
    scale = top / 127.0f + sum(spoilt);
    offset = -Int8Form::BIAS * total;
  }

  std::vector<Input> values_;
  std::vector<float> scales_;
  std::vector<int32_t> offsets_;
};

}  // namespace mix::MIX_ISA
