// The loss of one row: a positive score against the scores of its negatives, with its slopes.
//
// Included by each_isa.h; `LossRule` is in losses.h. N: negatives of the row.

// Lanes of the i-th vector that are negatives, of n.
BESSKGE_INLINE IntVec within(int64_t i, int64_t n) {
  IntVec lane;
  for (int k = 0; k < kWidth; ++k) lane[k] = k;
  const int64_t left = n - i < kWidth ? n - i : kWidth;
  return lane < static_cast<int32_t>(left);
}

BESSKGE_INLINE Vec only(IntVec which, Vec v) { return as_float(which & as_int(v)); }

// e^(factor s - the highest of them) -> shares (N, padded with 0). Returns their sum and sets the
// highest.
static float exponentials(const float* scores, float factor, int64_t n, float* shares,
                          float& top) {
  Vec most = all(-HUGE_VALF);
  for (int64_t i = 0; i < n; i += kWidth) {
    const Vec v = load(scores + i) * factor;
    most = larger(within(i, n) ? v : all(-HUGE_VALF), most);
  }
  top = highest(most);
  Vec total = {};
  for (int64_t i = 0; i < n; i += kWidth) {
    const Vec v = only(within(i, n), exponential(load(scores + i) * factor - top));
    store(shares + i, v);
    total += v;
  }
  return sum(total);
}

// What negatives cost beside each other, f(s + shift), and its slope.
struct Softplus {
  BESSKGE_INLINE void of(Vec x, Vec& cost, Vec& slope) {
    const Vec z = exponential(-absolute(x));
    cost = larger(x, Vec{}) + log_one_plus(z);
    cost = x != x ? x : cost;
    slope = (x < 0.0f ? z : all(1.0f)) / (z + 1.0f);
  }
};
struct Relu {
  BESSKGE_INLINE void of(Vec x, Vec& cost, Vec& slope) {
    cost = x <= 0.0f ? Vec{} : x;  // what is no number stays none
    slope = x <= 0.0f ? Vec{} : all(1.0f);
  }
};
struct Identity {
  BESSKGE_INLINE void of(Vec x, Vec& cost, Vec& slope) {
    cost = x;
    slope = all(1.0f);
  }
};

// The sum of share f(s + shift) over the negatives; slopes (N, padded with 0) times `scale`, and
// their sum. Shares are in `slopes`, or where `share` is not negative that of all.
template <class Cost>
static float weighted_costs(const float* scores, float shift, float share, float scale, int64_t n,
                            float* slopes, float& slope_sum) {
  Vec total = {}, total_slope = {};
  for (int64_t i = 0; i < n; i += kWidth) {
    Vec cost, slope;
    Cost::of(load(scores + i) + shift, cost, slope);
    const Vec weight = only(within(i, n), share < 0.0f ? load(slopes + i) : all(share));
    total += only(within(i, n), weight * cost);
    slope = only(within(i, n), weight * slope * scale);
    total_slope += slope;
    store(slopes + i, slope);
  }
  slope_sum = sum(total_slope);
  return sum(total);
}

// Costs of negatives each by itself, or by how much they exceed the positive.
template <class Cost>
static float row_of_costs(const LossRule& rule, float positive, const float* scores, int64_t n,
                          float share, float scale, float* slopes, float& positive_slope) {
  float slope_sum = 0.0f;
  if (rule.kind == LossKind::ranking) {
    const float cost = weighted_costs<Cost>(scores, rule.margin - positive, share, scale, n,
                                            slopes, slope_sum);
    positive_slope = -slope_sum;
    return scale * cost;
  }
  const float negatives = scale * rule.negative_factor, own = scale * rule.positive_factor;
  const float cost =
      weighted_costs<Cost>(scores, rule.margin, share, negatives, n, slopes, slope_sum);
  Vec own_cost, own_slope;
  Cost::of(all(rule.positive_margin - positive), own_cost, own_slope);
  positive_slope = -own * own_slope[0];
  return own * own_cost[0] + negatives * cost;
}

static float row_of_shares(const LossRule& rule, float positive, const float* scores, int64_t n,
                           float scale, float* slopes, float& positive_slope) {
  const float factor = 1.0f / rule.temperature;
  float top = 0.0f;
  const float total = exponentials(scores, factor, n, slopes, top);
  Vec cost, slope;
  Softplus::of(all(top + std::log(total) + rule.offset - (positive - rule.margin) * factor), cost,
               slope);
  positive_slope = -scale * factor * slope[0];
  const float share = -positive_slope / total;
  for (int64_t i = 0; i < n; i += kWidth) store(slopes + i, load(slopes + i) * share);
  return scale * cost[0];
}

// The loss of a row. `scores`: (N), padded to whole vectors with anything. Returns the loss; sets
// the slope of the positive and those of the negatives (N, padded with 0), all times `scale`.
static float row_loss(const LossRule& rule, float positive, const float* scores, int64_t n,
                      float scale, float* slopes, float& positive_slope) {
  if (rule.kind == LossKind::softmax) {
    return row_of_shares(rule, positive, scores, n, scale, slopes, positive_slope);
  }
  float share = 1.0f / static_cast<float>(n);
  if (rule.adversarial) {
    float top = 0.0f;
    const float total = exponentials(scores, rule.temperature, n, slopes, top);
    for (int64_t i = 0; i < n; i += kWidth) store(slopes + i, load(slopes + i) / total);
    share = -1.0f;
  }
  switch (rule.activation) {
    case Activation::relu:
      return row_of_costs<Relu>(rule, positive, scores, n, share, scale, slopes, positive_slope);
    case Activation::softplus:
      return row_of_costs<Softplus>(rule, positive, scores, n, share, scale, slopes,
                                    positive_slope);
    default:
      return row_of_costs<Identity>(rule, positive, scores, n, share, scale, slopes,
                                    positive_slope);
  }
}
