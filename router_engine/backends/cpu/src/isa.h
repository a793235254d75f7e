// The record of one instruction set: what the sources beside this file are compiled for.
//
// kernels.cpp is compiled once for each of them, with -DMIX_<NAME>, and all lie in one library. The
// options of the compiler are those of the oldest machine; this file then allows the instructions
// of its set. So whatever a header of the standard library brings is the same in every object file,
// and the linker may keep any of its copies.
//
// MIX_LANES        floats of a vector
// MIX_TILE_ROWS    rows of x that a tile multiplies
// MIX_TILE_BLOCKS  vectors of outputs that it multiplies them by; with the rows they fill registers
// MIX_BF16_DOT     products of pairs in bf16 have an instruction; else weights widen to fp32 on
//                  their way in, and what they are multiplied by is kept in fp32
// MIX_INT8         VNNI: unsigned by signed fours; DOT: signed fours; PAIRS: 16-bit pairs; PLAIN
// MIX_AMX          tiles of 16 rows multiply by an instruction each
#pragma once

#include <algorithm>
#include <atomic>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "pool.h"

#define MIX_INT8_PLAIN 0
#define MIX_INT8_PAIRS 1
#define MIX_INT8_VNNI 2
#define MIX_INT8_DOT 3

#if defined(MIX_AVX2)
#define MIX_ISA avx2
#define MIX_LANES 8
#define MIX_TILE_ROWS 6
#define MIX_TILE_BLOCKS 2
#define MIX_INT8 MIX_INT8_PAIRS
#define MIX_TARGET "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")

#elif defined(MIX_AVX2_VNNI)
#define MIX_ISA avx2_vnni
#define MIX_LANES 8
#define MIX_TILE_ROWS 6
#define MIX_TILE_BLOCKS 2
#define MIX_INT8 MIX_INT8_VNNI
#define MIX_TARGET "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avxvnni"
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avxvnni")

#elif defined(MIX_AVX512)
#define MIX_ISA avx512
#define MIX_LANES 16
#define MIX_TILE_ROWS 8
#define MIX_TILE_BLOCKS 3
#define MIX_INT8 MIX_INT8_PAIRS
#define MIX_TARGET "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512"
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512")

#elif defined(MIX_AVX512_VNNI)
#define MIX_ISA avx512_vnni
#define MIX_LANES 16
#define MIX_TILE_ROWS 8
#define MIX_TILE_BLOCKS 3
#define MIX_INT8 MIX_INT8_VNNI
#define MIX_TARGET "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni"
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni")

#elif defined(MIX_AVX512_BF16)
#define MIX_ISA avx512_bf16
#define MIX_LANES 16
#define MIX_TILE_ROWS 8
#define MIX_TILE_BLOCKS 3
#define MIX_BF16_DOT 1
#define MIX_INT8 MIX_INT8_VNNI
#define MIX_TARGET "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni,avx512bf16"
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni,avx512bf16")

#elif defined(MIX_AMX)
#define MIX_ISA amx
#define MIX_LANES 16
#define MIX_TILE_ROWS 8
#define MIX_TILE_BLOCKS 3
#define MIX_BF16_DOT 1
#define MIX_INT8 MIX_INT8_VNNI
#define MIX_TARGET "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni,avx512bf16,amx-tile,amx-bf16,amx-int8"
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,prefer-vector-width=512,avx512vnni,avx512bf16,amx-tile,amx-bf16,amx-int8")

#elif defined(MIX_NEON)
#define MIX_ISA neon
#define MIX_LANES 4
#define MIX_TILE_ROWS 6
#define MIX_TILE_BLOCKS 4
#define MIX_INT8 MIX_INT8_PLAIN

#elif defined(MIX_NEON_BF16)
#define MIX_ISA neon_bf16
#define MIX_LANES 4
#define MIX_TILE_ROWS 6
#define MIX_TILE_BLOCKS 4
#define MIX_BF16_DOT 1
#define MIX_INT8 MIX_INT8_DOT
#define MIX_TARGET "arch=armv8.2-a+bf16+dotprod"
#pragma GCC target("arch=armv8.2-a+bf16+dotprod")

#else  // vectors of 16 bytes, which the compiler has on any machine
#define MIX_ISA generic
#define MIX_LANES 4
#define MIX_TILE_ROWS 4
#define MIX_TILE_BLOCKS 2
#define MIX_INT8 MIX_INT8_PLAIN
#endif

#if defined(MIX_TARGET) && defined(__clang__)  // which has a pragma of its own for it
#pragma clang attribute push(__attribute__((target(MIX_TARGET))), apply_to = function)
#endif
