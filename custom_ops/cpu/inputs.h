// How operations read what comes from Python: names, indices, rows.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
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

// The lowest index below 0, or 0; and the highest from 0 on, or -1.
struct Range {
  int64_t lowest, highest;

  bool within(int64_t n) const { return lowest >= 0 && highest < n; }
  // One that is not within.
  int64_t outside() const { return lowest < 0 ? lowest : highest; }
};

template <class Index>
Range range_of(const Index* index, int64_t n) {
  Range range = {0, -1};
  for (int64_t i = 0; i < n; ++i) {
    range.lowest = std::min<int64_t>(range.lowest, index[i]);
    range.highest = std::max<int64_t>(range.highest, index[i]);
  }
  return range;
}

// Refuses indices outside of [0, n_row).
inline void check_rows(const at::Tensor& index, int64_t n_row, const char* op) {
  const Range range = range_of(index.data_ptr<int64_t>(), index.numel());
  TORCH_CHECK_INDEX(range.within(n_row), op, ": rows run from ", range.lowest, " to ",
                    range.highest, ", expected rows of [0, ", n_row, ")");
}

// Rows (R, D) whose entries lie together; the rows may lie apart.
inline at::Tensor dense_rows(const at::Tensor& x) {
  return x.stride(1) == 1 || x.size(1) <= 1 ? x : x.contiguous();
}

// A number, which may be a bfloat16.
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

}  // namespace besskge
