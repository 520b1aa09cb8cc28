// Which instructions kernels use: the widest that the processor has, or fewer if told so.
//
// A file of kernels, "<op>.kernels.h", is compiled once for each instruction set: it defines
// BESSKGE_KERNELS and includes "each_isa.h", and then calls BESSKGE_CALL(kernel, arguments).
#pragma once

#include <string>

namespace besskge {

enum class Isa { baseline, avx2, avx512 };

// Of this process; changed by the operation `instruction_set`.
Isa isa();

}  // namespace besskge

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BESSKGE_CALL(KERNEL, ...)                                       \
  (::besskge::isa() == ::besskge::Isa::avx512 ? avx512::KERNEL(__VA_ARGS__) \
   : ::besskge::isa() == ::besskge::Isa::avx2 ? avx2::KERNEL(__VA_ARGS__)   \
                                              : baseline::KERNEL(__VA_ARGS__))
#else
#define BESSKGE_CALL(KERNEL, ...) baseline::KERNEL(__VA_ARGS__)
#endif
