// Vectors of BESSKGE_WIDTH floats, in the compiler's own vector types: one source for every
// instruction set. Included by each_isa.h inside the namespace of one. What needs the instructions
// of one asks for BESSKGE_WIDTH: the compiler's own macros, such as __AVX512F__, do not follow a
// pragma before GCC 13.

#undef BESSKGE_INLINE
#define BESSKGE_INLINE static inline __attribute__((always_inline, unused))

constexpr int kWidth = BESSKGE_WIDTH;
typedef float Vec __attribute__((vector_size(4 * BESSKGE_WIDTH)));
typedef int32_t IntVec __attribute__((vector_size(4 * BESSKGE_WIDTH)));

BESSKGE_INLINE Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

BESSKGE_INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// The first n of a vector, n < kWidth; the rest is 0, and not written.
BESSKGE_INLINE Vec load_first(const float* from, int64_t n) {
#if BESSKGE_WIDTH == 16
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), from);
#else
  Vec v = {};
  std::memcpy(&v, from, 4 * static_cast<size_t>(n));
  return v;
#endif
}

BESSKGE_INLINE void store_first(float* to, Vec v, int64_t n) {
#if BESSKGE_WIDTH == 16
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1u), (__m512)v);
#else
  std::memcpy(to, &v, 4 * static_cast<size_t>(n));
#endif
}

// Of rows whose length is no multiple of kWidth: n are left, perhaps more than a vector.
BESSKGE_INLINE Vec load_some(const float* from, int64_t n) {
  return n < kWidth ? load_first(from, n) : load(from);
}

BESSKGE_INLINE void store_some(float* to, Vec v, int64_t n) {
  if (n < kWidth) {
    store_first(to, v, n);
  } else {
    store(to, v);
  }
}

BESSKGE_INLINE Vec all(float x) { return x - Vec{}; }

BESSKGE_INLINE Vec as_float(IntVec bits) { return (Vec)bits; }
BESSKGE_INLINE IntVec as_int(Vec v) { return (IntVec)v; }

BESSKGE_INLINE Vec absolute(Vec v) { return as_float(as_int(v) & 0x7fffffff); }
// The sign bit of a vector, as an integer mask that can be put on another.
BESSKGE_INLINE IntVec sign_bit(Vec v) { return as_int(v) & static_cast<int32_t>(0x80000000u); }
BESSKGE_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }   // b if one is not a number
BESSKGE_INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }  // b if one is not a number

// Whether a lane of a comparison is true.
BESSKGE_INLINE bool has_any(IntVec mask) {
#if BESSKGE_WIDTH == 16
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif BESSKGE_WIDTH == 8
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= mask[i];
  return any != 0;
#endif
}

BESSKGE_INLINE Vec square_root(Vec v) {
#if BESSKGE_WIDTH == 16
  return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
#elif BESSKGE_WIDTH == 8
  return (Vec)_mm256_sqrt_ps((__m256)v);
#else
  for (int i = 0; i < kWidth; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// The nearest integer of |v| below 2^22, ties to even.
BESSKGE_INLINE Vec nearest(Vec v) { return (v + 12582912.0f) - 12582912.0f; }

// c with the sign of d, or against it where d is negative; 0 where d is 0.
BESSKGE_INLINE Vec with_sign_of(Vec c, Vec d) {
#if BESSKGE_WIDTH == 16
  const __mmask16 some = _mm512_cmp_ps_mask((__m512)d, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  const __m512i sign = _mm512_set1_epi32(static_cast<int32_t>(0x80000000u));
  return (Vec)_mm512_maskz_ternarylogic_epi32(some, (__m512i)d, sign, (__m512i)c, 0x6a);
#else
  return as_float((as_int(c) ^ sign_bit(d)) & (d != Vec{}));
#endif
}

// 1 / sqrt(v) of finite v to 2e-7 of its value; below 1e-30 as there.
BESSKGE_INLINE Vec inverse_root(Vec v) {
  const Vec positive = larger(v, all(1e-30f));
#if BESSKGE_WIDTH == 16
  const Vec guess = (Vec)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)positive);
  return guess * (1.5f - (0.5f * positive) * (guess * guess));
#else
  return 1.0f / square_root(positive);
#endif
}

BESSKGE_INLINE float sum(Vec v) {
  float total[kWidth];
#if BESSKGE_WIDTH == 16
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                                      _mm512_maskz_extractf32x8_ps(0xff, (__m512)v, 1));
  _mm256_storeu_ps(total, halves);
  constexpr int kLeft = kWidth / 2;
#else
  store(total, v);
  constexpr int kLeft = kWidth;
#endif
  for (int half = kLeft / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) total[i] += total[i + half];
  }
  return total[0];
}

