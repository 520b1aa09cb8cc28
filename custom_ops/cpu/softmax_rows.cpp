// Rows of scores as logits of a softmax. Labels are few: they are done one by one, beside kernels
// that know nothing of them.
#include "softmax_rows.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "inputs.h"
#include "isa.h"
#define BESSKGE_KERNELS "softmax_tiles.kernels.h"
#include "each_isa.h"

namespace besskge {
namespace {

void put(float* score, float x) { *score = x; }
void put(uint16_t* score, float x) { to_bfloat16(&x, 1, score); }

// How many entries from `first` on have its column, too.
int64_t times(const Labels& labels, int64_t first, int64_t last) {
  int64_t n = 1;
  while (first + n < last && labels.column[first + n] == labels.column[first]) ++n;
  return n;
}

float logit(const Softmax& softmax, float score, int64_t n) {
  return (score - static_cast<float>(n) * softmax.margin) * softmax.scale;
}

void add_logit(Partial* part, float x) {
  if (x == -HUGE_VALF) return;
  if (part->sum == 0.0f) {
    *part = {x, x == x ? 1.0f : x};
  } else if (x > part->highest) {
    *part = {x, part->sum * std::exp(part->highest - x) + 1.0f};
  } else {
    part->sum += std::exp(x - part->highest);
  }
}

}  // namespace

Labels::Labels(const char* name, const at::Tensor& row, const at::Tensor& where, int64_t n_row,
               int64_t n_column) {
  TORCH_CHECK_VALUE(row.dim() == 1 && row.sizes() == where.sizes(), name,
                    " expects label_row (K) and label_column (K), got ", row.sizes(), " and ",
                    where.sizes());
  TORCH_CHECK_TYPE(row.scalar_type() == at::kLong && where.scalar_type() == at::kLong, name,
                   " expects labels in int64, got ", row.scalar_type(), " and ",
                   where.scalar_type());
  const at::Tensor rows = row.contiguous(), columns = where.contiguous();
  const int64_t n = rows.numel(), *r = rows.data_ptr<int64_t>(), *c = columns.data_ptr<int64_t>();
  start.assign(n_row + 1, 0);
  for (int64_t k = 0; k < n; ++k) {
    TORCH_CHECK_INDEX(r[k] >= 0 && r[k] < n_row && c[k] >= 0 && c[k] < n_column, name,
                      " has a label at (", r[k], ", ", c[k], "), outside of (", n_row, ", ",
                      n_column, ")");
    ++start[r[k] + 1];
  }
  std::partial_sum(start.begin(), start.end(), start.begin());
  entry.resize(n);
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int64_t k = 0; k < n; ++k) entry[next[r[k]]++] = k;
  for (int64_t i = 0; i < n_row; ++i) {
    std::stable_sort(entry.begin() + start[i], entry.begin() + start[i + 1],
                     [&](int64_t a, int64_t b) { return c[a] < c[b]; });
  }
  column.resize(n);
  for (int64_t k = 0; k < n; ++k) column[k] = c[entry[k]];
}

void Labels::within(int64_t row, int64_t begin, int64_t end, int64_t* first, int64_t* last) const {
  const auto from = column.begin() + start[row], to = column.begin() + start[row + 1];
  const auto low = std::lower_bound(from, to, begin);
  *first = low - column.begin();
  *last = std::lower_bound(low, to, end) - column.begin();
}

SlopeTensors::SlopeTensors(const char* name, const at::Tensor& log_total, const at::Tensor& weight,
                           const at::Tensor& of_label, int64_t n_query, int64_t n_label) {
  for (const at::Tensor& x : {log_total, weight, of_label}) {
    TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name,
                     " expects log_total, weight and of_label in float32, got ", x.scalar_type());
  }
  TORCH_CHECK_VALUE(log_total.dim() == 1 && log_total.size(0) == n_query &&
                        weight.sizes() == log_total.sizes() && of_label.dim() == 1 &&
                        of_label.size(0) == n_label,
                    name, " expects log_total (", n_query, "), weight (", n_query,
                    ") and of_label (", n_label, "), got ", log_total.sizes(), ", ",
                    weight.sizes(), " and ", of_label.sizes());
  log_total_ = log_total.contiguous();
  weight_ = weight.contiguous();
  of_label_ = of_label.contiguous();
}

Slope SlopeTensors::slope() const {
  return {log_total_.data_ptr<float>(), weight_.data_ptr<float>(), of_label_.data_ptr<float>()};
}

