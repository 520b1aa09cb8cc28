// Scores of queries with lists of their own. Included by each_isa.h.
#include "pairs.kernels.h"
#include "lists.kernels.h"

// Scores of queries first to last -> (B, N).
template <class Metric>
static void scores_of(const IndexedJob& job, int64_t first, int64_t last) {
  const int64_t n = job.lists.n_each, d = job.lists.rows.width;
  for (int64_t b = first; b < last; ++b) {
    pack_row(job.query + b * d, d, job.lists.half, job.lists.q.at(b, 0), job.lists.q.chunk_step);
    const Chunked q = {job.lists.q.at(b, 0), 0, job.lists.q.chunk_step};
    float* scores = job.scores + b * n;
    list_sums<Metric>(q, job.lists.rows, b * n, n, job.lists.half, scores);
    for (int64_t i = 0; i < n; i += kWidth) {
      store_some(scores + i, Metric::score(load_some(scores + i, n - i)), n - i);
    }
  }
}

// Coefficients of the pairs of queries first to last, and the gradients of the queries (B, D).
template <class Metric>
static void query_gradients_of(const IndexedJob& job, int64_t first, int64_t last, float* chunks) {
  const int64_t n = job.lists.n_each, d = job.lists.rows.width, half = job.lists.half;
  const Chunked dq = {chunks, 0, kWidth};
  for (int64_t b = first; b < last; ++b) {
    pack_row(job.query + b * d, d, half, job.lists.q.at(b, 0), job.lists.q.chunk_step);
    const Chunked q = {job.lists.q.at(b, 0), 0, job.lists.q.chunk_step};
    float* c = job.lists.c + b * n;
    for (int64_t i = 0; i < n; i += kWidth) {
      const Vec slope = load_some(job.slopes + b * n + i, n - i);
      const Vec score = load_some(job.scores + b * n + i, n - i);
      store_some(c + i, Metric::coefficient(slope, score), n - i);
    }
    list_gradient<Metric>(q, job.lists.rows, b * n, n, half, c, dq);
    unpack_row(dq.data, dq.chunk_step, d, half, job.d_query + b * d);
  }
}

static void scores(const IndexedJob& job, int64_t first, int64_t last) {
  BESSKGE_EACH_COMPARISON(job.comparison, scores_of, job, first, last);
}
static void query_gradients(const IndexedJob& job, int64_t first, int64_t last, float* chunks) {
  BESSKGE_EACH_COMPARISON(job.comparison, query_gradients_of, job, first, last, chunks);
}
static void row_gradients(const IndexedJob& job, int64_t first, int64_t last) {
  BESSKGE_EACH_COMPARISON(job.comparison, unique_rows_of, job.lists, first, last);
}
