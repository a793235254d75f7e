// The C interface of one instruction set, called through ctypes: no Python or torch headers.

#include "isa.h"
#include "amx.h"
#include "model.h"
#include "peak.h"

namespace mix::MIX_ISA {
namespace {

enum Format { FP32 = 0, BF16 = 1, INT8 = 2 };  // as in router_engine/backends/cpu/library.py

// Calls work(first output, outputs, packed panel) for every panel of a weight, on all threads.
template <class T, class Work>
void each_panel(int outputs, int inputs, T* packed, int threads, const Work& work) {
  const size_t depth = packed_depth<T>(inputs);
  with_team(threads, [&](Team& team) {
    team.share(ceil_div(outputs, PANEL), [&](int panel) {
      const int first = panel * PANEL;
      work(first, std::min(PANEL, outputs - first), packed + first * depth);
    });
  });
}

template <class T>
void pack(const T* w, int outputs, int inputs, T* packed, int threads) {
  each_panel(outputs, inputs, packed, threads, [&](int first, int count, T* panel) {
    each_packed(panel, count, inputs, [&](T& element, int output, int input) {
      const bool inside = output >= 0 && input >= 0;
      element = inside ? w[size_t(first + output) * inputs + input] : T{};
    });
  });
}

template <class T>
void unpack(T* packed, int outputs, int inputs, T* w, int threads) {
  each_panel(outputs, inputs, packed, threads, [&](int first, int count, T* panel) {
    each_packed(panel, count, inputs, [&](const T& element, int output, int input) {
      if (output >= 0 && input >= 0) w[size_t(first + output) * inputs + input] = element;
    });
  });
}

template <class T>
void run_linears(const void* x, const Linear* linears, int count, int rows, float* y, size_t stride,
                 int threads) {
  const int inputs = linears->inputs;
  const PhaseMixture base;
  std::vector<Read<T>> read(size_t(rows) * inputs + 1);  // a pair past an odd end is read
  for (size_t i = 0; i < size_t(rows) * inputs; i++) put(&read[i], static_cast<const T*>(x)[i]);
  MixtureLinear<T> runner;
  runner.reserve_quantized(rows, inputs);
  with_team(threads, [&](Team& team) {
    for (int i = 0; i < count; i++) {
      const Job job = {linears + i, y, stride, false};
      runner.prepare(team, base, linears[i].is_int8, rows, read.data(), inputs, inputs);
      runner.run(team, &job, 1, base, rows, read.data(), inputs);
    }
  });
}

}  // namespace

}  // namespace mix::MIX_ISA

using namespace mix::MIX_ISA;

// mix_avx2_pack, mix_amx_pack, ...
#define MIX_JOIN(isa, name) mix_##isa##_##name
#define MIX_NAME(isa, name) MIX_JOIN(isa, name)
#define MIX_EXPORT(type, name) \
  extern "C" __attribute__((visibility("default"))) type MIX_NAME(MIX_ISA, name)

// Bytes of the packed form.
MIX_EXPORT(int64_t, packed_bytes)(int32_t format, int32_t outputs, int32_t inputs) {
  if (format == INT8) return packed_size<int8>(outputs, inputs);
  if (format == BF16) return packed_size<bf16>(outputs, inputs) * sizeof(bf16);
  return packed_size<float>(outputs, inputs) * sizeof(float);
}

// `scales` [outputs] belong to int8 alone.
MIX_EXPORT(void, pack)(int32_t format, const void* weight, const float* scales, int32_t outputs,
                       int32_t inputs, void* packed, int32_t threads) {
  if (format == BF16)
    return pack(static_cast<const bf16*>(weight), outputs, inputs, static_cast<bf16*>(packed),
                threads);
  if (format == FP32)
    return pack(static_cast<const float*>(weight), outputs, inputs, static_cast<float*>(packed),
                threads);
  const int8_t* w = static_cast<const int8_t*>(weight);
  each_panel(outputs, inputs, static_cast<int8*>(packed), threads,
             [&](int first, int count, int8* panel) {
               pack_panel(w + size_t(first) * inputs, scales + first, count, inputs, panel);
             });
}

// The weight that was packed, in bf16 or fp32.
MIX_EXPORT(void, unpack)(int32_t format, void* packed, int32_t outputs, int32_t inputs,
                         void* weight, int32_t threads) {
  format == BF16 ? unpack(static_cast<bf16*>(packed), outputs, inputs, static_cast<bf16*>(weight),
                          threads)
                 : unpack(static_cast<float*>(packed), outputs, inputs,
                          static_cast<float*>(weight), threads);
}

MIX_EXPORT(void*, model_new)(int32_t half, const ModelSpec* spec) {
  if (half) return new Model<bf16>(*spec);
  return new Model<float>(*spec);
}

MIX_EXPORT(void, model_run)(void* model, const Step* step) {
  static_cast<Decoder*>(model)->run(*step);
}

MIX_EXPORT(void, model_free)(void* model) { delete static_cast<Decoder*>(model); }

// y [rows, stride] = x [rows, inputs] packed^T for layer after layer of equal shape, as in a step.
// For benchmarks and tests.
MIX_EXPORT(void, linears)(int32_t half, const void* x, const Linear* linears, int32_t count,
                          int32_t rows, float* y, int32_t stride, int32_t threads) {
  half ? run_linears<bf16>(x, linears, count, rows, y, stride, threads)
       : run_linears<float>(x, linears, count, rows, y, stride, threads);
}

// Bytes of a structure that Python hands over, by its name here; -1 for one that is not known. A
// library whose layouts are others than Python's would read and write anywhere.
MIX_EXPORT(int64_t, size_of)(const char* name) {
  struct Size {
    const char* name;
    int64_t bytes;
  };
  constexpr Size SIZES[] = {
#define MIX_SIZE(type) {#type, sizeof(type)}
      MIX_SIZE(Linear), MIX_SIZE(Layer),  MIX_SIZE(ModelSpec),         MIX_SIZE(Expert),
      MIX_SIZE(Prompt), MIX_SIZE(Gating), MIX_SIZE(LayerRoutedTokens), MIX_SIZE(GatingNetwork),
      MIX_SIZE(Row),    MIX_SIZE(Weights), MIX_SIZE(Step),
#undef MIX_SIZE
  };
  for (const Size& size : SIZES)
    if (std::strcmp(name, size.name) == 0) return size.bytes;
  return -1;
}

// The most that products in fp32 can reach: operations a second of multiply-and-add in registers,
// on all threads at once.
MIX_EXPORT(double, peak)(int32_t threads) { return peak_flops(threads); }
