// The loss of positives against sampled negatives, with its gradients, in one operation: rows are
// read where they are, and of each pair of query and candidate no more than a number exists.
#include "sampled_loss.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "buffers.h"
#include "inputs.h"
#include "isa.h"

#define BESSKGE_KERNELS "sampled_loss.kernels.h"
#include "each_isa.h"

namespace besskge {
namespace {

constexpr int64_t kBlock = 48;  // positives that are scored together: a multiple of every tile

constexpr const char* kName = "sampled_loss";

using Tensors = std::vector<at::Tensor>;
using MaybeTensor = c10::optional<at::Tensor>;

at::Tensor as_indices(const at::Tensor& x) { return x.to(at::kLong).contiguous(); }

const int64_t* indices(const at::Tensor& x) { return x.data_ptr<int64_t>(); }

// Allocates what the phases write; the tensors must live as long as the job.
Tensors allocate(SampledJob& job, const PairsLayout& layout) {
  const int64_t d = job.moved.d, b = job.n_positive, n = job.n_candidate;
  const int64_t n_chunk = layout.chunks(job.half) * (job.half < d ? 2 : 1);
  const int64_t n_row = b + layout.rows, w = layout.width;
  Tensors kept;
  const auto floats_of = [&kept](int64_t count) {
    kept.push_back(pooled({std::max<int64_t>(count, 1)}, at::kFloat));
    return floats(kept.back());
  };
  const auto chunked = [&](int64_t rows, bool rows_together) {
    float* data = floats_of(rows * n_chunk * w);
    return rows_together ? Chunked{data, w, rows * w} : Chunked{data, n_chunk * w, w};
  };
  GradientJob& pairs = job.pairs;
  pairs.n_query = b;
  pairs.n_candidate = n;
  pairs.half = job.half;
  pairs.c_stride = (n + layout.panel - 1) / layout.panel * layout.panel;
  pairs.c = floats_of(b * pairs.c_stride);
  pairs.q = chunked(n_row, !job.per_triple);
  pairs.dq = chunked(n_row, !job.per_triple);
  if (!job.per_triple) {
    job.panels = floats_of(pairs.c_stride * d);
    pairs.n_group = gradient_groups(b);
    pairs.de_size = n * n_chunk * w;
    pairs.e = chunked(n, true);
    pairs.de = pairs.e;
    pairs.de.data = floats_of(pairs.n_group * pairs.de_size);
  }
  job.positive_c = floats_of(b);
  job.loss_of = floats_of(b);
  job.d_relation = floats_of(b * d);
  return kept;
}

void score_and_lose(const SampledJob& job, const PairsLayout& layout) {
  const int64_t d = job.moved.d;
  at::parallel_for(0, job.n_positive, 64, [&](int64_t first, int64_t last) {
    const at::Tensor row = pooled({d}, at::kFloat);
    BESSKGE_CALL(make_queries, job, first, last, floats(row));
  });
  if (!job.per_triple) {
    at::parallel_for(0, job.pairs.c_stride / layout.panel, 1, [&](int64_t first, int64_t last) {
      BESSKGE_CALL(pack_candidates, job, first, last);
    });
  }
  const int64_t n_block = (job.n_positive + kBlock - 1) / kBlock;
  at::parallel_for(0, n_block, 1, [&](int64_t first, int64_t last) {
    const at::Tensor scores = pooled({kBlock + layout.rows, job.pairs.c_stride}, at::kFloat);
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlock;
      const int64_t end = std::min(begin + kBlock, job.n_positive);
      BESSKGE_CALL(losses, job, begin, end, floats(scores));
    }
  });
}

void find_gradients(const SampledJob& job, const PairsLayout& layout) {
  const int64_t d = job.moved.d;
  if (!job.per_triple) {
    const int64_t n_task = layout.chunks(job.half) * job.pairs.n_group;
    at::parallel_for(0, n_task, 1, [&](int64_t first, int64_t last) {
      BESSKGE_CALL(gradients, job, first, last);
    });
    at::parallel_for(0, job.n_candidate, 64, [&](int64_t first, int64_t last) {
      BESSKGE_CALL(candidates, job, first, last);
    });
  }
  at::parallel_for(0, job.n_positive, 64, [&](int64_t first, int64_t last) {
    const at::Tensor row = pooled({d}, at::kFloat);
    BESSKGE_CALL(positives, job, first, last, floats(row));
  });
  if (job.per_triple) {
    at::parallel_for(0, job.lists.n_unique, 64, [&](int64_t first, int64_t last) {
      BESSKGE_CALL(unique_rows, job, first, last);
    });
  }
}

LossRule rule_of(const std::string& loss, const std::string& activation, bool adversarial,
                 at::ArrayRef<double> numbers) {
  TORCH_CHECK_VALUE(numbers.size() == 6, "sampled_loss expects 6 numbers of the loss, got ",
                    numbers.size());
  LossRule rule = {};
  rule.kind = choice<LossKind>(loss, kName, "loss", {"pointwise", "ranking", "softmax"});
  rule.activation = choice<Activation>(activation, kName, "activation", {"relu", "softplus", "identity"});
  rule.adversarial = adversarial;
  float* const to[] = {&rule.margin,          &rule.positive_margin, &rule.temperature,
                       &rule.positive_factor, &rule.negative_factor, &rule.offset};
  for (size_t i = 0; i < 6; ++i) *to[i] = static_cast<float>(numbers[i]);
  return rule;
}

// What is read, checked, and kept for as long as the job runs.
struct Inputs {
  at::Tensor table, index, relation, relation_id, weight, unique_rows, run_offsets, order;
};

void check_shapes(const Inputs& in, const SampledJob& job) {
  const int64_t d = job.moved.d, b = job.n_positive;
  const int64_t n_lookup = job.candidate + job.n_candidate * (job.per_triple ? b : 1);
  TORCH_CHECK_VALUE(job.n_candidate >= 1 && in.index.numel() == n_lookup,
                    "sampled_loss expects ", n_lookup, " rows, for ", b, " heads, as many tails and ",
                    job.n_candidate, " candidates", job.per_triple ? " each" : "", ", got ",
                    in.index.numel());
  TORCH_CHECK_VALUE(in.relation.dim() == 2 && in.relation.size(1) == d,
                    "sampled_loss expects relations (M, ", d, "), got ", in.relation.sizes());
  TORCH_CHECK_VALUE(!in.weight.defined() || in.weight.numel() == b, "sampled_loss expects ", b,
                    " weights, got ", in.weight.sizes());
  const bool complex = job.half < d || job.moved.move == Move::complex_scaling;
  TORCH_CHECK_VALUE(d % 2 == 0 || !complex,
                    "sampled_loss expects rows of complex numbers, got a width of ", d);
  check_rows(in.index, in.table.size(0), kName);
  check_rows(in.relation_id, in.relation.size(0), kName);
  TORCH_CHECK_VALUE(!job.per_triple || !job.wanted ||
                        (in.order.defined() && in.order.numel() == n_lookup &&
                         in.run_offsets.numel() == in.unique_rows.numel()),
                    "sampled_loss of candidates of each triple expects its rows grouped");
}

void point_to(const Inputs& in, SampledJob& job) {
  job.rows = {floats(in.table), indices(in.index), job.moved.d};
  job.relation = floats(in.relation);
  job.relation_id = indices(in.relation_id);
  if (in.weight.defined()) job.weight = floats(in.weight);
  if (!in.order.defined()) return;
  job.lists.unique_rows = indices(in.unique_rows);
  job.lists.run_offsets = indices(in.run_offsets);
  job.lists.order = indices(in.order);
  job.lists.n_unique = in.unique_rows.numel();
  job.lists.n_lookup = in.order.numel();
}

using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Runs all phases of a job whose inputs are there.
Result run(SampledJob& job, const at::TensorOptions& options, int64_t n_relation) {
  const PairsLayout layout = BESSKGE_CALL(pairs_layout, );
  const Tensors kept = allocate(job, layout);
  const int64_t d = job.moved.d;
  at::Tensor d_rows, d_positive, d_relation;
  if (!job.wanted) {
    d_rows = at::empty({0, d}, options);
    d_relation = at::empty({0, d}, options);
  } else {
    d_rows = pooled({job.per_triple ? job.lists.n_unique : job.candidate + job.n_candidate, d},
                    at::kFloat);
    d_positive = job.per_triple ? pooled({job.candidate, d}, at::kFloat) : d_rows;
    d_relation = at::zeros({n_relation, d}, options);
    job.d_rows = floats(d_positive);
    ListJob& lists = job.lists;
    lists.rows = job.rows;
    lists.q = job.pairs.q;
    lists.half = job.half;
    lists.c = job.pairs.c;
    lists.c_stride = job.pairs.c_stride;
    lists.first = job.candidate;
    lists.n_each = job.n_candidate;
    lists.d_first = job.d_rows;
    lists.d_unique = floats(d_rows);
  }
  score_and_lose(job, layout);
  if (job.wanted) {
    find_gradients(job, layout);
    at::parallel_for(0, d, 64, [&](int64_t first, int64_t last) {
      BESSKGE_CALL(relations, job, floats(d_relation), first, last);
    });
  }
  double total = 0.0;
  for (int64_t b = 0; b < job.n_positive; ++b) total += job.loss_of[b];
  return {at::scalar_tensor(total, options), d_rows, d_relation};
}

Result sampled_loss(const at::Tensor& table, const at::Tensor& index, const at::Tensor& relation,
                    const at::Tensor& relation_id, const MaybeTensor& weight, int64_t n_candidate,
                    bool per_triple, bool heads, std::string move, std::string comparison,
                    std::string loss, std::string activation, bool adversarial,
                    at::ArrayRef<double> numbers, double scale, bool wanted,
                    const MaybeTensor& unique_rows, const MaybeTensor& run_offsets,
                    const MaybeTensor& order) {
  TORCH_CHECK_VALUE(table.dim() == 2, "sampled_loss expects a table (E, D), got ", table.sizes());
  TORCH_CHECK_TYPE(table.scalar_type() == at::kFloat && relation.scalar_type() == at::kFloat,
                   "sampled_loss expects float32 rows and relations, got ", table.scalar_type(),
                   " and ", relation.scalar_type());
  Inputs in = {table.contiguous(), as_indices(index), relation.contiguous(),
               as_indices(relation_id)};
  if (weight.has_value()) in.weight = weight->to(at::kFloat).contiguous();
  if (unique_rows.has_value() && run_offsets.has_value() && order.has_value()) {
    in.unique_rows = as_indices(*unique_rows);
    in.run_offsets = as_indices(*run_offsets);
    in.order = as_indices(*order);
  }
  SampledJob job = {};
  job.moved.move = choice<Move>(move, kName, "move", {"translation", "scaling", "complex_scaling"});
  job.moved.heads = heads;
  job.moved.d = in.table.size(1);
  job.comparison = comparison_of(comparison, kName);
  job.half = job.comparison == Comparison::modulus ? job.moved.d / 2 : job.moved.d;
  job.n_positive = in.relation_id.numel();
  job.known = heads ? job.n_positive : 0;
  job.answer = heads ? 0 : job.n_positive;
  job.candidate = 2 * job.n_positive;
  job.n_candidate = n_candidate;
  job.per_triple = per_triple;
  job.loss = rule_of(loss, activation, adversarial, numbers);
  job.scale = static_cast<float>(scale);
  job.wanted = wanted;
  check_shapes(in, job);
  point_to(in, job);
  return run(job, in.table.options(), in.relation.size(0));
}

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("sampled_loss", &besskge::sampled_loss); }
