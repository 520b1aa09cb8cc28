// Rows of a tile of scores, float or bfloat16 (as uint16_t), for a softmax over whole rows.

template <typename Scalar>
BESSKGE_INLINE Vec logits(const Scalar* score, float scale) {
  return by_itself(load(score) * scale);
}

template <typename Scalar>
BESSKGE_INLINE Vec first_logits(const Scalar* score, int64_t n, float scale) {
  return by_itself(load_first(score, n) * scale);
}

// The largest of n scores, and the sum of exp(scale * (score - largest)); 0 is taken for the
// largest where all are -inf.
template <typename Scalar>
static void log_sum_row(const Scalar* score, int64_t n, float scale, float* top, float* sum_out) {
  const int64_t whole = n - n % kWidth;
  Vec highest_0 = all(-HUGE_VALF), highest_1 = highest_0;
  int64_t i = 0;
  for (; i + 2 * kWidth <= whole; i += 2 * kWidth) {
    highest_0 = larger(load(score + i), highest_0);
    highest_1 = larger(load(score + i + kWidth), highest_1);
  }
  for (; i < whole; i += kWidth) highest_0 = larger(load(score + i), highest_0);
  float peak = highest(larger(highest_0, highest_1));
  for (; i < n; ++i) {
    const float x = load_first(score + i, 1)[0];
    peak = x > peak ? x : peak;
  }
  const Vec less = by_itself(all(peak == -HUGE_VALF ? 0.0f : peak) * scale);
  Vec sum_0 = {}, sum_1 = {};
  for (i = 0; i + 2 * kWidth <= whole; i += 2 * kWidth) {
    sum_0 += exponential(logits(score + i, scale) - less);
    sum_1 += exponential(logits(score + i + kWidth, scale) - less);
  }
  for (; i < whole; i += kWidth) sum_0 += exponential(logits(score + i, scale) - less);
  float total = sum(sum_0 + sum_1);
  if (i < n) {
    const Vec last = exponential(first_logits(score + i, n - i, scale) - less);
    for (int64_t j = 0; j < n - i; ++j) total += last[j];
  }
  *top = less[0];
  *sum_out = total;
}

// weight * exp(scale * score - log_total); `gradient` may be `score`.
template <typename Scalar>
static void gradient_row(const Scalar* score, int64_t n, float scale, float log_total,
                         float weight, Scalar* gradient) {
  const Vec less = all(log_total), zero = {};
  int64_t i = 0;
  // Whatever the rounding, no logit is above the log-sum-exp of all. NaN stays.
  for (; i + kWidth <= n; i += kWidth) {
    store(gradient + i, exponential(smaller(zero, logits(score + i, scale) - less)) * weight);
  }
  if (i < n) {
    const Vec x = first_logits(score + i, n - i, scale) - less;
    store_first(gradient + i, exponential(smaller(zero, x)) * weight, n - i);
  }
}

static void narrow(const float* from, int64_t n, uint16_t* to) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(to + i, load(from + i));
  if (i < n) store_first(to + i, load_first(from + i, n - i), n - i);
}

template <typename Scalar>
static void sum_into(float* sum, const Scalar* more, int64_t n, bool add) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec x = load(more + i);
    store(sum + i, add ? load(sum + i) + x : x);
  }
  if (i < n) {
    const Vec x = load_first(more + i, n - i);
    store_first(sum + i, add ? load_first(sum + i, n - i) + x : x, n - i);
  }
}
