// How many candidates of a query score better than an answer of it, and how many the same, but for
// those that a sparse filter takes out: one pass over the scores for each answer, no temporary of
// their size.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "filter.h"
#include "inputs.h"
#include "isa.h"
#define BESSKGE_KERNELS "rank_counts.kernels.h"
#include "each_isa.h"

namespace besskge {
namespace {

// Answers by query, each with its row; checks that rows are of [0, n_query).
struct Answers {
  Answers(const at::Tensor& row, int64_t n_query) : start(n_query + 1, 0), answer(row.numel()) {
    const int64_t* r = row.data_ptr<int64_t>();
    for (int64_t a = 0; a < row.numel(); ++a) {
      TORCH_CHECK_INDEX(r[a] >= 0 && r[a] < n_query, "rank_counts has an answer of query ", r[a],
                        ", of ", n_query);
      ++start[r[a] + 1];
    }
    std::partial_sum(start.begin(), start.end(), start.begin());
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t a = 0; a < row.numel(); ++a) answer[next[r[a]]++] = a;
  }

  std::vector<int64_t> start, answer;
};

template <typename Scalar>
void count(const at::Tensor& scores, const at::Tensor& truth, const Answers& answers,
           const Filter& filter, int64_t* better, int64_t* equal) {
  const int64_t n_query = scores.size(0), n = scores.size(1), stride = scores.stride(0);
  const Scalar* const data = static_cast<const Scalar*>(scores.data_ptr());
  const Scalar* const wanted = static_cast<const Scalar*>(truth.data_ptr());
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(n, 1));
  at::parallel_for(0, n_query, grain, [&](int64_t begin, int64_t end) {
    std::vector<Scalar> out;  // scores that are taken out
    for (int64_t q = begin; q < end; ++q) {
      if (answers.start[q] == answers.start[q + 1]) continue;
      const Scalar* row = data + q * stride;
      out.clear();
      filter.each(q, n, [&](int64_t column) { out.push_back(row[column]); });
      for (int64_t i = answers.start[q]; i < answers.start[q + 1]; ++i) {
        const int64_t a = answers.answer[i], n_out = out.size();
        const auto x = widen(wanted[a]);
        int64_t above = 0, same = 0, above_out = 0, same_out = 0;
        BESSKGE_CALL(count_row, row, n, x, &above, &same);
        BESSKGE_CALL(count_row, out.data(), n_out, x, &above_out, &same_out);
        better[a] = above - above_out;
        equal[a] = same - same_out;
      }
    }
  });
}

void check(const at::Tensor& scores, const at::Tensor& truth, const at::Tensor& row) {
  TORCH_CHECK_VALUE(scores.dim() == 2 && truth.dim() == 1 && row.sizes() == truth.sizes(),
                    "rank_counts expects scores (Q, T), answer_score (A) and row (A), got ",
                    scores.sizes(), ", ", truth.sizes(), " and ", row.sizes());
  TORCH_CHECK_TYPE(scores.scalar_type() == truth.scalar_type(),
                   "rank_counts expects one dtype, got ", scores.scalar_type(), " and ",
                   truth.scalar_type());
  TORCH_CHECK_TYPE(row.scalar_type() == at::kLong, "rank_counts expects row in int64, got ",
                   row.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> rank_counts(const at::Tensor& scores, const at::Tensor& truth,
                                               const at::Tensor& row,
                                               const at::Tensor& filter_start,
                                               const at::Tensor& filter_column, int64_t first) {
  check(scores, truth, row);
  const Filter filter(filter_start, filter_column, scores.size(0), first, "rank_counts");
  at::Tensor better = at::zeros(truth.sizes(), at::kLong), equal = at::zeros_like(better);
  const at::Tensor rows = dense_rows(scores);
  const at::Tensor wanted = truth.contiguous();
  const Answers answers(row.contiguous(), scores.size(0));
  int64_t *const above = better.data_ptr<int64_t>(), *const same = equal.data_ptr<int64_t>();
  switch (scores.scalar_type()) {
    case at::kFloat:
      count<float>(rows, wanted, answers, filter, above, same);
      break;
    case at::kDouble:
      count<double>(rows, wanted, answers, filter, above, same);
      break;
    case at::kBFloat16:
      count<uint16_t>(rows, wanted, answers, filter, above, same);
      break;
    default:
      TORCH_CHECK_TYPE(false, "rank_counts expects float32, float64 or bfloat16, got ",
                       scores.scalar_type());
  }
  return {better, equal};
}

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("rank_counts", &besskge::rank_counts); }