template <typename Scalar>
Partial log_sum(const Softmax& softmax, int64_t row, int64_t begin, int64_t end, Scalar* score,
                float* own) {
  const Labels& labels = softmax.labels;
  int64_t first, last;
  labels.within(row, begin, end, &first, &last);
  std::vector<Scalar> before;
  for (int64_t k = first, n; k < last; k += n) {
    n = times(labels, k, last);
    Scalar* at = score + labels.column[k] - begin;
    for (int64_t j = k; j < k + n; ++j) own[labels.entry[j]] = logit(softmax, widen(*at), n);
    if (softmax.margin == 0.0f) continue;
    before.push_back(*at);  // added by itself, as its logit may have no room in a bfloat16
    put(at, -HUGE_VALF);
  }
  Partial part;
  BESSKGE_CALL(log_sum_row, score, end - begin, softmax.scale, &part.highest, &part.sum);
  if (softmax.margin != 0.0f) {
    size_t i = 0;
    for (int64_t k = first; k < last; k += times(labels, k, last)) {
      score[labels.column[k] - begin] = before[i++];
      add_logit(&part, own[labels.entry[k]]);
    }
  }
  return part;
}

template <typename Scalar>
void gradient(const Softmax& softmax, const Slope& slope, int64_t row, int64_t begin, int64_t end,
              const Scalar* score, Scalar* gradient) {
  const Labels& labels = softmax.labels;
  int64_t first, last;
  labels.within(row, begin, end, &first, &last);
  std::vector<float> at_labels;
  const float total = std::isinf(slope.log_total[row]) && slope.log_total[row] < 0.0f
                          ? 0.0f
                          : slope.log_total[row];
  for (int64_t k = first, n; k < last; k += n) {
    n = times(labels, k, last);
    const float x = logit(softmax, widen(score[labels.column[k] - begin]), n) - total;
    float slope_here = slope.weight[row] * std::exp(0.0f < x ? 0.0f : x);
    for (int64_t j = k; j < k + n; ++j) slope_here -= slope.of_label[labels.entry[j]];
    at_labels.push_back(slope_here);
  }
  BESSKGE_CALL(gradient_row, score, end - begin, softmax.scale, total, slope.weight[row],
               gradient);
  size_t i = 0;
  for (int64_t k = first; k < last; k += times(labels, k, last)) {
    put(gradient + labels.column[k] - begin, at_labels[i++]);
  }
}

template Partial log_sum(const Softmax&, int64_t, int64_t, int64_t, float*, float*);
template Partial log_sum(const Softmax&, int64_t, int64_t, int64_t, uint16_t*, float*);
template void gradient(const Softmax&, const Slope&, int64_t, int64_t, int64_t, const float*,
                       float*);
template void gradient(const Softmax&, const Slope&, int64_t, int64_t, int64_t, const uint16_t*,
                       uint16_t*);

float joined(const Partial* part, int64_t n, int64_t stride) {
  float highest = -HUGE_VALF, sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const Partial& x = part[i * stride];
    if (x.sum != 0.0f && x.highest > highest) highest = x.highest;
  }
  if (highest == -HUGE_VALF) highest = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const Partial& x = part[i * stride];
    if (x.sum != 0.0f) sum += x.sum * std::exp(x.highest - highest);
  }
  return highest + std::log(sum);
}

void to_bfloat16(const float* from, int64_t n, uint16_t* to) {
  BESSKGE_CALL(narrow, from, n, to);
}

void accumulate(float* sum, const float* more, int64_t n, bool add) {
  BESSKGE_CALL(sum_into, sum, more, n, add);
}

void accumulate(float* sum, const uint16_t* more, int64_t n, bool add) {
  BESSKGE_CALL(sum_into, sum, more, n, add);
}

std::vector<int64_t> excluded_columns(const char* name, const c10::optional<at::Tensor>& excluded,
                                      int64_t n_column) {
  std::vector<int64_t> found;
  if (!excluded.has_value()) return found;
  TORCH_CHECK_VALUE(excluded->dim() == 1 && excluded->size(0) == n_column &&
                        excluded->scalar_type() == at::kBool,
                    name, " expects excluded bool (", n_column, "), got ",
                    excluded->scalar_type(), " ", excluded->sizes());
  const at::Tensor mask = excluded->contiguous();
  const bool* is = mask.data_ptr<bool>();
  for (int64_t i = 0; i < n_column; ++i) {
    if (is[i]) found.push_back(i);
  }
  return found;
}

}  // namespace besskge
