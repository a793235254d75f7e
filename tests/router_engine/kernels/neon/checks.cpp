// The kernels' products for both ARM sets against plain loops, and which sets a processor runs.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "spec.h"

extern "C" int32_t mix_runs(const char*);

#define DECLARE(isa)                                                                           \
  extern "C" int64_t mix_##isa##_packed_bytes(int32_t, int32_t, int32_t);                      \
  extern "C" void mix_##isa##_pack(int32_t, const void*, const float*, int32_t, int32_t, void*, \
                                   int32_t);                                                   \
  extern "C" void mix_##isa##_unpack(int32_t, void*, int32_t, int32_t, void*, int32_t);        \
  extern "C" void mix_##isa##_linears(int32_t, const void*, const mix::MIX_ISA::Linear*,       \
                                      int32_t, int32_t, float*, int32_t, int32_t);
DECLARE(neon)
DECLARE(neon_bf16)

namespace {

using Linear = mix::MIX_ISA::Linear;  // laid out alike for every set
enum Format { FP32, BF16, INT8 };
constexpr int STRETCH = 64;

struct Set {
  const char* name;
  decltype(&mix_neon_packed_bytes) packed_bytes;
  decltype(&mix_neon_pack) pack;
  decltype(&mix_neon_unpack) unpack;
  decltype(&mix_neon_linears) linears;
};

#define SET(isa) \
  {#isa, mix_##isa##_packed_bytes, mix_##isa##_pack, mix_##isa##_unpack, mix_##isa##_linears}
const Set SETS[] = {SET(neon), SET(neon_bf16)};

int failures = 0;

void expect(bool holds, const Set& set, const char* what, int outputs, int inputs, int rows) {
  if (holds) return;
  failures++;
  std::printf("%s: %s, outputs %d inputs %d rows %d\n", set.name, what, outputs, inputs, rows);
}

uint32_t state = 1;

// In [-1, 1), with as few bits as bf16 holds.
float any() {
  state = state * 1664525u + 1013904223u;
  const float value = float(int32_t(state)) * 0x1p-31f;
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits &= 0xffff0000u;
  float kept;
  std::memcpy(&kept, &bits, 4);
  return kept;
}

std::vector<uint16_t> halves(const std::vector<float>& values) {
  std::vector<uint16_t> result;
  for (float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    result.push_back(uint16_t(bits >> 16));
  }
  return result;
}

std::vector<float> multiply(const Set& set, bool half, const void* x, void* packed, bool is_int8,
                            int outputs, int inputs, int rows, int threads) {
  const int stride = (outputs + 15) / 16 * 16;
  std::vector<float> y(size_t(rows) * stride);
  Linear linear{};
  linear.packed = packed;
  linear.inputs = inputs;
  linear.outputs = outputs;
  linear.is_int8 = is_int8;
  set.linears(half, x, &linear, 1, rows, y.data(), stride, threads);
  std::vector<float> result;
  for (int r = 0; r < rows; r++)
    result.insert(result.end(), y.begin() + r * stride, y.begin() + r * stride + outputs);
  return result;
}

void check_floats(const Set& set, bool half, int outputs, int inputs, int rows) {
  std::vector<float> w(size_t(outputs) * inputs), x(size_t(rows) * inputs);
  for (float& v : w) v = any();
  for (float& v : x) v = any();
  const auto w16 = halves(w), x16 = halves(x);
  const size_t width = half ? 2 : 4;
  const char* from = half ? (const char*)w16.data() : (const char*)w.data();
  const char* in = half ? (const char*)x16.data() : (const char*)x.data();
  const int format = half ? BF16 : FP32;
  std::vector<char> packed(set.packed_bytes(format, outputs, inputs)), back(w.size() * width);
  set.pack(format, from, nullptr, outputs, inputs, packed.data(), 1);
  set.unpack(format, packed.data(), outputs, inputs, back.data(), 3);
  expect(std::memcmp(from, back.data(), back.size()) == 0, set, "unpack", outputs, inputs, rows);
  const auto run = [&](const char* first, int count, int threads) {
    return multiply(set, half, first, packed.data(), false, outputs, inputs, count, threads);
  };
  const auto y = run(in, rows, 1);
  expect(y == run(in, rows, 3), set, "threads", outputs, inputs, rows);
  const auto last = run(in + size_t(rows - 1) * inputs * width, 1, 1);
  expect(std::equal(last.begin(), last.end(), y.end() - outputs), set, "row alone", outputs,
         inputs, rows);
  double worst = 0, top = 0;
  for (int r = 0; r < rows; r++)
    for (int o = 0; o < outputs; o++) {
      double exact = 0;
      for (int i = 0; i < inputs; i++)
        exact += double(w[size_t(o) * inputs + i]) * x[size_t(r) * inputs + i];
      worst = std::max(worst, std::fabs(exact - y[size_t(r) * outputs + o]));
      top = std::max(top, std::fabs(exact));
    }
  expect(worst <= 1e-5 * top, set, half ? "bf16" : "fp32", outputs, inputs, rows);
}

// The equation of router_engine/model/quantized.py: a scale an output, one for each 64 inputs of a row. Volatile: each
// product is rounded before it is added, as there.
void check_int8(const Set& set, int outputs, int inputs, int rows) {
  std::vector<int8_t> w(size_t(outputs) * inputs);
  std::vector<float> scales(outputs), x(size_t(rows) * inputs);
  for (auto& v : w) v = int8_t(any() * 127);
  for (float& v : scales) v = 0.01f + std::fabs(any());
  for (float& v : x) v = any();
  std::vector<char> packed(set.packed_bytes(INT8, outputs, inputs));
  set.pack(INT8, w.data(), scales.data(), outputs, inputs, packed.data(), 1);
  const auto y = multiply(set, false, x.data(), packed.data(), true, outputs, inputs, rows, 1);
  bool same = true;
  for (int r = 0; r < rows; r++)
    for (int o = 0; o < outputs; o++) {
      volatile float total = 0;
      for (int i = 0; i < inputs; i += STRETCH) {
        const int end = std::min(inputs, i + STRETCH);
        float top = 1e-30f;
        for (int j = i; j < end; j++) top = std::max(top, std::fabs(x[size_t(r) * inputs + j]));
        const float inverse = 1.0f / top * 127.0f;
        int sum = 0;
        for (int j = i; j < end; j++)
          sum += int(std::nearbyint(x[size_t(r) * inputs + j] * inverse)) *
                 w[size_t(o) * inputs + j];
        volatile float scale = top / 127.0f * scales[o], part = float(sum) * scale;
        total = total + part;
      }
      same &= total == y[size_t(r) * outputs + o];
    }
  expect(same, set, "int8", outputs, inputs, rows);
}

void check(const Set& set, int outputs, int inputs, int rows) {
  check_floats(set, false, outputs, inputs, rows);
  check_floats(set, true, outputs, inputs, rows);
  check_int8(set, outputs, inputs, rows);
}

}  // namespace

int main() {
  for (const Set& set : SETS) {
    if (!mix_runs(set.name)) continue;
    std::printf("%s\n", set.name);
    for (int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33}) {
      check(set, 16, 16, rows);
      check(set, 48, 64, rows);
      check(set, 259, 64, rows);
      check(set, 100, 34, rows);
    }
    for (int rows : {1, 5, 17}) check(set, 960, 576, rows);
  }
  return failures != 0;
}
