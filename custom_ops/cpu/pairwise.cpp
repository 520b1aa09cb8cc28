// Scores of queries with shared candidates, and their gradients: no row of a pair ever exists.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "buffers.h"
#include "inputs.h"
#include "isa.h"
#include "pairs.h"

namespace besskge {

// Axes: B queries, N candidates, D width of a row.
struct PairwiseJob {
  const float *query, *weight;  // (B, D), weight or null
  const float* e;               // (N, e_stride)
  int64_t n_query, n_candidate, d, half, e_stride;
  Comparison comparison;
  Chunked q;                    // of queries, their weights behind them
  float* scores;                // (B, score_stride)
  int64_t score_stride;
  const float* slopes;          // (B, N)
  GradientJob gradients;
  float *d_query, *d_weight, *d_candidate;  // (B, D), (B, D), (N, D)
};

}  // namespace besskge

#define BESSKGE_KERNELS "pairwise.kernels.h"
#include "each_isa.h"

namespace besskge {
namespace {

using MaybeTensor = c10::optional<at::Tensor>;

constexpr int64_t kGrain = 64;

// The inputs in float32, checked, and the packed queries.
struct Pairs {
  at::Tensor q, e, weight, packed;
  PairwiseJob job = {};
  PairsLayout layout = BESSKGE_CALL(pairs_layout, );

  Pairs(const at::Tensor& query, const at::Tensor& candidate, const std::string& comparison,
        const MaybeTensor& weights)
      : q(query.contiguous()), e(candidate) {
    TORCH_CHECK_VALUE(q.dim() == 2 && e.dim() == 2 && q.size(1) == e.size(1),
                      "pairwise expects queries (B, D) and candidates (N, D), got ", q.sizes(),
                      " and ", e.sizes());
    TORCH_CHECK_TYPE(q.scalar_type() == at::kFloat && e.scalar_type() == at::kFloat,
                     "pairwise expects float32, got ", q.scalar_type(), " and ",
                     e.scalar_type());
    if (e.stride(1) != 1 && e.size(1) > 1) e = e.contiguous();
    job.comparison = comparison_of(comparison, "pairwise");
    if (weights.has_value()) {
      TORCH_CHECK_VALUE(weights->sizes() == q.sizes() && (job.comparison == Comparison::l1 ||
                                                          job.comparison == Comparison::l2),
                        "pairwise expects weights ", q.sizes(), " of 'l1' or 'l2', got ",
                        weights->sizes(), " of '", comparison, "'");
      TORCH_CHECK_TYPE(weights->scalar_type() == at::kFloat,
                       "pairwise expects float32 weights, got ", weights->scalar_type());
      weight = weights->contiguous();
    }
    job.d = q.size(1);
    const bool complex = job.comparison == Comparison::modulus;
    TORCH_CHECK_VALUE(!complex || job.d % 2 == 0,
                      "pairwise expects rows of complex numbers, got a width of ", job.d);
    job.half = complex ? job.d / 2 : job.d;
    job.n_query = q.size(0);
    job.n_candidate = e.size(0);
    job.query = floats(q);
    job.weight = weight.defined() ? floats(weight) : nullptr;
    job.e = e.data_ptr<float>();
    job.e_stride = e.stride(0);
    packed = chunked(n_row(), second() ? 2 : 1, job.q);
    at::parallel_for(0, job.n_query, kGrain, [&](int64_t first, int64_t last) {
      BESSKGE_CALL(pack_queries, job, first, last);
    });
  }

  bool second() const { return weight.defined() || job.half < job.d; }
  int64_t n_row() const { return job.n_query + layout.rows; }
  int64_t n_chunk() const { return layout.chunks(job.half); }

