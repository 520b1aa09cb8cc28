// What a tile computes with: two float32 at a time. The loops of the codelets are written in these
// few functions, so that the host runs the same loops; only what is under __IPU__ here is not.
//
// A row whose length is no multiple of two, so that every second one begins between two lanes, is
// computed in single floats instead: every function has a form for these.
#pragma once
#include <cmath>
#include <poplar/HalfFloat.hpp>

#ifdef __IPU__
#include <ipu_vector_math>
#endif
#ifndef BESSKGE_MUST_BE_ALIGNED  // of host/poplar: stops the test
#define BESSKGE_MUST_BE_ALIGNED(p, bytes) static_cast<void>(p)
#endif

namespace besskge_core {

#ifdef __IPU__

typedef float2 Pair;
inline Pair both(float x) { return Pair{x, x}; }
inline float first(Pair x) { return x[0]; }
inline float second(Pair x) { return x[1]; }
inline Pair absolute(Pair x) { return ipu::fabs(x); }
inline float absolute(float x) { return ipu::fabs(x); }
inline float square_root(float x) { return ipu::sqrt(x); }
inline Pair pair_at(const float* p) { return *reinterpret_cast<const Pair*>(p); }
inline Pair pair_at(const half* p) {
  const half2 two = *reinterpret_cast<const half2*>(p);
  return Pair{static_cast<float>(two[0]), static_cast<float>(two[1])};
}
inline void put(float* p, Pair x) { *reinterpret_cast<Pair*>(p) = x; }

#else

struct Pair {
  float lane[2];
};
inline Pair operator+(Pair a, Pair b) {
  return {{a.lane[0] + b.lane[0], a.lane[1] + b.lane[1]}};
}
inline Pair operator-(Pair a, Pair b) {
  return {{a.lane[0] - b.lane[0], a.lane[1] - b.lane[1]}};
}
inline Pair operator*(Pair a, Pair b) {
  return {{a.lane[0] * b.lane[0], a.lane[1] * b.lane[1]}};
}
inline Pair both(float x) { return {{x, x}}; }
inline float first(Pair x) { return x.lane[0]; }
inline float second(Pair x) { return x.lane[1]; }
inline float absolute(float x) { return std::fabs(x); }
inline Pair absolute(Pair x) { return {{absolute(x.lane[0]), absolute(x.lane[1])}}; }
inline float square_root(float x) { return std::sqrt(x); }
// A tile reads and writes two lanes at once, from where both lie in one word; a test stops if not.
template <class Element>
inline Pair pair_at(const Element* p) {
  BESSKGE_MUST_BE_ALIGNED(p, 2 * sizeof(Element));
  return {{static_cast<float>(p[0]), static_cast<float>(p[1])}};
}
inline void put(float* p, Pair x) {
  BESSKGE_MUST_BE_ALIGNED(p, sizeof(Pair));
  p[0] = x.lane[0];
  p[1] = x.lane[1];
}

#endif

inline void put(float* p, float x) { *p = x; }

// How many entries a Lane holds; reading it; the same number in all; their sum.
template <class Lane>
struct Of;
template <>
struct Of<Pair> {
  static constexpr unsigned width = 2;
  template <class Element>
  static Pair at(const Element* p) {
    return pair_at(p);
  }
  static Pair all(float x) { return both(x); }
};
template <>
struct Of<float> {
  static constexpr unsigned width = 1;
  template <class Element>
  static float at(const Element* p) {
    return static_cast<float>(*p);
  }
  static float all(float x) { return x; }
};
inline float sum(Pair x) { return first(x) + second(x); }
inline float sum(float x) { return x; }

inline Pair square_root(Pair x) { return Pair{square_root(first(x)), square_root(second(x))}; }

// c with the sign of d: 0 where d is 0, and not a number where d is none.
inline float signed_by(float c, float d) { return d > 0.0f ? c : d < 0.0f ? -c : c * d; }
inline Pair signed_by(Pair c, Pair d) {
  return Pair{signed_by(first(c), first(d)), signed_by(second(c), second(d))};
}

// Squared moduli below this count as 0, for gradients: those of besskge_core/ops/pairwise.py.
constexpr float kLeastSquare = 1e-30f;

// 1 / sqrt(x), or 0 where x is none to speak of.
inline float inverse_root(float x) { return x < kLeastSquare ? 0.0f : 1.0f / square_root(x); }
inline Pair inverse_root(Pair x) { return Pair{inverse_root(first(x)), inverse_root(second(x))}; }

}  // namespace besskge_core
