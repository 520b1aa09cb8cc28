// How many candidates of each query score better than the true one, and how many the same: one
// pass over the scores, no temporary of their size.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

// The widest instructions that the processor has are chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define BESSKGE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BESSKGE_CLONES
#endif

namespace {

// Counts of a block fit 32 bits, which is what lets the compiler vectorise the comparison.
constexpr int64_t kBlock = 1 << 20;

#define BESSKGE_COUNT_ROW(NAME, SCALAR)                                                     \
  BESSKGE_CLONES                                                                            \
  void NAME(const SCALAR* row, SCALAR truth, int64_t n, int64_t* better, int64_t* equal) {  \
    for (int64_t first = 0; first < n; first += kBlock) {                                   \
      const int64_t last = std::min(first + kBlock, n);                                     \
      int32_t above = 0, same = 0;                                                          \
      for (int64_t i = first; i < last; ++i) {                                              \
        above += row[i] > truth;                                                            \
        same += row[i] == truth;                                                            \
      }                                                                                     \
      *better += above;                                                                     \
      *equal += same;                                                                       \
    }                                                                                       \
  }

BESSKGE_COUNT_ROW(count_row_float, float)
BESSKGE_COUNT_ROW(count_row_double, double)

void count_row(const float* row, float truth, int64_t n, int64_t* better, int64_t* equal) {
  count_row_float(row, truth, n, better, equal);
}

void count_row(const double* row, double truth, int64_t n, int64_t* better, int64_t* equal) {
  count_row_double(row, truth, n, better, equal);
}

std::tuple<at::Tensor, at::Tensor> count_better(const at::Tensor& scores,
                                                const at::Tensor& true_score) {
  TORCH_CHECK_VALUE(scores.dim() == 2 && true_score.dim() == 1 &&
                        scores.size(0) == true_score.size(0),
                    "count_better expects scores (Q, T) and true_score (Q), got ",
                    scores.sizes(), " and ", true_score.sizes());
  TORCH_CHECK_TYPE(scores.scalar_type() == true_score.scalar_type(),
                   "count_better expects one dtype, got ", scores.scalar_type(), " and ",
                   true_score.scalar_type());
  const int64_t n_query = scores.size(0), n = scores.size(1);
  at::Tensor better = at::zeros({n_query}, at::kLong), equal = at::zeros({n_query}, at::kLong);
  // Rows may lie apart (a slice of a wider tensor), entries of a row may not.
  const at::Tensor rows = scores.stride(1) == 1 || n == 1 ? scores : scores.contiguous();
  const at::Tensor truth = true_score.contiguous();
  int64_t* better_out = better.data_ptr<int64_t>();
  int64_t* equal_out = equal.data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "count_better", [&] {
    const scalar_t* data = rows.data_ptr<scalar_t>();
    const scalar_t* wanted = truth.data_ptr<scalar_t>();
    const int64_t stride = rows.stride(0);
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(n, 1));
    at::parallel_for(0, n_query, grain, [&](int64_t first, int64_t last) {
      for (int64_t q = first; q < last; ++q) {
        count_row(data + q * stride, wanted[q], n, better_out + q, equal_out + q);
      }
    });
  });
  return {better, equal};
}

}  // namespace

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("count_better", &count_better); }
