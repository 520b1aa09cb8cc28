// What the kernels of `sampled_loss` work on. Axes: B positives, N negatives, D width of a row,
// K look-ups, U distinct rows.
#pragma once

#include <cstdint>

#include "losses.h"

namespace besskge {

// How a query and an entity are compared: inner product, or negated distance. The modulus is that
// of complex entries, real parts first.
enum class Comparison { dot, l1, l2, modulus };

// How a relation r moves the known entity x: x + r; x r; x r over the complex numbers. Heads are
// asked for by the adjoint: x - r, x r, x conj(r).
enum class Move { translation, scaling, complex_scaling };

struct Moved {
  Move move;
  bool heads;
  int64_t d;
};

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
// queries are there room for), columns of a panel, and rows that are scored together.
struct SampledLayout {
  int64_t width, rows, panel, block;
};

struct SampledJob {
  Rows rows;
  int64_t known, answer, candidate;  // look-ups of the first known entity, answer and candidate
  int64_t n_positive, n_candidate;   // candidates of all positives, or if `per_triple` of each
  bool per_triple;
  int64_t half;  // where imaginary parts begin, if the comparison is of complex numbers, or D
  Comparison comparison;
  Moved moved;
  LossRule loss;
  const float* relation;        // (M, D)
  const int64_t* relation_id;   // (B)
  const float* weight;          // (B), or null: 1
  float scale;
  bool wanted;                  // gradients are
  Chunked q, dq, e, de;         // of queries; of shared candidates, de a part for each group
  int64_t n_group;
  int64_t de_size;              // floats of a part of de
  float* panels;                // shared candidates, see pairs.kernels.h
  float* c;                     // (B, c_stride): coefficients of the pairs
  int64_t c_stride;
  float* positive_c;            // (B)
  float* loss_of;               // (B)
  float* d_rows;                // (K, D), as the look-ups; if `per_triple` (candidate, D)
  float* d_relation;            // (B, D), of each positive
  // of `per_triple`: look-ups grouped by row, and the gradients of the rows (U, D)
  const int64_t *unique_rows, *run_offsets, *order;
  int64_t n_unique, n_lookup;
  float* d_unique;
};

}  // namespace besskge

// Calls FUNCTION<metric>(...), the metric that the kernels have for a comparison.
#define BESSKGE_EACH_COMPARISON(COMPARISON, FUNCTION, ...)                    \
  switch (COMPARISON) {                                                       \
    case ::besskge::Comparison::dot: return FUNCTION<Dot>(__VA_ARGS__);       \
    case ::besskge::Comparison::l1: return FUNCTION<L1Distance>(__VA_ARGS__); \
    case ::besskge::Comparison::l2: return FUNCTION<L2Distance>(__VA_ARGS__); \
    case ::besskge::Comparison::modulus: return FUNCTION<Modulus>(__VA_ARGS__); \
  }
