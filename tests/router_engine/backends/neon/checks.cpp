// The kernels' products for both ARM sets against plain loops, and which sets a processor runs. The
// arguments are the numbers of rows. Then one weight of the plain loops is another: every product
// must differ, and is told as `spoiled`.
#include <cstdlib>

#include "support.h"

namespace {

using namespace arm;

int failures = 0;

void expect(bool holds, const Set& set, const std::string& what, int outputs, int inputs,
            int rows) {
  if (holds) return;
  failures++;
  std::printf("%s: %s, outputs %d inputs %d rows %d\n", set.name, what.c_str(), outputs, inputs,
              rows);
}

std::vector<float> multiply(const Set& set, bool half, const void* x, void* packed, bool is_int8,
                            int outputs, int inputs, int rows, int threads) {
  const int stride = (outputs + 15) / 16 * 16;
  std::vector<float> y(size_t(rows) * stride);
  kernels::Linear linear{};
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
  const auto same = [&](int count) {  // of the first so many outputs, and those before
    for (int r = 0; r < rows; r++)
      for (int o = 0; o < count; o++) {
        double exact = 0;
        for (int i = 0; i < inputs; i++)
          exact += double(w[size_t(o) * inputs + i]) * x[size_t(r) * inputs + i];
        worst = std::max(worst, std::fabs(exact - y[size_t(r) * outputs + o]));
        top = std::max(top, std::fabs(exact));
      }
    return worst <= 1e-5 * top;
  };
  expect(same(outputs), set, FORMATS[format], outputs, inputs, rows);
  w[0] += 1;  // of the first output alone
  expect(same(1), set, std::string("spoiled ") + FORMATS[format], outputs, inputs, rows);
}

// The equation of router_engine/model/quantized.py: a scale an output, one for each 64 inputs of a
// row. Volatile: each product is rounded before it is added, as there.
void check_int8(const Set& set, int outputs, int inputs, int rows) {
  std::vector<int8_t> w(size_t(outputs) * inputs);
  std::vector<float> scales(outputs), x(size_t(rows) * inputs);
  for (auto& v : w) v = int8_t(any() * 127);
  for (float& v : scales) v = 0.01f + std::fabs(any());
  for (float& v : x) v = any();
  std::vector<char> packed(set.packed_bytes(INT8, outputs, inputs));
  set.pack(INT8, w.data(), scales.data(), outputs, inputs, packed.data(), 1);
  const auto y = multiply(set, false, x.data(), packed.data(), true, outputs, inputs, rows, 1);
  const auto exact = [&](const float* in, int o) {
    volatile float total = 0;
    for (int i = 0; i < inputs; i += STRETCH) {
      const int end = std::min(inputs, i + STRETCH);
      float top = 1e-30f;
      for (int j = i; j < end; j++) top = std::max(top, std::fabs(in[j]));
      const float inverse = 1.0f / top * 127.0f;
      int sum = 0;
      for (int j = i; j < end; j++)
        sum += int(std::nearbyint(in[j] * inverse)) * w[size_t(o) * inputs + j];
      volatile float scale = top / 127.0f * scales[o], part = float(sum) * scale;
      total = total + part;
    }
    return total;
  };
  const auto same = [&](int count) {  // of the first so many outputs
    bool all = true;
    for (int r = 0; r < rows; r++)
      for (int o = 0; o < count; o++)
        all &= exact(&x[size_t(r) * inputs], o) == y[size_t(r) * outputs + o];
    return all;
  };
  expect(same(outputs), set, FORMATS[INT8], outputs, inputs, rows);
  w[0] ^= 64;
  expect(same(1), set, std::string("spoiled ") + FORMATS[INT8], outputs, inputs, rows);
}

void check(const Set& set, int outputs, int inputs, int rows) {
  check_floats(set, false, outputs, inputs, rows);
  check_floats(set, true, outputs, inputs, rows);
  check_int8(set, outputs, inputs, rows);
}

}  // namespace

int main(int count, char** arguments) {
  for (const Set& set : SETS) {
    if (!mix_runs(set.name)) continue;
    std::printf("%s\n", set.name);
    for (int i = 1; i < count; i++) {
      const int rows = std::atoi(arguments[i]);
      check(set, 16, 16, rows);
      check(set, 48, 64, rows);
      check(set, 259, 64, rows);
      check(set, 100, 34, rows);
    }
    for (int rows : {1, 5, 17}) check(set, 320, 576, rows);
  }
  return failures != 0;
}
