// What the kernels of `sampled_loss` work on. Axes: B positives, N candidates, D width of a row.
#pragma once

#include <cstdint>

#include "losses.h"
#include "pairs.h"

namespace besskge {

// How a relation r moves the known entity x: x + r; x r; x r over the complex numbers. Heads are
// asked for by the adjoint: x - r, x r, x conj(r).
enum class Move { translation, scaling, complex_scaling };

struct Moved {
  Move move;
  bool heads;
  int64_t d;
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
  const float* relation;       // (M, D)
  const int64_t* relation_id;  // (B)
  const float* weight;         // (B), or null: 1
  float scale;
  bool wanted;                 // gradients are
  GradientJob pairs;           // of it, e, de and groups are of shared candidates only
  ListJob lists;               // of candidates of each triple
  float* panels;               // shared candidates, see pairs.kernels.h
  float* positive_c;           // (B)
  float* loss_of;              // (B)
  float* d_rows;               // of all look-ups (K, D), or if `per_triple` of those before the lists
  float* d_relation;           // (B, D), of each positive
};

}  // namespace besskge
