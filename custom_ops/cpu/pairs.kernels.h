// Scores of queries against shared candidates, and their gradients; a row of each pair never exists.
//
// Rows are packed by chunks of kWidth entries, [chunk][row][kWidth], padded with zeros: a query's
// entry is then a broadcast away, and a chunk of many rows lies together. A row of complex numbers
// has as many chunks of imaginary parts behind those of its real parts. For scoring, candidates are
// also packed in panels of kPanel columns, [entry][kPanel].
//
// Included by each_isa.h. Axes: B queries, N candidates, C chunks of a row.

#if BESSKGE_WIDTH == 16
constexpr int kRows = 12;      // most queries of a register tile of scores, beside two vectors
constexpr int kRowsBack = 10;  // most queries of a register tile of gradients
#else
constexpr int kRows = 4;
constexpr int kRowsBack = 4;
#endif
constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kWidth;

static PairsLayout pairs_layout() { return {kWidth, kRows, kPanel}; }
constexpr int kColumnsBack = 256;  // candidates of a block of the gradients: stays in the cache

// -- metrics: what a pair of entries adds to the score, and to the gradients ---------------------
//
// `add` is of many candidates and an entry of one query, or of many entries of one pair; `gradient`
// is of many entries of one pair, where c is the coefficient of the pair, see `coefficient`. The
// score is made of the sum at the end.

struct Dot {
  static constexpr bool kComplex = false, kWeighted = false;
  template <class Entry>
  BESSKGE_INLINE Vec add(Vec total, Entry q, Vec e) {
    return total + q * e;
  }
  BESSKGE_INLINE void gradient(Vec c, Vec q, Vec e, Vec& dq, Vec& de) {
    dq += c * e;
    de += c * q;
  }
  BESSKGE_INLINE Vec score(Vec total) { return total; }
  BESSKGE_INLINE Vec coefficient(Vec slope, Vec) { return slope; }
};

struct Difference {
  BESSKGE_INLINE Vec of(Vec d) { return d; }
};
struct TorusDifference {  // the shortest way round, of entries modulo 1
  BESSKGE_INLINE Vec of(Vec d) { return d - nearest(d); }
};

template <class Way>
struct L2 {
  static constexpr bool kComplex = false, kWeighted = false;
  template <class Entry>
  BESSKGE_INLINE Vec add(Vec total, Entry q, Vec e) {
    const Vec d = Way::of(q - e);
    return total + d * d;
  }
  BESSKGE_INLINE void gradient(Vec c, Vec q, Vec e, Vec& dq, Vec& de) {
    const Vec d = Way::of(q - e);
    dq += c * d;
    de -= c * d;
  }
  BESSKGE_INLINE Vec score(Vec total) { return -square_root(total); }
  // The gradient of a length is the unit vector; that of 0 is 0.
  BESSKGE_INLINE Vec coefficient(Vec slope, Vec score) {
    return score < 0.0f ? slope / score : Vec{};
  }
};

template <class Way>
struct L1 {
  static constexpr bool kComplex = false, kWeighted = false;
  template <class Entry>
  BESSKGE_INLINE Vec add(Vec total, Entry q, Vec e) {
    return total + absolute(Way::of(q - e));
  }
  BESSKGE_INLINE void gradient(Vec c, Vec q, Vec e, Vec& dq, Vec& de) {
    const Vec s = with_sign_of(c, Way::of(q - e));
    dq += s;
    de -= s;
  }
  BESSKGE_INLINE Vec score(Vec total) { return -total; }
  BESSKGE_INLINE Vec coefficient(Vec slope, Vec) { return -slope; }
};

// Moduli of complex differences: the real and imaginary parts of an entry come together.
struct Modulus {
  static constexpr bool kComplex = true, kWeighted = false;
  template <class Entry>
  BESSKGE_INLINE Vec add(Vec total, Entry q_re, Entry q_im, Vec e_re, Vec e_im) {
    const Vec re = q_re - e_re, im = q_im - e_im;
    const Vec square = re * re + im * im;
    return total + square * inverse_root(square);
  }
  BESSKGE_INLINE void gradient(Vec c, const Vec* q, const Vec* e, Vec* dq, Vec* de) {
    const Vec re = q[0] - e[0], im = q[1] - e[1];
    const Vec scaled = c * inverse_root(re * re + im * im);
    dq[0] += scaled * re;
    dq[1] += scaled * im;
    de[0] -= scaled * re;
    de[1] -= scaled * im;
  }
  BESSKGE_INLINE Vec score(Vec total) { return -total; }
  BESSKGE_INLINE Vec coefficient(Vec slope, Vec) { return -slope; }
};

// A query scales each candidate by its weights w first.
template <class Metric>
struct Weighted : Metric {
  static constexpr bool kWeighted = true;
  BESSKGE_INLINE Vec add(Vec total, float q, float w, Vec e) {
    return Metric::add(total, q, w * e);
  }
  BESSKGE_INLINE void gradient(Vec c, const Vec* q, const Vec* e, Vec* dq, Vec* de) {
    Vec of_scaled = {};
    Metric::gradient(c, q[0], q[1] * e[0], dq[0], of_scaled);
    dq[1] += of_scaled * e[0];
    de[0] += of_scaled * q[1];
  }
};

