// Places from `begin` on of scores above a bar, into `found`, until n or until there may be no room
// for another block; returns where it stopped. What is not a number is not above.

template <typename Scalar>
static int64_t places_above(const Scalar* score, int64_t begin, int64_t n, float bar, int64_t room,
                            int64_t* found, int64_t* n_found) {
  constexpr int64_t kBlock = 4 * kWidth;
  const Vec bars = all(bar);
  int64_t i = begin, count = 0;
  for (; i + kBlock <= n && count + kBlock <= room; i += kBlock) {
    IntVec any = load(score + i) > bars;
    for (int j = 1; j < 4; ++j) any |= load(score + i + j * kWidth) > bars;
    if (!has_any(any)) continue;
    for (int64_t j = i; j < i + kBlock; ++j) {
      found[count] = j;
      count += widen(score[j]) > bar;
    }
  }
  for (; n - i < kBlock && i < n && count < room; ++i) {
    found[count] = i;
    count += widen(score[i]) > bar;
  }
  *n_found = count;
  return i;
}

static int64_t places_above(const double* score, int64_t begin, int64_t n, double bar, int64_t room,
                            int64_t* found, int64_t* n_found) {
  int64_t i = begin, count = 0;
  for (; i < n && count < room; ++i) {
    found[count] = i;
    count += score[i] > bar;
  }
  *n_found = count;
  return i;
}
