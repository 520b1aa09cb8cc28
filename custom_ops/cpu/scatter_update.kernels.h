// Updates of rows, for one instruction set. Products and sums are rounded apart, never fused, and
// sums over a row have one order, so that every instruction set gives the bits of the reference.
#include "philox32.kernels.h"

#pragma GCC push_options
#pragma GCC optimize("fp-contract=off")

typedef uint16_t HalfVec __attribute__((vector_size(2 * BESSKGE_WIDTH)));

constexpr int64_t kLanes = 16;          // of the widest vector; what is random is in terms of it
constexpr int64_t kGroup = 8 * kLanes;  // columns that share the words of 16 counters
constexpr int kSums = 64;               // of the squares of a row, that go side by side
constexpr int64_t kLine = 64 / sizeof(float);
constexpr int64_t kAhead = 2;  // rows whose memory is called for before it is needed

BESSKGE_INLINE Vec wide(HalfVec half) {
  return (Vec)(__builtin_convertvector(half, WordVec) << 16);
}

// A row of bfloat16 as floats; what lies behind it in scratch is left alone.
static void widen_row(const uint16_t* from, float* to, int64_t width) {
  int64_t c = 0;
  for (; c + kWidth <= width; c += kWidth) {
    HalfVec half;
    std::memcpy(&half, from + c, sizeof half);
    store(to + c, wide(half));
  }
  for (; c < width; ++c) {
    const uint32_t bits = static_cast<uint32_t>(from[c]) << 16;
    std::memcpy(to + c, &bits, 4);
  }
}

// The 32-bit words of a group of columns, 4 from each of 16 counters: words[i][lane].
static void random_words(const Update& u, int64_t row, int64_t group, uint32_t words[4][kLanes]) {
  uint32_t number[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) number[i] = static_cast<uint32_t>(group * kLanes + i);
  for (int64_t lane = 0; lane < kLanes; lane += kWidth) {
    WordVec counter[4] = {{}, WordVec{} + static_cast<uint32_t>(row), WordVec{} + u.step,
                          WordVec{} + u.stream};
    std::memcpy(&counter[0], number + lane, sizeof counter[0]);
    philox(counter, u.key);
    for (int i = 0; i < 4; ++i) std::memcpy(&words[i][lane], &counter[i], sizeof counter[i]);
  }
}

// Floats as bfloat16, to the nearest or stochastically; `from` can be read to a full vector.
template <bool kStochastic>
static void narrow_row(const Update& u, int64_t row, const float* from, uint16_t* to) {
  uint32_t words[4][kLanes];
  for (int64_t c = 0; c < u.width; c += kWidth) {
    const Vec v = load(from + c);
    const WordVec bits = (WordVec)v;
    WordVec more;
    if (kStochastic) {
      if (c % kGroup == 0) random_words(u, row, c / kGroup, words);
      const int64_t half = c % kGroup / kLanes;  // lower halves of the words, then upper ones
      std::memcpy(&more, &words[half % 4][c % kLanes], sizeof more);
      more = half < 4 ? more & 0xffffu : more >> 16;
    } else {
      more = ((bits >> 16) & 1u) + 0x7fffu;
    }
    WordVec rounded = (bits + more) >> 16;
    rounded = v == v ? rounded : WordVec{} + 0x7fc0u;
    const HalfVec half = __builtin_convertvector(rounded, HalfVec);
    const int64_t n = u.width - c;
    std::memcpy(to + c, &half, n >= kWidth ? sizeof half : 2 * static_cast<size_t>(n));
  }
}

// The sum of squares of a row: those kSums columns apart one after the other, then these sums by
// halves.
static float sum_of_squares(const float* x, int64_t width) {
  Vec sums[kSums / kWidth] = {};
  int64_t c = 0;
  for (; c + kSums <= width; c += kSums) {
    for (int i = 0; i < kSums / kWidth; ++i) {
      const Vec v = load(x + c + i * kWidth);
      sums[i] += v * v;
    }
  }
  for (int i = 0; c < width; ++i, c += kWidth) {
    const Vec v = c + kWidth <= width ? load(x + c) : load_first(x + c, width - c);
    sums[i] += v * v;
  }
  for (int n = kSums / kWidth / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) sums[i] += sums[i + n];
  }
  return sum(sums[0]);
}

template <int kWrite>
BESSKGE_INLINE void prefetch_row(const float* row, int64_t width) {
  for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(row + c, kWrite);
}

// One vector of the rule; `root` is that of a row where the rule keeps one number for it.
template <Rule kRule>
BESSKGE_INLINE void change(const Factors& f, Vec& w, Vec& first, Vec& second, Vec g, Vec root) {
  w = w * f.keep;
  if (kRule == Rule::sgd) {
    w = w - g * f.lr;
  } else if (kRule == Rule::momentum) {
    first = first * f.beta1 + g;
    w = w - first * f.lr;
  } else if (kRule == Rule::adagrad) {
    second = second + g * g;
    w = w - g / (square_root(second) + f.eps) * f.lr;
  } else if (kRule == Rule::rowwise_adagrad) {
    w = w - g / root * f.lr;
  } else {
    first = first * f.beta1 + g * f.rest1;
    if (kRule == Rule::adam) {
      second = second * f.beta2 + g * g * f.rest2;
      root = square_root(second * f.correction) + f.eps;
    }
    w = w - first / root * f.lr;
  }
}

