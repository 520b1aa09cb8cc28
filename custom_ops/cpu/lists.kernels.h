// One query against rows of its own, read from where they are: the answer of a positive, or the
// candidates of one triple. Included by each_isa.h.

constexpr int kList = 4;  // rows that are read together

// The sum of a query with an entity (D).
template <class Metric>
static float sum_of_pair(const Chunked& q, const float* e, int64_t half) {
  const int64_t n_chunk = chunks_of(half);
  Vec total = {};
  for (int64_t j = 0; j < n_chunk; ++j) {
    const int64_t left = half - j * kWidth;
    const Vec re = load_some(e + j * kWidth, left);
    if constexpr (Metric::kComplex) {
      const Vec im = load_some(e + half + j * kWidth, left);
      total = Metric::add(total, load(q.at(0, j)), load(q.at(0, n_chunk + j)), re, im);
    } else {
      total = Metric::add(total, load(q.at(0, j)), re);
    }
  }
  return sum(total);
}

// The gradients of a query, added to dq, and of an entity -> de (D).
template <class Metric>
static void pair_gradient(const Chunked& q, const float* e, int64_t half, float c,
                          const Chunked& dq, float* de) {
  const int64_t n_chunk = chunks_of(half);
  const Vec factor = all(c);
  for (int64_t j = 0; j < n_chunk; ++j) {
    const int64_t left = half - j * kWidth;
    if constexpr (Metric::kComplex) {
      const Vec own[2] = {load(q.at(0, j)), load(q.at(0, n_chunk + j))};
      const Vec other[2] = {load_some(e + j * kWidth, left),
                            load_some(e + half + j * kWidth, left)};
      Vec of_own[2] = {load(dq.at(0, j)), load(dq.at(0, n_chunk + j))}, of_other[2] = {};
      Metric::gradient(factor, own, other, of_own, of_other);
      store(dq.at(0, j), of_own[0]);
      store(dq.at(0, n_chunk + j), of_own[1]);
      store_some(de + j * kWidth, of_other[0], left);
      store_some(de + half + j * kWidth, of_other[1], left);
    } else {
      Vec of_own = load(dq.at(0, j)), of_other = {};
      Metric::gradient(factor, load(q.at(0, j)), load_some(e + j * kWidth, left), of_own,
                       of_other);
      store(dq.at(0, j), of_own);
      store_some(de + j * kWidth, of_other, left);
    }
  }
}

BESSKGE_INLINE void prefetch_row(const float* row, int64_t d) {
  for (int64_t k = 0; k < d; k += 16) __builtin_prefetch(row + k);
}

// Sums of a query with n look-ups from `first` -> sums.
template <class Metric>
static void list_sums(const Chunked& q, const Rows& rows, int64_t first, int64_t n, int64_t half,
                      float* sums) {
  const int64_t n_chunk = chunks_of(half);
  for (int64_t i = 0; i < n; i += kList) {
    const float* e[kList];
    Vec total[kList];
    for (int k = 0; k < kList; ++k) {
      e[k] = rows[first + (i + k < n ? i + k : n - 1)];
      if (i + kList + k < n) prefetch_row(rows[first + i + kList + k], rows.width);
      total[k] = Vec{};
    }
    for (int64_t j = 0; j < n_chunk; ++j) {
      const int64_t left = half - j * kWidth;
      const Vec own = load(q.at(0, j));
      for (int k = 0; k < kList; ++k) {
        const Vec re = load_some(e[k] + j * kWidth, left);
        if constexpr (Metric::kComplex) {
          const Vec im = load_some(e[k] + half + j * kWidth, left);
          total[k] = Metric::add(total[k], own, load(q.at(0, n_chunk + j)), re, im);
        } else {
          total[k] = Metric::add(total[k], own, re);
        }
      }
    }
    for (int k = 0; k < kList && i + k < n; ++k) sums[i + k] = sum(total[k]);
  }
}