  // A buffer of rows cut in chunks, in one or two parts, those of many rows together.
  at::Tensor chunked(int64_t rows, int64_t parts, Chunked& to) const {
    const at::Tensor buffer =
        pooled({std::max<int64_t>(parts * n_chunk() * rows * layout.width, 1)}, at::kFloat);
    to = {floats(buffer), layout.width, rows * layout.width};
    return buffer;
  }
};

at::Tensor pairwise(const at::Tensor& q, const at::Tensor& e, std::string comparison,
                    const MaybeTensor& weight) {
  Pairs pairs(q, e, comparison, weight);
  PairwiseJob& job = pairs.job;
  const at::Tensor scores = pooled({job.n_query, job.n_candidate}, at::kFloat);
  job.scores = floats(scores);
  job.score_stride = job.n_candidate;
  const int64_t panel = pairs.layout.panel;
  at::parallel_for(0, (job.n_candidate + panel - 1) / panel, 1, [&](int64_t first, int64_t last) {
    const at::Tensor packed = pooled({std::max<int64_t>(job.d, 1), panel}, at::kFloat);
    const at::Tensor tile = pooled({pairs.layout.rows, panel}, at::kFloat);
    BESSKGE_CALL(scores_of_panels, job, first, last, floats(packed), floats(tile));
  });
  return scores;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pairwise_backward(
    const at::Tensor& grad, const at::Tensor& scores, const at::Tensor& q, const at::Tensor& e,
    std::string comparison, const MaybeTensor& weight) {
  Pairs pairs(q, e, comparison, weight);
  PairwiseJob& job = pairs.job;
  const int64_t b = job.n_query, n = job.n_candidate, d = job.d;
  TORCH_CHECK_VALUE(grad.sizes() == scores.sizes() && grad.dim() == 2 && grad.size(0) == b &&
                        grad.size(1) == n,
                    "pairwise_backward expects gradients and scores (", b, ", ", n, "), got ",
                    grad.sizes(), " and ", scores.sizes());
  const at::Tensor slopes = grad.to(at::kFloat).contiguous(), kept = scores.contiguous();
  const at::Tensor c = pooled({std::max<int64_t>(b, 1), std::max<int64_t>(n, 1)}, at::kFloat);
  job.slopes = floats(slopes);
  job.scores = floats(kept);
  job.score_stride = n;
  GradientJob& gradients = job.gradients;
  gradients.q = job.q;
  gradients.c = floats(c);
  gradients.c_stride = n;
  gradients.n_query = b;
  gradients.n_candidate = n;
  gradients.half = job.half;
  gradients.n_group = gradient_groups(b);
  const int64_t parts = job.half < d ? 2 : 1;
  gradients.de_size = parts * pairs.n_chunk() * n * pairs.layout.width;
  const at::Tensor dq = pairs.chunked(pairs.n_row(), pairs.second() ? 2 : 1, gradients.dq);
  const at::Tensor packed = pairs.chunked(n, parts, gradients.e);
  const at::Tensor de = pooled({std::max<int64_t>(gradients.n_group * gradients.de_size, 1)},
                               at::kFloat);
  gradients.de = gradients.e;
  gradients.de.data = floats(de);
  const at::Tensor d_query = pooled({b, d}, at::kFloat), d_candidate = pooled({n, d}, at::kFloat);
  const at::Tensor d_weight = pairs.weight.defined() ? pooled({b, d}, at::kFloat) : at::empty({0, d});
  job.d_query = floats(d_query);
  job.d_candidate = floats(d_candidate);
  job.d_weight = floats(d_weight);

  at::parallel_for(0, b, kGrain, [&](int64_t first, int64_t last) {
    BESSKGE_CALL(coefficients, job, first, last);
  });
  at::parallel_for(0, n, kGrain, [&](int64_t first, int64_t last) {
    BESSKGE_CALL(pack_shared, job, first, last);
  });
  at::parallel_for(0, pairs.n_chunk() * gradients.n_group, 1, [&](int64_t first, int64_t last) {
    BESSKGE_CALL(gradients, job, first, last);
  });
  at::parallel_for(0, b, kGrain, [&](int64_t first, int64_t last) {
    BESSKGE_CALL(unpack_queries, job, first, last);
  });
  at::parallel_for(0, n, kGrain, [&](int64_t first, int64_t last) {
    BESSKGE_CALL(unpack_candidates, job, first, last);
  });
  return {d_query, d_candidate, d_weight};
}

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) {
  m.impl("pairwise", &besskge::pairwise);
  m.impl("pairwise_backward", &besskge::pairwise_backward);
}
