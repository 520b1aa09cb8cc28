// Compiles BESSKGE_KERNELS, a header, once for each instruction set, in a namespace named after it.
//
// Not guarded: each file of kernels includes it once. Whatever the kernels need of the standard
// library must be included before; inside, only what is written for the purpose may be compiled
// with wider instructions, or the linker could choose it for processors that lack them.
#ifndef BESSKGE_KERNELS
#error "define BESSKGE_KERNELS, the header to compile, before including each_isa.h"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2,prefer-vector-width=512")
#define BESSKGE_WIDTH 16
namespace besskge {
namespace avx512 {
#include "simd.h"
#include BESSKGE_KERNELS
}  // namespace avx512
}  // namespace besskge
#undef BESSKGE_WIDTH
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#define BESSKGE_WIDTH 8
namespace besskge {
namespace avx2 {
#include "simd.h"
#include BESSKGE_KERNELS
}  // namespace avx2
}  // namespace besskge
#undef BESSKGE_WIDTH
#pragma GCC pop_options

#endif

#define BESSKGE_WIDTH 4
namespace besskge {
namespace baseline {
#include "simd.h"
#include BESSKGE_KERNELS
}  // namespace baseline
}  // namespace besskge
#undef BESSKGE_WIDTH
#undef BESSKGE_KERNELS
