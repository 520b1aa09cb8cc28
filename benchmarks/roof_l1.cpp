// The least that a sum of |a - b| can take: subtract, take the magnitude, add, from registers alone.
// c++ -O3 -march=native -shared -fPIC roof_l1.cpp

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float Block __attribute__((vector_size(4 * LANES)));
typedef int Bits __attribute__((vector_size(4 * LANES)));

extern "C" long terms_a_turn() { return 12 * LANES; }

// Adds |a - b| of LANES floats to twelve independent sums, `turns` times.
extern "C" float run(long turns) {
  Block sum[12] = {}, a = {}, b = {};
  for (int i = 0; i < LANES; ++i) a[i] = 1.5f + i, b[i] = 2.5f - i;
  const Bits magnitude = (Bits){} + 0x7fffffff;
  for (long turn = 0; turn < turns; ++turn)
#pragma GCC unroll 12
    for (int k = 0; k < 12; ++k) {
#if defined(__x86_64__)
      __asm__ volatile("" : "+v"(a));  // or the compiler computes the difference once
#else
      __asm__ volatile("" : "+w"(a));
#endif
      sum[k] += (Block)((Bits)(a - b) & magnitude);
    }
  float total = 0;
  for (int k = 0; k < 12; ++k)
    for (int i = 0; i < LANES; ++i) total += sum[k][i];
  return total;
}
