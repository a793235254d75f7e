// The C interface, called through ctypes: no Python or torch headers, so it compiles in seconds.

#include "model.h"

using mix::bf16;

namespace {

template <class T>
void pack(const void* weight, int outputs, int inputs, void* packed) {
  const size_t depth = mix::packed_size<T>(mix::LANES, inputs) / mix::LANES;
  const T* w = static_cast<const T*>(weight);
#pragma omp parallel for
  for (int first = 0; first < outputs; first += mix::PANEL)
    mix::pack_panel(w + size_t(first) * inputs, inputs, std::min(mix::PANEL, outputs - first),
                    inputs, static_cast<T*>(packed) + first * depth);
}

}  // namespace

extern "C" {

// Bytes of the packed form; `half` says bf16, otherwise fp32.
int64_t mix_packed_bytes(int32_t half, int32_t outputs, int32_t inputs) {
  return half ? mix::packed_size<bf16>(outputs, inputs) * sizeof(bf16)
              : mix::packed_size<float>(outputs, inputs) * sizeof(float);
}

void mix_pack(int32_t half, const void* weight, int32_t outputs, int32_t inputs, void* packed) {
  half ? pack<bf16>(weight, outputs, inputs, packed) : pack<float>(weight, outputs, inputs, packed);
}

void* mix_model_new(int32_t half, const mix::ModelSpec* spec) {
  if (half) return new mix::Model<bf16>(*spec);
  return new mix::Model<float>(*spec);
}

void mix_model_run(void* model, const mix::Step* step) {
  static_cast<mix::Decoder*>(model)->run(*step);
}

void mix_model_free(void* model) { delete static_cast<mix::Decoder*>(model); }

// y [rows, stride] = x [rows, inputs] packed^T, for benchmarks and tests.
void mix_linear(int32_t half, const void* x, const mix::Linear* linear, int32_t rows, float* y,
                int32_t stride, int32_t threads, int32_t repeats) {
  mix::Team team;
  const mix::Job job = {linear, y, size_t(stride), false};
  const mix::Mixing base;
  mix::MixtureLinear<bf16> small;
  mix::MixtureLinear<float> wide;
#pragma omp parallel num_threads(threads)
  {
    team.enter(omp_get_num_threads());
    for (int i = 0; i < repeats; i++) {
      if (half)
        small.run(team, &job, 1, base, rows, static_cast<const bf16*>(x), linear->inputs);
      else
        wide.run(team, &job, 1, base, rows, static_cast<const float*>(x), linear->inputs);
    }
  }
}
}
