// The loss of positives against sampled candidates, and its gradients, phase by phase: each is a
// function of a range that threads share, and its results do not depend on how.
#include "pairs.kernels.h"
#include "lists.kernels.h"
#include "losses.kernels.h"
#include "queries.kernels.h"

constexpr int64_t kAhead = 4;  // rows that are asked for before they are needed

BESSKGE_INLINE const float* relation_of(const SampledJob& job, int64_t b) {
  return job.relation + job.relation_id[b] * job.moved.d;
}

// Packs the queries of positives first to last. `row`: (D), to work in.
static void make_queries(const SampledJob& job, int64_t first, int64_t last, float* row) {
  for (int64_t b = first; b < last; ++b) {
    const float* x = job.rows[job.known + b];
    if (b + kAhead < last) prefetch_row(job.rows[job.known + b + kAhead], job.moved.d);
    move_row(job.moved, x, relation_of(job, b), row);
    pack_row(row, job.moved.d, job.half, job.pairs.q.at(b, 0), job.pairs.q.chunk_step);
  }
}

// Packs shared candidates: panels first to last.
static void pack_candidates(const SampledJob& job, int64_t first, int64_t last) {
  const int64_t n = job.n_candidate, d = job.moved.d;
  for (int64_t i = first * kPanel; i < last * kPanel; ++i) {
    const float* row = i < n ? job.rows[job.candidate + i] : nullptr;
    if (i + kAhead < n) prefetch_row(job.rows[job.candidate + i + kAhead], d);
    pack_column(row, d, job.panels + i / kPanel * d * kPanel, i % kPanel);
    if (row && job.wanted) pack_row(row, d, job.half, job.pairs.e.at(i, 0), job.pairs.e.chunk_step);
  }
}

// -- scores and losses ----------------------------------------------------------------------------

// Losses of positives first to last, and the coefficients of their pairs. `scores`: to work in,
// (kRows more than there are positives, c_stride).
template <class Metric>
static void losses_of(const SampledJob& job, int64_t first, int64_t last, float* scores) {
  const int64_t stride = job.pairs.c_stride, n = job.n_candidate;
  // The answers come while the candidates are scored.
  for (int64_t b = first; b < last; ++b) prefetch_row(job.rows[job.answer + b], job.moved.d);
  if (!job.per_triple) {
    score_rows<Metric>(job.pairs.q, job.panels, stride / kPanel, job.moved.d, job.half, first, last,
                       scores, stride);
  }
  for (int64_t b = first; b < last; ++b) {
    float* own = scores + (b - first) * stride;
    const Chunked q = {job.pairs.q.at(b, 0), 0, job.pairs.q.chunk_step};
    if (job.per_triple) {
      list_sums<Metric>(q, job.rows, job.candidate + b * n, n, job.half, own);
    }
    for (int64_t i = 0; i < n; i += kWidth) store(own + i, Metric::score(load(own + i)));
    const float total = sum_of_pair<Metric>(q, job.rows[job.answer + b], job.half);
    const float positive = Metric::score(all(total))[0];
    const float scale = job.scale * (job.weight ? job.weight[b] : 1.0f);
    float* c = job.pairs.c + b * stride;
    float slope = 0.0f;
    job.loss_of[b] = row_loss(job.loss, positive, own, n, scale, c, slope);
    if (!job.wanted) continue;
    for (int64_t i = 0; i < n; i += kWidth) {
      store(c + i, Metric::coefficient(load(c + i), load(own + i)));
    }
    job.positive_c[b] = Metric::coefficient(all(slope), all(positive))[0];
    if (job.per_triple) {  // while the rows are in the cache
      const Chunked dq = {job.pairs.dq.at(b, 0), 0, job.pairs.dq.chunk_step};
      list_gradient<Metric>(q, job.rows, job.candidate + b * n, n, job.half, c, dq);
    }
  }
}

static void losses(const SampledJob& job, int64_t first, int64_t last, float* scores) {
  BESSKGE_EACH_COMPARISON(job.comparison, losses_of, job, first, last, scores);
}

// -- gradients ------------------------------------------------------------------------------------

// Shared candidates: tasks first to last of chunks x groups.
template <class Metric>
static void gradients_of(const SampledJob& job, int64_t first, int64_t last) {
  for (int64_t task = first; task < last; ++task) gradient_task<Metric>(job.pairs, task);
}

static void gradients(const SampledJob& job, int64_t first, int64_t last) {
  BESSKGE_EACH_COMPARISON(job.comparison, gradients_of, job, first, last);
}

// Gradients of the known entities, answers and relations of positives first to last.
template <class Metric>
static void positives_of(const SampledJob& job, int64_t first, int64_t last, float* row) {
  const int64_t d = job.moved.d;
  for (int64_t b = first; b < last; ++b) {
    if (b + kAhead < last) {
      prefetch_row(job.rows[job.answer + b + kAhead], d);
      prefetch_row(job.rows[job.known + b + kAhead], d);
    }
    const Chunked q = {job.pairs.q.at(b, 0), 0, job.pairs.q.chunk_step};
    const Chunked dq = {job.pairs.dq.at(b, 0), 0, job.pairs.dq.chunk_step};
    pair_gradient<Metric>(q, job.rows[job.answer + b], job.half, job.positive_c[b], dq,
                          job.d_rows + (job.answer + b) * d);
    float* d_known = job.d_rows + (job.known + b) * d;
    unpack_row(dq.data, dq.chunk_step, d, job.half, row);
    move_row_back(job.moved, job.rows[job.known + b], relation_of(job, b), row, d_known,
                  job.d_relation + b * d);
  }
}

static void positives(const SampledJob& job, int64_t first, int64_t last, float* row) {
  BESSKGE_EACH_COMPARISON(job.comparison, positives_of, job, first, last, row);
}

// Gradients of shared candidates first to last.
static void candidates(const SampledJob& job, int64_t first, int64_t last) {
  const int64_t d = job.moved.d;
  add_groups(job.pairs, d, first, last, job.d_rows + job.candidate * d);
}

// Candidates of each triple: gradients of distinct rows first to last.
static void unique_rows(const SampledJob& job, int64_t first, int64_t last) {
  BESSKGE_EACH_COMPARISON(job.comparison, unique_rows_of, job.lists, first, last);
}

// Columns first to last of the gradient of the relations (M, D), which starts at 0.
static void relations(const SampledJob& job, float* d_table, int64_t first, int64_t last) {
  for (int64_t b = 0; b < job.n_positive; ++b) {
    const float* from = job.d_relation + b * job.moved.d;
    float* to = d_table + job.relation_id[b] * job.moved.d;
    int64_t k = first;
    for (; k + kWidth <= last; k += kWidth) store(to + k, load(to + k) + load(from + k));
    for (; k < last; ++k) to[k] += from[k];
  }
}
