// What an update of rows is made of, for scatter_update.cpp and its kernels.
#pragma once

#include <cstdint>

namespace besskge {

enum class Rule { sgd, momentum, adagrad, rowwise_adagrad, adam, rowwise_adam };

// Factors of a rule in the precision of its arithmetic; besskge_core/ops/rules.py has the formulas.
struct Factors {
  float keep;  // of a weight, by decay
  float lr;    // with Adam's correction of the first moment
  float beta1, rest1, beta2, rest2;
  float correction;  // 1 / (1 - beta2^step)
  float eps;
};

struct Update {
  Rule rule;
  Factors factors;
  int64_t width;
  // One of the two, (R, D).
  float* table = nullptr;
  uint16_t* half_table = nullptr;
  // (R, D), or (R, 1) where a rule keeps one number a row.
  float* first = nullptr;
  float* second = nullptr;
  int64_t second_width = 0;
  // One of the two, (K, D), rows value_stride apart.
  const float* values = nullptr;
  const uint16_t* half_values = nullptr;
  int64_t value_stride;
  // (U): the rows; null: all. (U), (K): the values of each row; null: one value for each.
  const int64_t* rows = nullptr;
  const int64_t* run_offsets = nullptr;
  const int64_t* order = nullptr;
  int64_t n_row;    // U
  int64_t n_value;  // K
  // Of stochastic rounding; not stochastic: to the nearest.
  bool stochastic;
  uint32_t key[2];
  uint32_t step, stream;
};

// Numbers of a scratch row: whole vectors of any instruction set.
inline int64_t scratch_row(int64_t width) { return (width + 15) / 16 * 16; }

}  // namespace besskge