// The gradient of a query from n look-ups, with coefficients c -> dq.
template <class Metric>
static void list_gradient(const Chunked& q, const Rows& rows, int64_t first, int64_t n,
                          int64_t half, const float* c, const Chunked& dq) {
  const int64_t n_chunk = chunks_of(half);
  for (int64_t j = 0; j < n_chunk * (Metric::kComplex ? 2 : 1); ++j) store(dq.at(0, j), Vec{});
  for (int64_t i = 0; i < n; i += kList) {
    const float* e[kList];
    Vec factor[kList];
    for (int k = 0; k < kList; ++k) {
      e[k] = rows[first + (i + k < n ? i + k : n - 1)];
      factor[k] = i + k < n ? all(c[i + k]) : Vec{};
    }
    for (int64_t j = 0; j < n_chunk; ++j) {
      const int64_t left = half - j * kWidth;
      if constexpr (Metric::kComplex) {
        const Vec own[2] = {load(q.at(0, j)), load(q.at(0, n_chunk + j))};
        Vec sums[2] = {load(dq.at(0, j)), load(dq.at(0, n_chunk + j))};
        for (int k = 0; k < kList; ++k) {
          const Vec other[2] = {load_some(e[k] + j * kWidth, left),
                                load_some(e[k] + half + j * kWidth, left)};
          Vec unused[2] = {};
          Metric::gradient(factor[k], own, other, sums, unused);
        }
        store(dq.at(0, j), sums[0]);
        store(dq.at(0, n_chunk + j), sums[1]);
      } else {
        const Vec own = load(q.at(0, j));
        Vec sums = load(dq.at(0, j)), unused = {};
        for (int k = 0; k < kList; ++k) {
          Metric::gradient(factor[k], own, load_some(e[k] + j * kWidth, left), sums, unused);
        }
        store(dq.at(0, j), sums);
      }
    }
  }
}

// Chunks j to j + kCount of the gradient of a distinct row: the sum of its look-ups from `begin`
// to `end` of the plan.
template <class Metric, int kCount>
static void unique_row_chunks(const ListJob& job, int64_t u, int64_t begin, int64_t end,
                              int64_t j0) {
  constexpr int kParts = Metric::kComplex ? 2 : 1;
  const int64_t d = job.rows.width, half = job.half, n_chunk = chunks_of(half);
  const float* row = job.rows.table + job.unique_rows[u] * d;
  Vec other[kCount][2], sums[kCount][2];
  for (int j = 0; j < kCount; ++j) {
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = (j0 + j) * kWidth;
      other[j][part] = load_some(row + part * half + at, half - at);
      sums[j][part] = Vec{};
    }
  }
  for (int64_t k = begin; k < end; ++k) {
    const int64_t lookup = job.order[k];
    if (lookup < job.first) {
      const float* own = job.d_first + lookup * d;
      for (int j = 0; j < kCount; ++j) {
        for (int part = 0; part < kParts; ++part) {
          const int64_t at = (j0 + j) * kWidth;
          sums[j][part] += load_some(own + part * half + at, half - at);
        }
      }
      continue;
    }
    const int64_t b = (lookup - job.first) / job.n_each;
    const int64_t i = (lookup - job.first) % job.n_each;
    const Vec c = all(job.c[b * job.c_stride + i]);
    for (int j = 0; j < kCount; ++j) {
      if constexpr (Metric::kComplex) {
        const Vec own[2] = {load(job.q.at(b, j0 + j)), load(job.q.at(b, n_chunk + j0 + j))};
        Vec unused[2] = {};
        Metric::gradient(c, own, other[j], unused, sums[j]);
      } else {
        Vec unused = {};
        Metric::gradient(c, load(job.q.at(b, j0 + j)), other[j][0], unused, sums[j][0]);
      }
    }
  }
  for (int j = 0; j < kCount; ++j) {
    for (int part = 0; part < kParts; ++part) {
      const int64_t at = (j0 + j) * kWidth;
      store_some(job.d_unique + u * d + part * half + at, sums[j][part], half - at);
    }
  }
}

// Gradients of distinct rows first to last; those of padding, which has no look-ups and no row, are 0.
template <class Metric>
static void unique_rows_of(const ListJob& job, int64_t first, int64_t last) {
  constexpr int kCount = Metric::kComplex ? 2 : BESSKGE_WIDTH == 16 ? 8 : 4;
  const int64_t n_chunk = chunks_of(job.half);
  for (int64_t u = first; u < last; ++u) {
    const int64_t begin = job.run_offsets[u];
    const int64_t end = u + 1 < job.n_unique ? job.run_offsets[u + 1] : job.n_lookup;
    if (begin == end) {
      std::memset(job.d_unique + u * job.rows.width, 0,
                  sizeof(float) * static_cast<size_t>(job.rows.width));
      continue;
    }
    int64_t j = 0;
    for (; j + kCount <= n_chunk; j += kCount) {
      unique_row_chunks<Metric, kCount>(job, u, begin, end, j);
    }
    for (; j < n_chunk; ++j) unique_row_chunks<Metric, 1>(job, u, begin, end, j);
  }
}
