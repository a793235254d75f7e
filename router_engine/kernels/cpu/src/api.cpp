// The C interface, called through ctypes: no Python or torch headers, so it compiles in seconds.

#include <sys/mman.h>

#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "model.h"

#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25  // Linux 6.1; older ones decline
#endif

using mix::bf16;

namespace {

enum Format { FP32 = 0, BF16 = 1, INT8 = 2 };  // as in router_engine/kernels/cpu/library.py

// Calls work(first output, outputs, packed panel) for every panel of a weight, on all threads.
template <class T, class Work>
void each_panel(int outputs, int inputs, T* packed, const Work& work) {
  const size_t depth = mix::packed_depth<T>(inputs);
#pragma omp parallel for
  for (int first = 0; first < outputs; first += mix::PANEL)
    work(first, std::min(mix::PANEL, outputs - first), packed + first * depth);
}

template <class T>
void pack(const T* w, int outputs, int inputs, T* packed) {
  each_panel(outputs, inputs, packed, [&](int first, int count, T* panel) {
    mix::each_packed(panel, count, inputs, [&](T& element, int output, int input) {
      const bool inside = output >= 0 && input >= 0;
      element = inside ? w[size_t(first + output) * inputs + input] : T{};
    });
  });
}

template <class T>
void unpack(T* packed, int outputs, int inputs, T* w) {
  each_panel(outputs, inputs, packed, [&](int first, int count, T* panel) {
    mix::each_packed(panel, count, inputs, [&](const T& element, int output, int input) {
      if (output >= 0 && input >= 0) w[size_t(first + output) * inputs + input] = element;
    });
  });
}

template <class T>
void run_linears(const T* x, const mix::Linear* linears, int count, int rows, float* y,
                 size_t stride, int threads) {
  const int inputs = linears->inputs;
  const mix::Mixing base;
  mix::Team team;
  mix::MixtureLinear<T> runner;
  runner.reserve_quantized(rows, inputs);
#pragma omp parallel num_threads(threads)
  {
    team.enter(omp_get_num_threads());
    for (int i = 0; i < count; i++) {
      const mix::Job job = {linears + i, y, stride, false};
      runner.prepare(team, base, linears[i].is_int8, rows, x, inputs, inputs);
      runner.run(team, &job, 1, base, rows, x, inputs);
    }
  }
}

}  // namespace

extern "C" {

// Asks for large pages under [from, from + bytes): a step reads hundreds of megabytes, and looking
// up small pages costs as much as reading. Where the system declines, nothing changes.
void mix_large_pages(void* from, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 1 << 21;
  const uintptr_t begin = (uintptr_t(from) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (uintptr_t(from) + bytes) / PAGE * PAGE;
  if (begin >= end) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#ifdef MADV_COLLAPSE
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_COLLAPSE);
#endif
#endif
}

// Gives memory that was freed back to the system, which the allocator else keeps for later.
void mix_trim() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

// Bytes of the packed form.
int64_t mix_packed_bytes(int32_t format, int32_t outputs, int32_t inputs) {
  if (format == INT8) return mix::packed_size<mix::int8>(outputs, inputs);
  if (format == BF16) return mix::packed_size<bf16>(outputs, inputs) * sizeof(bf16);
  return mix::packed_size<float>(outputs, inputs) * sizeof(float);
}

// `scales` [outputs] belong to int8 alone.
void mix_pack(int32_t format, const void* weight, const float* scales, int32_t outputs,
              int32_t inputs, void* packed) {
  if (format == BF16)
    return pack(static_cast<const bf16*>(weight), outputs, inputs, static_cast<bf16*>(packed));
  if (format == FP32)
    return pack(static_cast<const float*>(weight), outputs, inputs, static_cast<float*>(packed));
  const int8_t* w = static_cast<const int8_t*>(weight);
  const auto work = [&](int first, int count, mix::int8* panel) {
    mix::pack_panel(w + size_t(first) * inputs, scales + first, count, inputs, panel);
  };
  each_panel(outputs, inputs, static_cast<mix::int8*>(packed), work);
}

// The weight that was packed, in bf16 or fp32.
void mix_unpack(int32_t format, void* packed, int32_t outputs, int32_t inputs, void* weight) {
  format == BF16
      ? unpack(static_cast<bf16*>(packed), outputs, inputs, static_cast<bf16*>(weight))
      : unpack(static_cast<float*>(packed), outputs, inputs, static_cast<float*>(weight));
}

void* mix_model_new(int32_t half, const mix::ModelSpec* spec) {
  if (half) return new mix::Model<bf16>(*spec);
  return new mix::Model<float>(*spec);
}

void mix_model_run(void* model, const mix::Step* step) {
  static_cast<mix::Decoder*>(model)->run(*step);
}

void mix_model_free(void* model) { delete static_cast<mix::Decoder*>(model); }

// y [rows, stride] = x [rows, inputs] packed^T for layer after layer of equal shape, as in a step.
// For benchmarks and tests.
void mix_linears(int32_t half, const void* x, const mix::Linear* linears, int32_t count,
                 int32_t rows, float* y, int32_t stride, int32_t threads) {
  half ? run_linears(static_cast<const bf16*>(x), linears, count, rows, y, stride, threads)
       : run_linears(static_cast<const float*>(x), linears, count, rows, y, stride, threads);
}
}
