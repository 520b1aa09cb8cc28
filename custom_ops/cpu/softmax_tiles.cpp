// Log-sum-exp and gradient of a softmax over a tile of scores, each in one pass over it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "buffers.h"
#include "inputs.h"
#include "softmax_rows.h"

namespace besskge {
namespace {

using Mask = c10::optional<at::Tensor>;

// Scores of a block of columns stay in the first cache between the sweeps.
constexpr int64_t kColumns = 2048;
constexpr int64_t kGrain = 1 << 15;

void check(const char* name, const at::Tensor& scores) {
  TORCH_CHECK_VALUE(scores.dim() == 2, name, " expects scores (Q, T), got ", scores.sizes());
  TORCH_CHECK_TYPE(scores.scalar_type() == at::kFloat || scores.scalar_type() == at::kBFloat16,
                   name, " expects scores in float32 or bfloat16, got ", scores.scalar_type());
}

template <typename Scalar>
Scalar* data_of(const at::Tensor& x) {
  return static_cast<Scalar*>(x.data_ptr());
}

// Runs Body<float> or Body<uint16_t>, of bfloat16.
template <typename Body>
void for_scalar(const at::Tensor& scores, const Body& body) {
  if (scores.scalar_type() == at::kFloat) {
    body(float{});
  } else {
    body(uint16_t{});
  }
}

// Columns that are excluded count as -inf: a copy of the row's part is patched, never the scores.
template <typename Scalar>
class Patched {
 public:
  explicit Patched(const std::vector<int64_t>& columns) : columns_(columns) {}

  Scalar* of(const Scalar* row, int64_t begin, int64_t end) {
    copy_.assign(row + begin, row + end);
    put_in_columns(columns_, begin, end, lowest<Scalar>(), copy_.data());
    return copy_.data();
  }

 private:
  const std::vector<int64_t>& columns_;
  std::vector<Scalar> copy_;
};

std::tuple<at::Tensor, at::Tensor> softmax_log_sum(const at::Tensor& scores, const Mask& excluded,
                                                   const at::Tensor& label_row,
                                                   const at::Tensor& label_column, double margin,
                                                   double temperature) {
  check("softmax_log_sum", scores);
  const int64_t n_query = scores.size(0), n = scores.size(1), n_part = (n + kColumns - 1) / kColumns;
  const Labels labels("softmax_log_sum", label_row, label_column, n_query, n);
  const Softmax softmax{labels, static_cast<float>(margin), static_cast<float>(1.0 / temperature)};
  const std::vector<int64_t> left_out = excluded_columns("softmax_log_sum", excluded, n);
  const at::Tensor rows = dense_rows(scores);
  at::Tensor total = at::empty({n_query}, at::kFloat);
  at::Tensor own = at::empty({label_row.numel()}, at::kFloat);
  float *const total_out = floats(total), *const own_out = floats(own);
  for_scalar(rows, [&](auto kind) {
    using Scalar = decltype(kind);
    const Scalar* data = data_of<Scalar>(rows);
    const int64_t stride = rows.stride(0), grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(n, 1));
    at::parallel_for(0, n_query, grain, [&](int64_t first, int64_t last) {
      Patched<Scalar> patched(left_out);
      std::vector<Partial> part(n_part);
      for (int64_t q = first; q < last; ++q) {
        for (int64_t i = 0; i < n_part; ++i) {
          const int64_t begin = i * kColumns, end = std::min(begin + kColumns, n);
          Scalar* score = patched.of(data + q * stride, begin, end);
          part[i] = log_sum(softmax, q, begin, end, score, own_out);
        }
        total_out[q] = joined(part.data(), n_part, 1);
      }
    });
  });
  return {total, own};
}

at::Tensor softmax_gradient(const at::Tensor& scores, const Mask& excluded,
                            const at::Tensor& label_row, const at::Tensor& label_column,
                            const at::Tensor& log_total, const at::Tensor& weight,
                            const at::Tensor& of_label, double margin, double temperature) {
  check("softmax_gradient", scores);
  const int64_t n_query = scores.size(0), n = scores.size(1);
  const Labels labels("softmax_gradient", label_row, label_column, n_query, n);
  const Softmax softmax{labels, static_cast<float>(margin), static_cast<float>(1.0 / temperature)};
  const SlopeTensors given("softmax_gradient", log_total, weight, of_label, n_query,
                           label_row.numel());
  const std::vector<int64_t> left_out = excluded_columns("softmax_gradient", excluded, n);
  const at::Tensor rows = dense_rows(scores);
  const at::Tensor out = pooled({n_query, n}, scores.scalar_type());
  for_scalar(rows, [&](auto kind) {
    using Scalar = decltype(kind);
    const Scalar* data = data_of<Scalar>(rows);
    Scalar* to = data_of<Scalar>(out);
    const int64_t stride = rows.stride(0), grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(n, 1));
    at::parallel_for(0, n_query, grain, [&](int64_t first, int64_t last) {
      for (int64_t q = first; q < last; ++q) {
        gradient(softmax, given.slope(), q, 0, n, data + q * stride, to + q * n);
        for (const int64_t c : left_out) to[q * n + c] = Scalar(0);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) {
  m.impl("softmax_log_sum", &besskge::softmax_log_sum);
  m.impl("softmax_gradient", &besskge::softmax_gradient);
}