typedef L1<Difference> L1Distance;
typedef L2<Difference> L2Distance;
typedef L1<TorusDifference> TorusL1Distance;
typedef L2<TorusDifference> TorusL2Distance;
typedef Weighted<L1Distance> WeightedL1Distance;
typedef Weighted<L2Distance> WeightedL2Distance;

// Parts of a query and of a candidate that come together: real and imaginary, or row and weights.
template <class Metric>
constexpr int kQueryParts = Metric::kComplex || Metric::kWeighted ? 2 : 1;
template <class Metric>
constexpr int kCandidateParts = Metric::kComplex ? 2 : 1;

// -- packing -----------------------------------------------------------------------------------

BESSKGE_INLINE int64_t chunks_of(int64_t half) { return (half + kWidth - 1) / kWidth; }
BESSKGE_INLINE int64_t padded(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// A row (d) -> its chunks, `step` apart. `half`: where the imaginary parts begin, or d.
static void pack_row(const float* row, int64_t d, int64_t half, float* chunks, int64_t step) {
  const int64_t n_chunk = chunks_of(half);
  for (int64_t part = 0; part * half < d; ++part) {
    for (int64_t j = 0; j < n_chunk; ++j) {
      const Vec v = load_some(row + part * half + j * kWidth, half - j * kWidth);
      store(chunks + (part * n_chunk + j) * step, v);
    }
  }
}

// Chunks, `step` apart -> a row (d).
static void unpack_row(const float* chunks, int64_t step, int64_t d, int64_t half, float* row) {
  const int64_t n_chunk = chunks_of(half);
  for (int64_t part = 0; part * half < d; ++part) {
    for (int64_t j = 0; j < n_chunk; ++j) {
      const Vec v = load(chunks + (part * n_chunk + j) * step);
      store_some(row + part * half + j * kWidth, v, half - j * kWidth);
    }
  }
}

// A candidate (d) -> a column of a panel (d, kPanel); zeros where there is none.
static void pack_column(const float* row, int64_t d, float* panel, int64_t column) {
  for (int64_t k = 0; k < d; ++k) panel[k * kPanel + column] = row ? row[k] : 0.0f;
}

// -- scores ------------------------------------------------------------------------------------

template <class Metric>
constexpr int kScoreTile = kQueryParts<Metric> == 2 ? kRows / 2 : kRows;

// Sums of the queries of a tile, from b, with the columns of a panel -> out[r * stride + column].
// The weights of queries lie behind them, as imaginary parts do.
template <class Metric>
static void score_tile(const Chunked& q, int64_t b, const float* panel, int64_t half, float* out,
                       int64_t stride) {
  constexpr int kTile = kScoreTile<Metric>;
  Vec total[kTile][kVectors];
  for (int r = 0; r < kTile; ++r) {
    for (int v = 0; v < kVectors; ++v) total[r][v] = Vec{};
  }
  const int64_t n_chunk = chunks_of(half);
  for (int64_t j = 0; j < n_chunk; ++j) {
    const float* of_chunk = q.at(b, j);
    const float* second = q.at(b, n_chunk + j);
    const int64_t n_lane = half - j * kWidth < kWidth ? half - j * kWidth : kWidth;
    for (int64_t lane = 0; lane < n_lane; ++lane) {
      const float* e = panel + (j * kWidth + lane) * kPanel;
      Vec columns[kVectors], imaginary[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = load(e + v * kWidth);
        if constexpr (Metric::kComplex) imaginary[v] = load(e + half * kPanel + v * kWidth);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kTile; ++r) {
        const float own = of_chunk[r * kWidth + lane];
        for (int v = 0; v < kVectors; ++v) {
          if constexpr (Metric::kComplex) {
            total[r][v] = Metric::add(total[r][v], own, second[r * kWidth + lane], columns[v],
                                      imaginary[v]);
          } else if constexpr (Metric::kWeighted) {
            total[r][v] = Metric::add(total[r][v], own, second[r * kWidth + lane], columns[v]);
          } else {
            total[r][v] = Metric::add(total[r][v], own, columns[v]);
          }
        }
      }
    }
  }
  for (int r = 0; r < kTile; ++r) {
    for (int v = 0; v < kVectors; ++v) store(out + r * stride + v * kWidth, total[r][v]);
  }
}

// Sums of queries `first` to `last` with all candidates -> out (rows, stride). Chunks of rows lie
// together; of queries and out there are kRows more, which may hold anything.
template <class Metric>
static void score_rows(const Chunked& q, const float* panels, int64_t n_panel, int64_t d,
                       int64_t half, int64_t first, int64_t last, float* out, int64_t stride) {
  for (int64_t p = 0; p < n_panel; ++p) {
    const float* panel = panels + p * d * kPanel;
    for (int64_t b = first; b < last; b += kScoreTile<Metric>) {
      score_tile<Metric>(q, b, panel, half, out + (b - first) * stride + p * kPanel, stride);
    }
  }
}

// -- gradients ---------------------------------------------------------------------------------

// One chunk of the entries of all rows, and what is added to their gradients.
struct GradientChunk {
  const float* c;  // (B, c_stride), the coefficients of the pairs
  int64_t c_stride;
  const float* q;
  float* dq;
  const float* e;
  float* de;
  int64_t q_second, e_second;  // from the first parts to the second
};

// kTile queries from b, with candidates n0 to n1.
template <class Metric, int kTile>
static void gradient_tile(const GradientChunk& x, int64_t b, int64_t n0, int64_t n1) {
  constexpr int kOwn = kQueryParts<Metric>, kOther = kCandidateParts<Metric>;
  Vec own[kTile][kOwn], sums[kTile][kOwn];
  const float* c[kTile];
  for (int r = 0; r < kTile; ++r) {
    c[r] = x.c + (b + r) * x.c_stride;
    for (int part = 0; part < kOwn; ++part) {
      own[r][part] = load(x.q + part * x.q_second + (b + r) * kWidth);
      sums[r][part] = Vec{};
    }
  }
  for (int64_t i = n0; i < n1; ++i) {
    Vec other[kOther], of_other[kOther];
    for (int part = 0; part < kOther; ++part) {
      other[part] = load(x.e + part * x.e_second + i * kWidth);
      of_other[part] = load(x.de + part * x.e_second + i * kWidth);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kTile; ++r) {
      if constexpr (kOwn == 2) {
        Metric::gradient(all(c[r][i]), own[r], other, sums[r], of_other);
      } else {
        Metric::gradient(all(c[r][i]), own[r][0], other[0], sums[r][0], of_other[0]);
      }
    }
    for (int part = 0; part < kOther; ++part) {
      store(x.de + part * x.e_second + i * kWidth, of_other[part]);
    }
  }
  for (int r = 0; r < kTile; ++r) {
    for (int part = 0; part < kOwn; ++part) {
      float* to = x.dq + part * x.q_second + (b + r) * kWidth;
      store(to, load(to) + sums[r][part]);
    }
  }
}

// Adds to dq and de of one chunk, of queries `first` to `last` and all n candidates.
template <class Metric>
static void gradient_chunk(const GradientChunk& x, int64_t first, int64_t last, int64_t n) {
  constexpr int kTile = kRowsBack / kQueryParts<Metric>;
  for (int64_t n0 = 0; n0 < n; n0 += kColumnsBack) {
    const int64_t n1 = n0 + kColumnsBack < n ? n0 + kColumnsBack : n;
    int64_t b = first;
    for (; b + kTile <= last; b += kTile) gradient_tile<Metric, kTile>(x, b, n0, n1);
    for (; b < last; ++b) gradient_tile<Metric, 1>(x, b, n0, n1);
  }
}

// Task j * n_group + group: chunk j of dq of a group of positives, and its part of de; from 0.
template <class Metric>
static void gradient_task(const GradientJob& job, int64_t task) {
  const int64_t n_chunk = chunks_of(job.half), n = job.n_candidate, b = job.n_query;
  const int64_t per_group = (b + job.n_group - 1) / job.n_group;
  const int64_t j = task / job.n_group, group = task % job.n_group;
  const int64_t begin = group * per_group < b ? group * per_group : b;
  const int64_t end = begin + per_group < b ? begin + per_group : b;
  float* de = job.de.at(0, j) + group * job.de_size;
  const int64_t q_second = n_chunk * job.q.chunk_step, e_second = n_chunk * job.e.chunk_step;
  for (int64_t part = 0; part < kCandidateParts<Metric>; ++part) {
    std::memset(de + part * e_second, 0, sizeof(float) * static_cast<size_t>(n * kWidth));
  }
  for (int64_t part = 0; part < kQueryParts<Metric>; ++part) {
    std::memset(job.dq.at(begin, j) + part * q_second, 0,
                sizeof(float) * static_cast<size_t>((end - begin) * kWidth));
  }
  const GradientChunk x = {job.c,          job.c_stride, job.q.at(0, j), job.dq.at(0, j),
                           job.e.at(0, j), de,           q_second,       e_second};
  gradient_chunk<Metric>(x, begin, end, n);
}

// Rows first to last of the candidates' gradients (N, D): the groups' parts, added in their order.
static void add_groups(const GradientJob& job, int64_t d, int64_t first, int64_t last,
                       float* rows) {
  const int64_t n_chunk = chunks_of(job.half) * (job.half < d ? 2 : 1);
  for (int64_t group = 1; group < job.n_group; ++group) {
    for (int64_t j = 0; j < n_chunk; ++j) {
      float* to = job.de.at(first, j);
      const float* from = to + group * job.de_size;
      for (int64_t i = 0; i < (last - first) * kWidth; i += kWidth) {
        store(to + i, load(to + i) + load(from + i));
      }
    }
  }
  for (int64_t i = first; i < last; ++i) {
    unpack_row(job.de.at(i, 0), job.de.chunk_step, d, job.half, rows + i * d);
  }
}
