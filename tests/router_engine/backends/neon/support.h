// The kernels of both ARM sets as a program calls them, and numbers to call them with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "spec.h"

extern "C" int32_t mix_runs(const char*);

#define DECLARE(isa)                                                                            \
  extern "C" int64_t mix_##isa##_packed_bytes(int32_t, int32_t, int32_t);                       \
  extern "C" void mix_##isa##_pack(int32_t, const void*, const float*, int32_t, int32_t, void*, \
                                   int32_t);                                                    \
  extern "C" void mix_##isa##_unpack(int32_t, void*, int32_t, int32_t, void*, int32_t);         \
  extern "C" void mix_##isa##_linears(int32_t, const void*, const mix::MIX_ISA::Linear*,        \
                                      int32_t, int32_t, float*, int32_t, int32_t);              \
  extern "C" void* mix_##isa##_model_new(int32_t, const mix::MIX_ISA::ModelSpec*);              \
  extern "C" void mix_##isa##_model_run(void*, const mix::MIX_ISA::Step*);                      \
  extern "C" void mix_##isa##_model_free(void*);
DECLARE(neon)
DECLARE(neon_bf16)

namespace arm {

namespace kernels = mix::MIX_ISA;  // what is handed over is laid out alike for every set

enum Format { FP32, BF16, INT8 };
constexpr const char* FORMATS[] = {"fp32", "bf16", "int8"};
constexpr int STRETCH = 64;  // inputs of a row that share a scale, where weights are int8

struct Set {
  const char* name;
  bool multiplies_bf16;  // else bf16 widens to fp32 before it is multiplied
  decltype(&mix_neon_packed_bytes) packed_bytes;
  decltype(&mix_neon_pack) pack;
  decltype(&mix_neon_unpack) unpack;
  decltype(&mix_neon_linears) linears;
  decltype(&mix_neon_model_new) model_new;
  decltype(&mix_neon_model_run) model_run;
  decltype(&mix_neon_model_free) model_free;
};

#define SET(isa, multiplies_bf16)                                                        \
  {#isa, multiplies_bf16, mix_##isa##_packed_bytes, mix_##isa##_pack, mix_##isa##_unpack, \
   mix_##isa##_linears, mix_##isa##_model_new, mix_##isa##_model_run, mix_##isa##_model_free}
const Set SETS[] = {SET(neon, false), SET(neon_bf16, true)};

inline uint16_t upper_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return uint16_t(bits >> 16);
}

inline float widened(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline std::vector<uint16_t> halves(const std::vector<float>& values) {
  std::vector<uint16_t> result;
  for (float value : values) result.push_back(upper_half(value));
  return result;
}

// In [-1, 1), with as few bits as bf16 holds.
inline float any() {
  static uint32_t state = 1;
  state = state * 1664525u + 1013904223u;
  return widened(upper_half(float(int32_t(state)) * 0x1p-31f));
}

}  // namespace arm
