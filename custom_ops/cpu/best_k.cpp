// The best k candidates of each query, but for those that a sparse filter takes out: one pass over
// the scores for what is above the k-th best so far, no temporary of their size.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "filter.h"
#include "inputs.h"
#include "isa.h"
#define BESSKGE_KERNELS "best_k.kernels.h"
#include "each_isa.h"

namespace besskge {
namespace {

// The k best of one row at a time.
template <typename Scalar>
class Chooser {
 public:
  using Wide = decltype(widen(Scalar()));

  Chooser(int64_t k, int64_t n) : k_(k), n_(n), marks_((n + 63) / 64, 0), found_(k + kRoom) {
    kept_.reserve(k + found_.size());
  }

  // Scores and columns of the best of row q, `least` where there is no answer.
  void choose(const Scalar* row, const Filter& filter, int64_t q, Scalar least, Scalar* score,
              int64_t* column) {
    kept_.clear();
    filter.each(q, n_, [&](int64_t c) { marks_[c / 64] |= uint64_t{1} << (c % 64); });
    Wide bar = -std::numeric_limits<Wide>::infinity();
    for (int64_t i = 0, n_found; i < n_;) {
      i = BESSKGE_CALL(places_above, row, i, n_, bar, found_.size(), found_.data(), &n_found);
      for (int64_t j = 0; j < n_found; ++j) {
        if (!is_marked(found_[j])) kept_.push_back({widen(row[found_[j]]), found_[j]});
      }
      if (static_cast<int64_t>(kept_.size()) < k_) continue;
      std::nth_element(kept_.begin(), kept_.begin() + k_ - 1, kept_.end());
      kept_.resize(k_);
      bar = kept_.back().score;  // of the columns that follow an equal one is behind
    }
    std::sort(kept_.begin(), kept_.end());
    int64_t n_kept = 0;
    for (const Entry& entry : kept_) {
      score[n_kept] = row[entry.column];
      column[n_kept++] = entry.column;
    }
    for (int64_t c = 0; n_kept < k_; ++c) {  // what is left is no answer
      if (!is_marked(c) && widen(row[c]) > bar) continue;
      score[n_kept] = least;
      column[n_kept++] = c;
    }
    filter.each(q, n_, [&](int64_t c) { marks_[c / 64] = 0; });
  }

 private:
  struct Entry {
    Wide score;
    int64_t column;

    bool operator<(const Entry& other) const {  // whether it is better
      return score > other.score || (score == other.score && column < other.column);
    }
  };

  // Places of scores that may be the best, before the bar is raised: some blocks of a kernel.
  static constexpr int64_t kRoom = 128;

  bool is_marked(int64_t c) const { return marks_[c / 64] >> (c % 64) & 1; }

  const int64_t k_, n_;
  std::vector<uint64_t> marks_;
  std::vector<int64_t> found_;
  std::vector<Entry> kept_;
};

template <typename Scalar>
void choose(const at::Tensor& scores, const Filter& filter, at::Tensor& score, at::Tensor& column) {
  const int64_t n = scores.size(1), stride = scores.stride(0), k = score.size(1);
  const Scalar* const data = static_cast<const Scalar*>(scores.data_ptr());
  Scalar* const best = static_cast<Scalar*>(score.data_ptr());
  int64_t* const place = column.data_ptr<int64_t>();
  const at::Tensor infinite =
      at::full({1}, -std::numeric_limits<double>::infinity(), scores.options());
  const Scalar least = *static_cast<const Scalar*>(infinite.data_ptr());
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(n, 1));
  at::parallel_for(0, scores.size(0), grain, [&](int64_t begin, int64_t end) {
    Chooser<Scalar> chooser(k, n);
    for (int64_t q = begin; q < end; ++q) {
      chooser.choose(data + q * stride, filter, q, least, best + q * k, place + q * k);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> best_k(const at::Tensor& scores,
                                          const at::Tensor& filter_start,
                                          const at::Tensor& filter_column, int64_t k,
                                          int64_t first) {
  TORCH_CHECK_VALUE(scores.dim() == 2 && k >= 1, "best_k expects scores (Q, T) and k of 1 or more, ",
                    "got ", scores.sizes(), " and ", k);
  const Filter filter(filter_start, filter_column, scores.size(0), first, "best_k");
  const std::vector<int64_t> sizes = {scores.size(0), std::min(k, scores.size(1))};
  at::Tensor score = at::empty(sizes, scores.options());
  at::Tensor column = at::empty(sizes, scores.options().dtype(at::kLong));
  if (score.numel() == 0) return {score, column};
  const at::Tensor rows = dense_rows(scores);
  switch (scores.scalar_type()) {
    case at::kFloat:
      choose<float>(rows, filter, score, column);
      break;
    case at::kDouble:
      choose<double>(rows, filter, score, column);
      break;
    case at::kBFloat16:
      choose<uint16_t>(rows, filter, score, column);
      break;
    default:
      TORCH_CHECK_TYPE(false, "best_k expects float32, float64 or bfloat16, got ",
                       scores.scalar_type());
  }
  return {score, column};
}

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("best_k", &besskge::best_k); }
