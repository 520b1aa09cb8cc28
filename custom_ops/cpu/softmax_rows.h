// The softmax of rows of scores, a tile of their columns at a time; see softmax_rows.cpp.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace besskge {

// Where the labels are, by row and then column.
class Labels {
 public:
  // Checks that rows (K) and columns (K) are int64, of as many, and within (n_row, n_column).
  Labels(const char* name, const at::Tensor& row, const at::Tensor& column, int64_t n_row,
         int64_t n_column);

  // The entries of a row whose columns are in [begin, end): [first, last) of `column`.
  void within(int64_t row, int64_t begin, int64_t end, int64_t* first, int64_t* last) const;

  std::vector<int64_t> start, column, entry;
};

// What makes logits of scores: (score - margin at labels) / temperature.
struct Softmax {
  const Labels& labels;
  float margin, scale;
};

// What the gradient is made of: (Q), (Q) and (K), float32 and contiguous.
struct Slope {
  const float *log_total, *weight, *of_label;
};

// What a slope points into.
class SlopeTensors {
 public:
  SlopeTensors(const char* name, const at::Tensor& log_total, const at::Tensor& weight,
               const at::Tensor& of_label, int64_t n_query, int64_t n_label);
  Slope slope() const;

 private:
  at::Tensor log_total_, weight_, of_label_;
};

// A part of the log-sum-exp of a row: its highest logit, and the sum of exp(logit - highest).
struct Partial {
  float highest, sum;
};

// Float or bfloat16, the latter as uint16_t. Columns [begin, end) of a row; `score` points to the
// first of them, and is as before afterwards. Logits at labels go to `own`, by entry.
template <typename Scalar>
Partial log_sum(const Softmax& softmax, int64_t row, int64_t begin, int64_t end, Scalar* score,
                float* own);

// Likewise; `gradient` may be `score`.
template <typename Scalar>
void gradient(const Softmax& softmax, const Slope& slope, int64_t row, int64_t begin, int64_t end,
              const Scalar* score, Scalar* gradient);

// The log-sum-exp of which these are the parts, in their order.
float joined(const Partial* part, int64_t n, int64_t stride);

void to_bfloat16(const float* from, int64_t n, uint16_t* to);

// sum = more, or sum += more.
void accumulate(float* sum, const float* more, int64_t n, bool add);
void accumulate(float* sum, const uint16_t* more, int64_t n, bool add);

// -inf, also as a bfloat16.
template <typename Scalar>
constexpr Scalar lowest() {
  return sizeof(Scalar) == 2 ? Scalar(0xff80) : Scalar(-HUGE_VALF);
}

// x in those of the columns (rising) that are in [begin, end); `row` points to the first of these.
template <typename Scalar>
void put_in_columns(const std::vector<int64_t>& columns, int64_t begin, int64_t end, Scalar x,
                    Scalar* row) {
  const auto first = std::lower_bound(columns.begin(), columns.end(), begin);
  for (auto c = first; c != columns.end() && *c < end; ++c) row[*c - begin] = x;
}

// The columns that are excluded, of a bool (T) or none.
std::vector<int64_t> excluded_columns(const char* name, const c10::optional<at::Tensor>& excluded,
                                      int64_t n_column);

}  // namespace besskge
