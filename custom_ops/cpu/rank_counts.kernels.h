// How many of n scores are above one, and how many are equal to it; float, or bfloat16 as uint16_t.

template <typename Scalar>
static void count_row(const Scalar* score, int64_t n, float truth, int64_t* above, int64_t* same) {
  const Vec wanted = all(truth);
  // A lane's count of a block fits 32 bits.
  constexpr int64_t kBlock = int64_t{1} << 30;
  int64_t i = 0;
  while (i < n) {
    const int64_t end = n - i < kBlock ? n : i + kBlock;
    IntVec more = {}, equal = {};
    for (; i + kWidth <= end; i += kWidth) {
      const Vec x = load(score + i);
      more -= x > wanted;
      equal -= x == wanted;
    }
    if (i < end) {
      const Vec x = load_first(score + i, end - i);
      for (int64_t j = 0; j < end - i; ++j) {
        more[j] += x[j] > truth;
        equal[j] += x[j] == truth;
      }
      i = end;
    }
    for (int j = 0; j < kWidth; ++j) {
      *above += more[j];
      *same += equal[j];
    }
  }
}

static void count_row(const double* score, int64_t n, double truth, int64_t* above,
                      int64_t* same) {
  int64_t more = 0, equal = 0;
  for (int64_t i = 0; i < n; ++i) {
    more += score[i] > truth;
    equal += score[i] == truth;
  }
  *above += more;
  *same += equal;
}
