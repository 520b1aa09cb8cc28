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
constexpr int kColumnsBack = 256;  // candidates of a block of the gradients: stays in the cache

// -- metrics: what a pair of entries adds to the score, and to the gradients ---------------------
//
// `add` is of many candidates and an entry of one query, or of many entries of one pair; `gradient`
// is of many entries of one pair, where c is the coefficient of the pair, see `coefficient`. The
// score is made of the sum at the end.

struct Dot {
  static constexpr bool kComplex = false;
  template <class Entry>
  BESSKGE_INLINE Vec add(Vec total, Entry q, Vec e) { return total + q * e; }
  BESSKGE_INLINE void gradient(Vec c, Vec q, Vec e, Vec& dq, Vec& de) {
    dq += c * e;
    de += c * q;
  }
  BESSKGE_INLINE Vec score(Vec total) { return total; }
  BESSKGE_INLINE Vec coefficient(Vec slope, Vec) { return slope; }
};

struct L2Distance {
  static constexpr bool kComplex = false;
  template <class Entry>
  BESSKGE_INLINE Vec add(Vec total, Entry q, Vec e) {
    const Vec d = q - e;
    return total + d * d;
  }
  BESSKGE_INLINE void gradient(Vec c, Vec q, Vec e, Vec& dq, Vec& de) {
    const Vec d = q - e;
    dq += c * d;
    de -= c * d;
  }
  BESSKGE_INLINE Vec score(Vec total) { return -square_root(total); }
  // The gradient of a length is the unit vector; that of 0 is 0.
  BESSKGE_INLINE Vec coefficient(Vec slope, Vec score) {
    return score < 0.0f ? slope / score : Vec{};
  }
};

struct L1Distance {
  static constexpr bool kComplex = false;
  template <class Entry>
  BESSKGE_INLINE Vec add(Vec total, Entry q, Vec e) { return total + absolute(q - e); }
  BESSKGE_INLINE void gradient(Vec c, Vec q, Vec e, Vec& dq, Vec& de) {
    const Vec s = with_sign_of(c, q - e);
    dq += s;
    de -= s;
  }
  BESSKGE_INLINE Vec score(Vec total) { return -total; }
  BESSKGE_INLINE Vec coefficient(Vec slope, Vec) { return -slope; }
};

// Moduli of complex differences: the real and imaginary parts of an entry come together.
struct Modulus {
  static constexpr bool kComplex = true;
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

// Sums of the queries of a tile, from b, with the columns of a panel -> out[r * stride + column].
template <class Metric>
static void score_tile(const Chunked& q, int64_t b, const float* panel, int64_t half, float* out,
                       int64_t stride) {
  constexpr int kTile = Metric::kComplex ? kRows / 2 : kRows;
  Vec total[kTile][kVectors];
  for (int r = 0; r < kTile; ++r) {
    for (int v = 0; v < kVectors; ++v) total[r][v] = Vec{};
  }
  const int64_t n_chunk = chunks_of(half);
  for (int64_t j = 0; j < n_chunk; ++j) {
    const float* of_chunk = q.at(b, j);
    const int64_t n_lane = half - j * kWidth < kWidth ? half - j * kWidth : kWidth;
    for (int64_t lane = 0; lane < n_lane; ++lane) {
      const float* e = panel + (j * kWidth + lane) * kPanel;
      if constexpr (Metric::kComplex) {
        const float* imaginary = q.at(b, n_chunk + j);
        const float* e_im = e + half * kPanel;
        for (int v = 0; v < kVectors; ++v) {
          const Vec re = load(e + v * kWidth), im = load(e_im + v * kWidth);
#pragma GCC unroll 16
          for (int r = 0; r < kTile; ++r) {
            total[r][v] = Metric::add(total[r][v], of_chunk[r * kWidth + lane],
                                      imaginary[r * kWidth + lane], re, im);
          }
        }
      } else {
        Vec columns[kVectors];
        for (int v = 0; v < kVectors; ++v) columns[v] = load(e + v * kWidth);
#pragma GCC unroll 16
        for (int r = 0; r < kTile; ++r) {
          for (int v = 0; v < kVectors; ++v) {
            total[r][v] = Metric::add(total[r][v], of_chunk[r * kWidth + lane], columns[v]);
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
    for (int64_t b = first; b < last; b += (Metric::kComplex ? kRows / 2 : kRows)) {
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
  int64_t q_im, e_im;  // from the real parts to the imaginary ones
};

// kTile queries from b, with candidates n0 to n1.
template <class Metric, int kTile>
static void gradient_tile(const GradientChunk& x, int64_t b, int64_t n0, int64_t n1) {
  constexpr int kParts = Metric::kComplex ? 2 : 1;
  Vec own[kTile][kParts], sums[kTile][kParts];
  const float* c[kTile];
  for (int r = 0; r < kTile; ++r) {
    c[r] = x.c + (b + r) * x.c_stride;
    for (int part = 0; part < kParts; ++part) {
      own[r][part] = load(x.q + part * x.q_im + (b + r) * kWidth);
      sums[r][part] = Vec{};
    }
  }
  for (int64_t i = n0; i < n1; ++i) {
    Vec other[kParts], of_other[kParts];
    for (int part = 0; part < kParts; ++part) {
      other[part] = load(x.e + part * x.e_im + i * kWidth);
      of_other[part] = load(x.de + part * x.e_im + i * kWidth);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kTile; ++r) {
      if constexpr (Metric::kComplex) {
        Metric::gradient(all(c[r][i]), own[r], other, sums[r], of_other);
      } else {
        Metric::gradient(all(c[r][i]), own[r][0], other[0], sums[r][0], of_other[0]);
      }
    }
    for (int part = 0; part < kParts; ++part) {
      store(x.de + part * x.e_im + i * kWidth, of_other[part]);
    }
  }
  for (int r = 0; r < kTile; ++r) {
    for (int part = 0; part < kParts; ++part) {
      float* to = x.dq + part * x.q_im + (b + r) * kWidth;
      store(to, load(to) + sums[r][part]);
    }
  }
}

// Adds to dq and de of one chunk, of queries `first` to `last` and all n candidates.
template <class Metric>
static void gradient_chunk(const GradientChunk& x, int64_t first, int64_t last, int64_t n) {
  constexpr int kTile = Metric::kComplex ? kRowsBack / 2 : kRowsBack;
  for (int64_t n0 = 0; n0 < n; n0 += kColumnsBack) {
    const int64_t n1 = n0 + kColumnsBack < n ? n0 + kColumnsBack : n;
    int64_t b = first;
    for (; b + kTile <= last; b += kTile) gradient_tile<Metric, kTile>(x, b, n0, n1);
    for (; b < last; ++b) gradient_tile<Metric, 1>(x, b, n0, n1);
  }
}
