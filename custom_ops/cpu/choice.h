// Names of choices, as they come from Python.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <vector>

#include "pairs.h"

namespace besskge {

template <class Enum>
Enum choice(const std::string& name, const char* op, const char* what,
            const std::vector<std::string>& names) {
  const auto found = std::find(names.begin(), names.end(), name);
  TORCH_CHECK_VALUE(found != names.end(), op, " expects a ", what, " of ", names, ", got '", name,
                    "'");
  return static_cast<Enum>(found - names.begin());
}

inline Comparison comparison_of(const std::string& name, const char* op) {
  return choice<Comparison>(name, op, "comparison",
                            {"dot", "l1", "l2", "modulus", "torus_l1", "torus_l2"});
}

// Refuses indices outside of [0, n_row).
inline void check_rows(const at::Tensor& index, int64_t n_row, const char* op) {
  const int64_t n = index.numel();
  const int64_t* row = index.data_ptr<int64_t>();
  int64_t least = 0, most = -1;
  for (int64_t i = 0; i < n; ++i) {
    least = std::min(least, row[i]);
    most = std::max(most, row[i]);
  }
  TORCH_CHECK_INDEX(least >= 0 && most < n_row, op, ": rows run from ", least, " to ", most,
                    ", expected rows of [0, ", n_row, ")");
}

}  // namespace besskge