BESSKGE_INLINE float highest(Vec v) {
  float top[kWidth];
  store(top, v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) top[i] = top[i] > top[i + half] ? top[i] : top[i + half];
  }
  return top[0];
}

// e^x to 2e-7; 0 below -87.3, infinite above 88.7, NaN of NaN. Reduced by powers of two, then the
// polynomial of Cephes' expf.
BESSKGE_INLINE Vec exponential(Vec x) {
  const Vec high = all(88.72284f), low = all(-87.33655f);
  const Vec clamped = smaller(larger(x, low), high);
  const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to the nearest integer
  const Vec n = shifted - 12582912.0f;
  const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two halves, for n runs to 128.
  const IntVec whole = as_int(shifted) - 0x4b400000;
  const IntVec half = whole >> 1;
  p = p * as_float((half + 127) << 23) * as_float((whole - half + 127) << 23);
  p = x < low ? Vec{} : p;
  p = x > high ? all(HUGE_VALF) : p;
  return x != x ? x : p;
}

// log(1 + z) of z in [0, 1], to 2e-7 of its value: twice the inverse hyperbolic tangent of
// z / (2 + z).
BESSKGE_INLINE Vec log_one_plus(Vec z) {
  const Vec s = z / (z + 2.0f), t = s * s;
  Vec p = all(2.0f / 15.0f);
  p = p * t + 2.0f / 13.0f;
  p = p * t + 2.0f / 11.0f;
  p = p * t + 2.0f / 9.0f;
  p = p * t + 2.0f / 7.0f;
  p = p * t + 2.0f / 5.0f;
  p = p * t + 2.0f / 3.0f;
  p = p * t + 2.0f;
  return p * s;
}

// Computed and rounded by itself: not to be fused into a sum with what follows.
BESSKGE_INLINE Vec by_itself(Vec v) {
#if BESSKGE_WIDTH == 16
  __asm__("" : "+v"(v));
#elif BESSKGE_WIDTH == 8
  __asm__("" : "+x"(v));
#endif
  return v;
}

// -- bfloat16, the upper half of a float ---------------------------------------------------------

typedef uint16_t HalfVec __attribute__((vector_size(2 * BESSKGE_WIDTH)));
typedef uint32_t BitsVec __attribute__((vector_size(4 * BESSKGE_WIDTH)));

BESSKGE_INLINE Vec widened(HalfVec v) { return (Vec)(__builtin_convertvector(v, BitsVec) << 16); }

// Rounded to the nearest, to even where two are as near; what is not a number stays none.
BESSKGE_INLINE HalfVec narrowed(Vec v) {
  const BitsVec bits = (BitsVec)v;
  const BitsVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const BitsVec kept = v != v ? (bits >> 16) | 0x40 : rounded;
  return __builtin_convertvector(kept, HalfVec);
}

BESSKGE_INLINE Vec load(const uint16_t* from) {
  HalfVec v;
  std::memcpy(&v, from, sizeof v);
  return widened(v);
}

BESSKGE_INLINE void store(uint16_t* to, Vec v) {
  const HalfVec half = narrowed(v);
  std::memcpy(to, &half, sizeof half);
}

BESSKGE_INLINE Vec load_first(const uint16_t* from, int64_t n) {
  HalfVec v = {};
  std::memcpy(&v, from, 2 * static_cast<size_t>(n));
  return widened(v);
}

BESSKGE_INLINE void store_first(uint16_t* to, Vec v, int64_t n) {
  const HalfVec half = narrowed(v);
  std::memcpy(to, &half, 2 * static_cast<size_t>(n));
}
