// Scores of queries with lists of rows of their own, read from the table by index, and their
// gradients: of a row once, however often it is listed.
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

// Axes: B queries, N rows of each, D width of a row.
struct IndexedJob {
  ListJob lists;
  Comparison comparison;
  const float* query;   // (B, D)
  float* scores;        // (B, N)
  const float* slopes;  // (B, N)
  float* d_query;       // (B, D)
};

}  // namespace besskge

#define BESSKGE_KERNELS "indexed.kernels.h"
#include "each_isa.h"

namespace besskge {
namespace {

constexpr const char* kName = "indexed";

struct Lists {
  at::Tensor q, table, index, packed;
  IndexedJob job = {};
  PairsLayout layout = BESSKGE_CALL(pairs_layout, );
  int64_t n_query, n_chunk;

  Lists(const at::Tensor& query, const at::Tensor& rows, const at::Tensor& row_index,
        const std::string& comparison)
      : q(query.contiguous()), table(rows.contiguous()),
        index(row_index.to(at::kLong).contiguous()) {
    TORCH_CHECK_VALUE(q.dim() == 2 && table.dim() == 2 && index.dim() == 2 &&
                          q.size(1) == table.size(1) && q.size(0) == index.size(0),
                      "indexed expects queries (B, D), a table (E, D) and indices (B, N), got ",
                      q.sizes(), ", ", table.sizes(), " and ", index.sizes());
    TORCH_CHECK_TYPE(q.scalar_type() == at::kFloat && table.scalar_type() == at::kFloat,
                     "indexed expects float32, got ", q.scalar_type(), " and ",
                     table.scalar_type());
    check_rows(index, table.size(0), kName);
    job.comparison = comparison_of(comparison, kName);
    const int64_t d = q.size(1);
    const bool complex = job.comparison == Comparison::modulus;
    TORCH_CHECK_VALUE(!complex || d % 2 == 0,
                      "indexed expects rows of complex numbers, got a width of ", d);
    ListJob& lists = job.lists;
    lists.half = complex ? d / 2 : d;
    n_query = q.size(0);
    n_chunk = layout.chunks(lists.half) * (complex ? 2 : 1);
    packed = pooled({std::max<int64_t>(n_query * n_chunk * layout.width, 1)}, at::kFloat);
    lists.q = {floats(packed), n_chunk * layout.width, layout.width};
    lists.rows = {floats(table), index.data_ptr<int64_t>(), d};
    lists.n_each = index.size(1);
    lists.c_stride = lists.n_each;
    job.query = floats(q);
  }
};

at::Tensor indexed(const at::Tensor& q, const at::Tensor& table, const at::Tensor& index,
                   std::string comparison) {
  Lists lists(q, table, index, comparison);
  const at::Tensor scores = pooled({lists.n_query, lists.job.lists.n_each}, at::kFloat);
  lists.job.scores = floats(scores);
  at::parallel_for(0, lists.n_query, 8, [&](int64_t first, int64_t last) {
    BESSKGE_CALL(scores, lists.job, first, last);
  });
  return scores;
}

std::tuple<at::Tensor, at::Tensor> indexed_backward(
    const at::Tensor& grad, const at::Tensor& scores, const at::Tensor& q, const at::Tensor& table,
    const at::Tensor& index, std::string comparison, const at::Tensor& unique_rows,
    const at::Tensor& run_offsets, const at::Tensor& order) {
  Lists lists(q, table, index, comparison);
  const at::Tensor slopes = grad.to(at::kFloat).contiguous(), kept = scores.contiguous(),
                   unique = unique_rows.to(at::kLong).contiguous(),
                   offsets = run_offsets.to(at::kLong).contiguous(),
                   ordered = order.to(at::kLong).contiguous();
  TORCH_CHECK_VALUE(grad.sizes() == index.sizes() && scores.sizes() == index.sizes() &&
                        ordered.numel() == index.numel() && offsets.numel() == unique.numel(),
                    "indexed_backward expects gradients, scores and a grouping of indices ",
                    index.sizes(), ", got ", grad.sizes(), ", ", scores.sizes(), " and ",
                    order.sizes());
  const int64_t d = q.size(1);
  const at::Tensor d_query = pooled({lists.n_query, d}, at::kFloat),
                   d_unique = pooled({unique.numel(), d}, at::kFloat),
                   c = pooled({std::max<int64_t>(index.numel(), 1)}, at::kFloat);
  IndexedJob& job = lists.job;
  job.slopes = floats(slopes);
  job.scores = floats(kept);
  job.d_query = floats(d_query);
  job.lists.c = floats(c);
  job.lists.unique_rows = unique.data_ptr<int64_t>();
  job.lists.run_offsets = offsets.data_ptr<int64_t>();
  job.lists.order = ordered.data_ptr<int64_t>();
  job.lists.n_unique = unique.numel();
  job.lists.n_lookup = ordered.numel();
  job.lists.d_unique = floats(d_unique);
  at::parallel_for(0, lists.n_query, 8, [&](int64_t first, int64_t last) {
    const at::Tensor chunks = pooled({lists.n_chunk * lists.layout.width}, at::kFloat);
    BESSKGE_CALL(query_gradients, job, first, last, floats(chunks));
  });
  at::parallel_for(0, job.lists.n_unique, 64, [&](int64_t first, int64_t last) {
    BESSKGE_CALL(row_gradients, job, first, last);
  });
  return {d_query, d_unique};
}

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) {
  m.impl("indexed", &besskge::indexed);
  m.impl("indexed_backward", &besskge::indexed_backward);
}
