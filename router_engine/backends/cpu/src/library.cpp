// What does not depend on the instruction set: which of them this machine runs, and its memory.

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25  // Linux 6.1; older ones decline
#endif

#define MIX_API extern "C" __attribute__((visibility("default")))

namespace {

#if defined(__x86_64__)

// The system keeps the tiles' registers only for a process that has asked for them.
bool tiles_are_granted() {
#if defined(__linux__)
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

#define MIX_HAS(ability) (__builtin_cpu_supports(ability) != 0)

// Names that not every compiler knows. Source: AMD's manual, CPUID functions 1 and 8000_0001.
bool has_f16c_and_lzcnt() {
  constexpr uint32_t F16C = 1u << 29, LZCNT = 1u << 5;
  uint32_t eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & F16C) &&
         __get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & LZCNT);
}

// All that the set's code may use: a virtual machine may hide any of them.
bool has_avx2() {
  return MIX_HAS("avx2") && MIX_HAS("fma") && MIX_HAS("bmi") && MIX_HAS("bmi2") &&
         MIX_HAS("popcnt") && has_f16c_and_lzcnt();
}

bool has_avx512() {
  return has_avx2() && MIX_HAS("avx512f") && MIX_HAS("avx512bw") && MIX_HAS("avx512dq") &&
         MIX_HAS("avx512vl") && MIX_HAS("avx512cd");
}

bool has_avx512_vnni() { return has_avx512() && MIX_HAS("avx512vnni"); }
bool has_avx512_bf16() { return has_avx512_vnni() && MIX_HAS("avx512bf16"); }

// Bits that older compilers have no names for. Source: Intel's manual, CPUID leaf 7.
bool has_leaf7(uint32_t part, int bit_of_eax, uint32_t bits_of_edx) {
  uint32_t eax = 7, ebx, ecx = part, edx;
  asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return (bit_of_eax < 0 || eax >> bit_of_eax & 1) && (edx & bits_of_edx) == bits_of_edx;
}

bool has_avx2_vnni() { return has_avx2() && has_leaf7(1, 4, 0); }

bool has_amx() {
  constexpr uint32_t BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
  return has_avx512_bf16() && has_leaf7(0, -1, BF16 | TILE | INT8) && tiles_are_granted();
}

#elif defined(__aarch64__)

bool has_neon() { return true; }

bool has_neon_bf16() {
#if defined(__linux__)
  constexpr unsigned long DOT_PRODUCT = 1ul << 20, BF16 = 1ul << 14;  // of AT_HWCAP, AT_HWCAP2
  return (getauxval(AT_HWCAP) & DOT_PRODUCT) && (getauxval(AT_HWCAP2) & BF16);
#else
  return false;
#endif
}

#else

bool has_generic() { return true; }

#endif

struct Isa {
  const char* name;
  bool (*runs)();
};

// From narrow to wide, as in build.py.
constexpr Isa ISAS[] = {
#if defined(__x86_64__)
    {"avx2", has_avx2},
    {"avx2_vnni", has_avx2_vnni},
    {"avx512", has_avx512},
    {"avx512_vnni", has_avx512_vnni},
    {"avx512_bf16", has_avx512_bf16},
    {"amx", has_amx},
#elif defined(__aarch64__)
    {"neon", has_neon},
    {"neon_bf16", has_neon_bf16},
#else
    {"generic", has_generic},
#endif
};

}  // namespace

// Whether this machine and its system run an instruction set, by its name in isa.h, and the
// variable ADAPTERMIX_CPU_ISA allows it: it names the last one of the list that may be used. It is
// read here, as other libraries of kernels read theirs, so that it binds whatever process loads it.
MIX_API int32_t mix_runs(const char* isa) {
  const char* limit = std::getenv("ADAPTERMIX_CPU_ISA");
  for (const Isa& one : ISAS) {
    if (std::strcmp(isa, one.name) == 0) return one.runs();
    if (limit && std::strcmp(limit, one.name) == 0) return 0;
  }
  return 0;
}

// Asks for large pages under [from, from + bytes): a step reads hundreds of megabytes, and looking
// up small pages costs as much as reading. Where the system declines, nothing changes.
MIX_API void mix_large_pages(void* from, int64_t bytes) {
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
MIX_API void mix_trim() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}
