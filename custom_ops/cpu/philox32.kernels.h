// Philox4x32-10 (Salmon et al., SC 2011), kWidth counters at a time; included by kernels after
// simd.h, inside the namespace of an instruction set.

typedef uint32_t WordVec __attribute__((vector_size(4 * BESSKGE_WIDTH)));
typedef uint64_t PairVec __attribute__((vector_size(4 * BESSKGE_WIDTH)));

// The lower half of each pair of words times a factor, in 64 bits.
BESSKGE_INLINE PairVec wide_product(PairVec x, uint32_t factor) {
#if BESSKGE_WIDTH == 16
  return (PairVec)_mm512_maskz_mul_epu32(0xff, (__m512i)x, _mm512_set1_epi64(factor));
#elif BESSKGE_WIDTH == 8
  return (PairVec)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
  return (PairVec)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(factor));
#else
  return (x & 0xffffffffu) * factor;
#endif
}

// Upper and lower words of x * factor.
BESSKGE_INLINE void products(WordVec x, uint32_t factor, WordVec* high, WordVec* low) {
  const PairVec pairs = (PairVec)x;  // words 0 and 1 of a pair are its lower and upper half
  const PairVec even = wide_product(pairs, factor), odd = wide_product(pairs >> 32, factor);
  const PairVec lower = PairVec{} + 0xffffffffu;
  *high = (WordVec)((even >> 32) | (odd & ~lower));
  *low = (WordVec)((even & lower) | (odd << 32));
}

// Ten rounds, in place.
BESSKGE_INLINE void philox(WordVec counter[4], const uint32_t key[2]) {
  uint32_t key0 = key[0], key1 = key[1];
  for (int round = 0; round < 10; ++round) {
    WordVec high0, low0, high1, low1;
    products(counter[0], 0xD2511F53u, &high0, &low0);
    products(counter[2], 0xCD9E8D57u, &high1, &low1);
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}
