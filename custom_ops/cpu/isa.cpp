// The instruction set of the kernels: found when the library is loaded, lowered by tests.
#include "isa.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <atomic>

namespace besskge {
namespace {

Isa widest() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

std::atomic<Isa> current{widest()};

const char* const kNames[] = {"baseline", "avx2", "avx512"};

// Sets the instruction set, if named and not wider than the processor's; says which is used.
std::string instruction_set(std::string wanted) {
  if (wanted == "widest") {
    current = widest();
  } else if (!wanted.empty()) {
    int found = -1;
    for (int i = 0; i < 3; ++i) {
      if (wanted == kNames[i]) found = i;
    }
    TORCH_CHECK_VALUE(found >= 0 && found <= static_cast<int>(widest()),
                      "instruction_set expects 'widest', 'baseline' or up to '",
                      kNames[static_cast<int>(widest())], "', which this processor has, got '",
                      wanted, "'");
    current = static_cast<Isa>(found);
  }
  return kNames[static_cast<int>(current.load())];
}

#ifndef BESSKGE_SOURCES
#define BESSKGE_SOURCES "unknown"
#endif
// Digest of the sources of this build.
std::string built_from() { return BESSKGE_SOURCES; }

}  // namespace

Isa isa() { return current.load(std::memory_order_relaxed); }

}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CompositeExplicitAutograd, m) {
  m.impl("built_from", &besskge::built_from);
  m.impl("instruction_set", &besskge::instruction_set);
}
