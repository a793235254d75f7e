// Products of 8-bit integers: weights with one scale an output, inputs with one for each row and
// stretch of 64.
//
// The instruction multiplies unsigned by signed bytes. Weights are packed 128 too high, and the sums
// of a row's stretch start 128 times the sum of its inputs too low: the totals are those of the
// signed weights, exact in 32 bits.
#pragma once

#include <vector>

#include "gemm.h"

namespace mix {

// A packed weight, 128 more than it is.
struct int8 {
  uint8_t bits;
};

template <>
struct Rows<int8> {
  const int8_t* first;
  size_t stride;
  const float* scales;  // [rows, stretches]
  const int32_t* offsets;
  int stretches;

  const int8_t* operator[](int r) const { return first + r * stride; }
  Rows from(int r) const {
    const size_t at = size_t(r) * stretches;
    return {first + r * stride, stride, scales + at, offsets + at, stretches};
  }
};

template <>
struct Dot<int8> {
  static constexpr int GROUP = 4;
  static constexpr int STRETCH = 16;
  static constexpr int HEAD = sizeof(float);  // the scale of an output
  typedef I16 Sum;
  typedef I16 Weights;
  typedef I16 Inputs;
  static Sum start(const Rows<int8>& x, int r, int stretch) {
    return I16{} + x.offsets[r * x.stretches + stretch];
  }
  static F16 finish(F16 base, Sum sum, const Rows<int8>& x, int r, int stretch,
                    const int8* head) {
    const float scale = x.scales[r * x.stretches + stretch];
    F16 value = __builtin_convertvector(sum, F16) * (scale * load_as<F16>(head));
    // Rounded here: the compiler would fuse product and sum in tiles of some heights only.
    asm("" : "+m"(value));
    return base + value;
  }
  static Weights weights(const int8* w) { return load_as<I16>(w); }
  static Inputs inputs(const int8_t* x) { return I16{} + load_as<int32_t>(x); }
  static Sum add(Sum sum, Inputs x, Weights w) {
#ifdef MIX_INT8_DOT
    return (I16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#else
    for (int i = 0; i < 32; i += 8) sum += ((w >> i) & 255) * (x << (24 - i) >> 24);
    return sum;
#endif
  }
};

// One panel of w [n, k], row i at w + i * k.
inline void pack_panel(const int8_t* w, const float* scales, int n, int k, int8* packed) {
  for (int lane = 0; lane < ceil_div(n, LANES) * LANES; lane++) {
    const float scale = lane < n ? scales[lane] : 0.0f;
    std::memcpy(packed + lane * sizeof(scale), &scale, sizeof(scale));
  }
  each_packed(packed, n, k, [&](int8& element, int output, int input) {
    const bool inside = output >= 0 && input >= 0;
    element.bits = uint8_t(128 + (inside ? w[size_t(output) * k + input] : 0));
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
    int8_t* q = values_.data() + row * stride(inputs);
    size_t at = size_t(row) * stretches(inputs);
    for (int i = 0; i < inputs; i += WIDTH, at++)
      set_stretch(x + i, std::min(WIDTH, inputs - i), q + i, scales_[at], offsets_[at]);
    std::fill(q + inputs, q + stride(inputs), int8_t(0));
  }

 private:
  static constexpr int GROUP = Dot<int8>::GROUP;
  static constexpr int WIDTH = GROUP * Dot<int8>::STRETCH;
  static constexpr float LEAST = 1e-30f;  // keeps 127 / top finite

  static size_t stride(int inputs) { return size_t(ceil_div(inputs, GROUP)) * GROUP; }
  static int stretches(int inputs) { return ceil_div(inputs, WIDTH); }

  template <class T>
  static void set_stretch(const T* x, int count, int8_t* q, float& scale, int32_t& offset) {
    F16 tops = {}, spoilt = {};
    for (int i = 0; i < count; i += LANES) {
      const F16 v = load_some(x + i, count - i);
      tops = larger(tops, larger(v, -v));
      spoilt += v * 0.0f;
    }
    const float top = std::max(largest(tops), LEAST), inverse = 1.0f / top * 127.0f;
    int32_t total = 0;
    for (int i = 0; i < count; i++) {
      q[i] = int8_t(std::nearbyint(to_float(x[i]) * inverse));
      total += q[i];
    }
    scale = top / 127.0f + sum(spoilt);
    offset = -128 * total;
  }

  std::vector<int8_t> values_;
  std::vector<float> scales_;
  std::vector<int32_t> offsets_;
};

}  // namespace mix
