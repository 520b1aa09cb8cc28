// Scores of queries with shared candidates. Included by each_isa.h.
#include "pairs.kernels.h"

// Scores of all queries with the candidates of panels first to last. `panel`: (D, kPanel) and
// `tile`: (kRows, kPanel), to work in.
template <class Metric>
static void panel_scores(const PairwiseJob& job, int64_t first, int64_t last, float* panel,
                         float* tile) {
  for (int64_t p = first; p < last; ++p) {
    const int64_t left = job.n_candidate - p * kPanel;
    for (int64_t column = 0; column < kPanel; ++column) {
      const float* e = column < left ? job.e + (p * kPanel + column) * job.e_stride : nullptr;
      pack_column(e, job.d, panel, column);
    }
    for (int64_t b = 0; b < job.n_query; b += kScoreTile<Metric>) {
      score_tile<Metric>(job.q, b, panel, job.half, tile, kPanel);
      for (int64_t r = 0; r < kScoreTile<Metric> && b + r < job.n_query; ++r) {
        float* to = job.scores + (b + r) * job.score_stride + p * kPanel;
        for (int64_t i = 0; i < kPanel && i < left; i += kWidth) {
          store_some(to + i, Metric::score(load(tile + r * kPanel + i)), left - i);
        }
      }
    }
  }
}

// Queries first to last -> chunks, their weights behind them; rows past the last are not written.
static void pack_queries(const PairwiseJob& job, int64_t first, int64_t last) {
  const int64_t n_chunk = chunks_of(job.half);
  for (int64_t b = first; b < last; ++b) {
    pack_row(job.query + b * job.d, job.d, job.half, job.q.at(b, 0), job.q.chunk_step);
    if (job.weight) {
      pack_row(job.weight + b * job.d, job.d, job.half, job.q.at(b, n_chunk), job.q.chunk_step);
    }
  }
}

// The coefficients of the pairs of queries first to last, from the slopes of their scores.
template <class Metric>
static void pair_coefficients(const PairwiseJob& job, int64_t first, int64_t last) {
  const int64_t n = job.n_candidate;
  for (int64_t b = first; b < last; ++b) {
    const float* slope = job.slopes + b * n;
    const float* score = job.scores + b * job.score_stride;
    for (int64_t i = 0; i < n; i += kWidth) {
      const Vec c = Metric::coefficient(load_some(slope + i, n - i), load_some(score + i, n - i));
      store_some(job.gradients.c + b * n + i, c, n - i);
    }
  }
}

template <class Metric>
static void pair_gradients(const PairwiseJob& job, int64_t first, int64_t last) {
  for (int64_t task = first; task < last; ++task) gradient_task<Metric>(job.gradients, task);
}

// Candidates first to last -> chunks.
static void pack_shared(const PairwiseJob& job, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    pack_row(job.e + i * job.e_stride, job.d, job.half, job.gradients.e.at(i, 0),
             job.gradients.e.chunk_step);
  }
}

// Chunks of the gradients of queries first to last, and of their weights -> rows (B, D).
static void unpack_queries(const PairwiseJob& job, int64_t first, int64_t last) {
  const Chunked& dq = job.gradients.dq;
  const int64_t n_chunk = chunks_of(job.half);
  for (int64_t b = first; b < last; ++b) {
    unpack_row(dq.at(b, 0), dq.chunk_step, job.d, job.half, job.d_query + b * job.d);
    if (job.weight) {
      unpack_row(dq.at(b, n_chunk), dq.chunk_step, job.d, job.half, job.d_weight + b * job.d);
    }
  }
}

static void unpack_candidates(const PairwiseJob& job, int64_t first, int64_t last) {
  add_groups(job.gradients, job.d, first, last, job.d_candidate);
}

#define BESSKGE_EACH_PAIRWISE(FUNCTION, ...)                                               \
  if (!job.weight) {                                                                       \
    BESSKGE_EACH_COMPARISON(job.comparison, FUNCTION, __VA_ARGS__)                         \
  } else if (job.comparison == Comparison::l1) {                                           \
    FUNCTION<WeightedL1Distance>(__VA_ARGS__);                                             \
  } else {                                                                                 \
    FUNCTION<WeightedL2Distance>(__VA_ARGS__);                                             \
  }

static void scores_of_panels(const PairwiseJob& job, int64_t first, int64_t last, float* panel,
                             float* tile) {
  BESSKGE_EACH_PAIRWISE(panel_scores, job, first, last, panel, tile);
}
static void coefficients(const PairwiseJob& job, int64_t first, int64_t last) {
  BESSKGE_EACH_PAIRWISE(pair_coefficients, job, first, last);
}
static void gradients(const PairwiseJob& job, int64_t first, int64_t last) {
  BESSKGE_EACH_PAIRWISE(pair_gradients, job, first, last);
}
#undef BESSKGE_EACH_PAIRWISE