template <Rule kRule>
static void change_row(const Factors& f, float* w, float* first, float* second, const float* g,
                       int64_t width) {
  constexpr bool kFirst =
      kRule == Rule::momentum || kRule == Rule::adam || kRule == Rule::rowwise_adam;
  constexpr bool kSecond = kRule == Rule::adagrad || kRule == Rule::adam;
  Vec root = {};
  if (kRule == Rule::rowwise_adagrad || kRule == Rule::rowwise_adam) {
    const float mean = sum_of_squares(g, width) / static_cast<float>(width);
    if (kRule == Rule::rowwise_adagrad) {
      *second = *second + mean;
      root = all(std::sqrt(*second) + f.eps);
    } else {
      *second = *second * f.beta2 + mean * f.rest2;
      root = all(std::sqrt(*second * f.correction) + f.eps);
    }
  }
  int64_t c = 0;
  for (; c + kWidth <= width; c += kWidth) {
    Vec weight = load(w + c), m = {}, v = {};
    if (kFirst) m = load(first + c);
    if (kSecond) v = load(second + c);
    change<kRule>(f, weight, m, v, load(g + c), root);
    store(w + c, weight);
    if (kFirst) store(first + c, m);
    if (kSecond) store(second + c, v);
  }
  if (c < width) {
    const int64_t n = width - c;
    Vec weight = load_first(w + c, n), m = {}, v = {};
    if (kFirst) m = load_first(first + c, n);
    if (kSecond) v = load_first(second + c, n);
    change<kRule>(f, weight, m, v, load_first(g + c, n), root);
    store_first(w + c, weight, n);
    if (kFirst) store_first(first + c, m, n);
    if (kSecond) store_first(second + c, v, n);
  }
}

// The values of look-up k, as they lie or widened in scratch.
BESSKGE_INLINE const float* value_of(const Update& u, int64_t k, float* scratch) {
  const int64_t start = (u.order == nullptr ? k : u.order[k]) * u.value_stride;
  if (u.values != nullptr) return u.values + start;
  widen_row(u.half_values + start, scratch, u.width);
  return scratch;
}

// The gradient of the i-th row: its values summed in their order, in scratch if need be.
static const float* gradient(const Update& u, int64_t i, float* scratch, float* other) {
  int64_t first = i, last = i + 1;
  if (u.run_offsets != nullptr) {
    first = u.run_offsets[i];
    last = i + 1 < u.n_row ? u.run_offsets[i + 1] : u.n_value;
  }
  if (last == first + 1) return value_of(u, first, scratch);
  std::memset(scratch, 0, 4 * static_cast<size_t>(u.width));
  for (int64_t k = first; k < last; ++k) {
    if (k + 2 < last && u.values != nullptr && u.order != nullptr) {
      prefetch_row<0>(u.values + u.order[k + 2] * u.value_stride, u.width);
    }
    const float* value = value_of(u, k, other);
    int64_t c = 0;
    for (; c + kWidth <= u.width; c += kWidth) {
      store(scratch + c, load(scratch + c) + load(value + c));
    }
    if (c < u.width) {
      const int64_t n = u.width - c;
      store_first(scratch + c, load_first(scratch + c, n) + load_first(value + c, n), n);
    }
  }
  return scratch;
}

// What the i-th row will need, called for, some rows ahead.
BESSKGE_INLINE void prefetch(const Update& u, int64_t i) {
  const int64_t row = u.rows == nullptr ? i : u.rows[i];
  if (u.table != nullptr) prefetch_row<1>(u.table + row * u.width, u.width);
  if (u.half_table != nullptr) {
    prefetch_row<1>(reinterpret_cast<float*>(u.half_table + row * u.width), (u.width + 1) / 2);
  }
  if (u.first != nullptr) prefetch_row<1>(u.first + row * u.width, u.width);
  if (u.second != nullptr) prefetch_row<1>(u.second + row * u.second_width, u.second_width);
  if (u.values != nullptr) {
    const int64_t k = u.run_offsets == nullptr ? i : u.run_offsets[i];
    if (k < u.n_value) {
      prefetch_row<0>(u.values + (u.order == nullptr ? k : u.order[k]) * u.value_stride, u.width);
    }
  }
}

template <Rule kRule>
static void update_rows_by(const Update& u, int64_t begin, int64_t end, float* scratch) {
  const int64_t padded = scratch_row(u.width);
  float *total = scratch, *weights = scratch + padded, *other = scratch + 2 * padded;
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) prefetch(u, i + kAhead);
    const int64_t row = u.rows == nullptr ? i : u.rows[i];
    const float* g = gradient(u, i, total, other);
    float* first = u.first + (u.first == nullptr ? 0 : row * u.width);
    float* second = u.second + (u.second == nullptr ? 0 : row * u.second_width);
    if (u.table != nullptr) {
      change_row<kRule>(u.factors, u.table + row * u.width, first, second, g, u.width);
      continue;
    }
    uint16_t* narrow = u.half_table + row * u.width;
    widen_row(narrow, weights, u.width);
    change_row<kRule>(u.factors, weights, first, second, g, u.width);
    if (u.stochastic) {
      narrow_row<true>(u, row, weights, narrow);
    } else {
      narrow_row<false>(u, row, weights, narrow);
    }
  }
}

// Rows `begin` to `end` of those of the update; scratch holds 3 rows of scratch_row(width).
static void update_rows(const Update& u, int64_t begin, int64_t end, float* scratch) {
  switch (u.rule) {
    case Rule::sgd: return update_rows_by<Rule::sgd>(u, begin, end, scratch);
    case Rule::momentum: return update_rows_by<Rule::momentum>(u, begin, end, scratch);
    case Rule::adagrad: return update_rows_by<Rule::adagrad>(u, begin, end, scratch);
    case Rule::rowwise_adagrad: return update_rows_by<Rule::rowwise_adagrad>(u, begin, end, scratch);
    case Rule::adam: return update_rows_by<Rule::adam>(u, begin, end, scratch);
    case Rule::rowwise_adam: return update_rows_by<Rule::rowwise_adam>(u, begin, end, scratch);
  }
}

#pragma GCC pop_options
