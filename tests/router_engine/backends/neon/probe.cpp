// What the kernels need of an ARM processor and its C++ library, once each: products of bf16 and of
// int8 pairs, and threads that wait on an atomic. The numbers come from outside, so that the
// program computes them and not the compiler.
#include <arm_neon.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

int int8_products(int left, int right) {
  const int8x16_t a = vdupq_n_s8(int8_t(left)), b = vdupq_n_s8(int8_t(right));
  return vaddvq_s32(vdotq_s32(vdupq_n_s32(1), a, b));
}

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
bfloat16x8_t filled(float value) {  // a float's upper half is its bf16, where the lower half is 0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return vreinterpretq_bf16_u16(vdupq_n_u16(uint16_t(bits >> 16)));
}

float bf16_products(float left, float right) {
  return vaddvq_f32(vbfdotq_f32(vdupq_n_f32(1), filled(left), filled(right)));
}
#else
float bf16_products(float, float) { return 0; }
#endif

// Threads take turns, each asleep until its own: the number of turns taken.
int turns(int threads, int rounds) {
  std::atomic<int> turn{0};
  int taken = 0;
  std::vector<std::thread> team;
  for (int i = 0; i < threads; ++i)
    team.emplace_back([&, i] {
      for (int n = 0; n < rounds; ++n) {
        for (int now = turn.load(); now % threads != i; now = turn.load()) turn.wait(now);
        ++taken;
        turn.fetch_add(1);
        turn.notify_all();
      }
    });
  for (auto& each : team) each.join();
  return taken;
}

}  // namespace

int main(int, char** arguments) {
  const int left = std::atoi(arguments[1]), right = std::atoi(arguments[2]);
  std::printf("%d %g %d\n", int8_products(left, right), double(bf16_products(left, right)),
              turns(3, 500));
}
