// Host stand-in for the SDK's header of this name: `half` as 16 bits in memory, read as a float.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

class half {
 public:
  operator float() const {
    const int exponent = bits_ >> 10 & 31, fraction = bits_ & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? std::ldexp(1024.0f + fraction, exponent - 25)
                                      : std::ldexp(1.0f * fraction, -24);
    return bits_ >> 15 ? -size : size;
  }

 private:
  std::uint16_t bits_;
};

namespace poplar {

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "codelet on the host: %s\n", why);
  std::abort();
}

inline void must_be_aligned(const void* p, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes) stop("a field is not aligned as it is read");
}

}  // namespace poplar

#define BESSKGE_MUST_BE_ALIGNED(p, bytes) poplar::must_be_aligned(p, bytes)
