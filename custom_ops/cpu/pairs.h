// What the kernels of pairs work on. Axes: B queries, N candidates, D width of a row, U distinct rows.
#pragma once

#include <cstdint>

namespace besskge {

// How a query and an entity are compared: inner product, or negated distance. The modulus is that
// of complex entries, real parts first; on a torus entries count modulo 1.
enum class Comparison { dot, l1, l2, modulus, torus_l1, torus_l2 };

// Rows that are read: look-up i is row index[i] of the table.
struct Rows {
  const float* table;
  const int64_t* index;
  int64_t width;

  const float* operator[](int64_t i) const { return table + index[i] * width; }
};

// Rows cut in chunks of a vector: chunk j of row i is at i * row_step + j * chunk_step. Either the
// same chunk of all rows lies together, or all chunks of a row.
struct Chunked {
  float* data;
  int64_t row_step, chunk_step;

  float* at(int64_t row, int64_t chunk) const { return data + row * row_step + chunk * chunk_step; }
};

// How an instruction set lays things out: entries of a vector, most rows of a tile (so many more
// queries is there room for), and columns of a panel.
struct PairsLayout {
  int64_t width, rows, panel;

  // Chunks of an entry's part, as wide as `half`.
  int64_t chunks(int64_t half) const { return (half + width - 1) / width; }
};

// The gradients of pairs of queries and shared candidates. Chunks of rows lie together.
struct GradientJob {
  Chunked q, dq, e, de;    // of de a part for each group, de_size floats apart
  int64_t n_query, n_candidate, half;
  int64_t n_group, de_size;
  float* c;                // (B, c_stride): coefficients of the pairs
  int64_t c_stride;
};

// Groups of so many queries, each with a part of the candidates' gradients: not of the threads, so
// that sums do not depend on them.
inline int64_t gradient_groups(int64_t n_query) {
  const int64_t n = n_query / 256;
  return n < 1 ? 1 : n > 8 ? 8 : n;
}

// Queries (B) with lists of rows of their own: the gradients of the distinct rows (U, D).
struct ListJob {
  Rows rows;
  Chunked q;
  int64_t half;
  float* c;                                        // (B, c_stride)
  int64_t c_stride;
  const int64_t *unique_rows, *run_offsets, *order;  // look-ups grouped by row
  int64_t n_unique, n_lookup;
  int64_t first, n_each;   // look-ups before `first` have gradients of their own, others n_each a query
  const float* d_first;    // (first, D)
  float* d_unique;         // (U, D)
};

}  // namespace besskge

// Calls FUNCTION<metric>(...), the metric that the kernels have for a comparison.
#define BESSKGE_EACH_COMPARISON(COMPARISON, FUNCTION, ...)                    \
  switch (COMPARISON) {                                                       \
    case ::besskge::Comparison::dot: return FUNCTION<Dot>(__VA_ARGS__);       \
    case ::besskge::Comparison::l1: return FUNCTION<L1Distance>(__VA_ARGS__); \
    case ::besskge::Comparison::l2: return FUNCTION<L2Distance>(__VA_ARGS__); \
    case ::besskge::Comparison::modulus: return FUNCTION<Modulus>(__VA_ARGS__); \
    case ::besskge::Comparison::torus_l1: return FUNCTION<TorusL1Distance>(__VA_ARGS__); \
    case ::besskge::Comparison::torus_l2: return FUNCTION<TorusL2Distance>(__VA_ARGS__); \
  }
