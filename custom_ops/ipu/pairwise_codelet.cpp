// Scores of pairs of rows, and their gradients, as one tile computes them; see pairwise.cpp for how
// pairs are dealt to tiles. Differences and sums are float32 whatever the rows are.
//
// Axes, of what one tile holds:
//     B: queries q      N: candidates e      D: width of a row
// Rows lie end to end. A complex row, of the comparison kModulus, has D / 2 real parts, then as many
// imaginary ones.
//
// Workers of a tile run side by side, so each writes what no other does: some of the pairs going
// forward, some of the columns going back.
#include <poplar/Vertex.hpp>

#include "comparisons.h"
#include "lanes.h"

namespace besskge_core {

// -- comparisons: what entries add to the score, and to the gradients ----------------------------
//
// `add` and `slope` are of real entries, or of a real and an imaginary part; `coefficient` is of a
// pair: what its slope becomes before it meets the entries.

template <unsigned comparison>
struct Compare;

template <>
struct Compare<kL1> {
  static constexpr bool is_complex = false;
  template <class Lane>
  static Lane add(Lane total, Lane d) {
    return total + absolute(d);
  }
  static float score(float total) { return -total; }
  static float coefficient(float slope) { return -slope; }
  template <class Lane>
  static Lane slope(Lane c, Lane d) {
    return signed_by(c, d);
  }
};

template <>
struct Compare<kSquaredL2> {
  static constexpr bool is_complex = false;
  template <class Lane>
  static Lane add(Lane total, Lane d) {
    return total + d * d;
  }
  static float score(float total) { return -total; }
  static float coefficient(float slope) { return -2.0f * slope; }
  template <class Lane>
  static Lane slope(Lane c, Lane d) {
    return c * d;
  }
};

template <>
struct Compare<kL2> : Compare<kSquaredL2> {
  static float score(float total) { return -square_root(total); }
  static float coefficient(float slope) { return slope; }  // by NormCoefficients, over the score
};

template <>
struct Compare<kModulus> {
  static constexpr bool is_complex = true;
  template <class Lane>
  static Lane add(Lane total, Lane re, Lane im) {
    return total + square_root(re * re + im * im);
  }
  static float score(float total) { return -total; }
  static float coefficient(float slope) { return -slope; }
  template <class Lane>
  static Lane scale(Lane c, Lane re, Lane im) {
    return c * inverse_root(re * re + im * im);
  }
};

// -- loops ---------------------------------------------------------------------------------------

// [from, to) of n, for a worker.
struct Share {
  unsigned from, to;
  Share(unsigned n, unsigned worker, unsigned n_worker) {
    const unsigned each = n / n_worker, more = n % n_worker;  // the first `more` do one more
    from = worker * each + (worker < more ? worker : more);
    to = from + each + (worker < more ? 1 : 0);
  }
};

template <class How, class Lane, class Element>
inline float score_of(const Element* q, const Element* e, unsigned width) {
  Lane total = Of<Lane>::all(0.0f);
  if constexpr (How::is_complex) {
    const unsigned half_width = width / 2;
    for (unsigned k = 0; k < half_width; k += Of<Lane>::width) {
      const Lane re = Of<Lane>::at(q + k) - Of<Lane>::at(e + k);
      const Lane im = Of<Lane>::at(q + half_width + k) - Of<Lane>::at(e + half_width + k);
      total = How::add(total, re, im);
    }
  } else {
    for (unsigned k = 0; k < width; k += Of<Lane>::width) {
      total = How::add(total, Of<Lane>::at(q + k) - Of<Lane>::at(e + k));
    }
  }
  return How::score(sum(total));
}

template <class How, class Lane, class Element>
inline void scores(const Element* q, const Element* e, float* out, unsigned n_candidate,
                   unsigned width, Share pairs) {
  if (pairs.from == pairs.to) return;
  unsigned b = pairs.from / n_candidate, n = pairs.from % n_candidate;
  for (unsigned pair = pairs.from; pair < pairs.to; ++pair) {
    out[pair] = score_of<How, Lane>(q + b * width, e + n * width, width);
    if (++n == n_candidate) n = 0, ++b;
  }
}

// Columns [from, to), counted in lanes, of both gradients. Those of complex rows are real parts;
// their imaginary parts are the same worker's.
template <class How, class Lane, class Element>
inline void gradients(const Element* q, const Element* e, const float* slope, float* dq, float* de,
                      unsigned n_query, unsigned n_candidate, unsigned width, Share columns) {
  const unsigned half_width = width / 2;
  for (unsigned column = columns.from; column < columns.to; ++column) {
    const unsigned k = column * Of<Lane>::width;
    for (unsigned n = 0; n < n_candidate; ++n) {
      put(de + n * width + k, Of<Lane>::all(0.0f));
      if constexpr (How::is_complex) put(de + n * width + half_width + k, Of<Lane>::all(0.0f));
    }
    for (unsigned b = 0; b < n_query; ++b) {
      const float* const slopes = slope + b * n_candidate;
      const unsigned at_q = b * width + k;
      const Lane q_re = Of<Lane>::at(q + at_q);
      Lane dq_re = Of<Lane>::all(0.0f);
      if constexpr (How::is_complex) {
        const Lane q_im = Of<Lane>::at(q + at_q + half_width);
        Lane dq_im = Of<Lane>::all(0.0f);
        for (unsigned n = 0; n < n_candidate; ++n) {
          const unsigned at_e = n * width + k;
          const Lane re = q_re - Of<Lane>::at(e + at_e);
          const Lane im = q_im - Of<Lane>::at(e + at_e + half_width);
          const Lane c = Of<Lane>::all(How::coefficient(slopes[n]));
          const Lane scale = How::scale(c, re, im);
          dq_re = dq_re + scale * re;
          dq_im = dq_im + scale * im;
          put(de + at_e, Of<Lane>::at(de + at_e) - scale * re);
          put(de + at_e + half_width, Of<Lane>::at(de + at_e + half_width) - scale * im);
        }
        put(dq + at_q + half_width, dq_im);
      } else {
        for (unsigned n = 0; n < n_candidate; ++n) {
          const unsigned at_e = n * width + k;
          const Lane c = Of<Lane>::all(How::coefficient(slopes[n]));
          const Lane s = How::slope(c, q_re - Of<Lane>::at(e + at_e));
          dq_re = dq_re + s;
          put(de + at_e, Of<Lane>::at(de + at_e) - s);
        }
      }
      put(dq + at_q, dq_re);
    }
  }
}

// Whether two lanes that lie together are of one row, and of one part of it, in every row.
template <class How>
inline bool is_paired(unsigned width) {
  return width % (How::is_complex ? 4 : 2) == 0;
}

// -- vertices ------------------------------------------------------------------------------------

// q (B, D), e (N, D) -> out (B, N).
template <typename T, unsigned comparison>
class PairScores : public poplar::MultiVertex {
 public:
  poplar::Input<poplar::Vector<T, poplar::VectorLayout::ONE_PTR, 8>> q;
  poplar::Input<poplar::Vector<T, poplar::VectorLayout::ONE_PTR, 8>> e;
  poplar::Output<poplar::Vector<float, poplar::VectorLayout::ONE_PTR, 8>> out;
  unsigned n_query;
  unsigned n_candidate;
  unsigned width;

  bool compute(unsigned worker) {
    typedef Compare<comparison> How;
    const Share pairs(n_query * n_candidate, worker, numWorkers());
    if (is_paired<How>(width)) {
      scores<How, Pair>(&q[0], &e[0], &out[0], n_candidate, width, pairs);
    } else {
      scores<How, float>(&q[0], &e[0], &out[0], n_candidate, width, pairs);
    }
    return true;
  }
};

// q (B, D), e (N, D), slope (B, N), of the loss by the scores -> dq (B, D), de (N, D), of the loss by
// the rows, summed over the pairs of this tile. For kL2 the slope is what NormCoefficients makes.
template <typename T, unsigned comparison>
class PairGradients : public poplar::MultiVertex {
 public:
  poplar::Input<poplar::Vector<T, poplar::VectorLayout::ONE_PTR, 8>> q;
  poplar::Input<poplar::Vector<T, poplar::VectorLayout::ONE_PTR, 8>> e;
  poplar::Input<poplar::Vector<float, poplar::VectorLayout::ONE_PTR, 8>> slope;
  poplar::Output<poplar::Vector<float, poplar::VectorLayout::ONE_PTR, 8>> dq;
  poplar::InOut<poplar::Vector<float, poplar::VectorLayout::ONE_PTR, 8>> de;  // cleared here
  unsigned n_query;
  unsigned n_candidate;
  unsigned width;

  bool compute(unsigned worker) {
    typedef Compare<comparison> How;
    const unsigned columns = How::is_complex ? width / 2 : width;
    if (is_paired<How>(width)) {
      gradients<How, Pair>(&q[0], &e[0], &slope[0], &dq[0], &de[0], n_query, n_candidate, width,
                           Share(columns / 2, worker, numWorkers()));
    } else {
      gradients<How, float>(&q[0], &e[0], &slope[0], &dq[0], &de[0], n_query, n_candidate, width,
                            Share(columns, worker, numWorkers()));
    }
    return true;
  }
};

// slope (K), score (K) -> out (K), of negated L2 norms: what a difference is multiplied by to give
// the gradient, slope / score. A norm of 0 has the gradient 0.
template <typename T>
class NormCoefficients : public poplar::MultiVertex {
 public:
  poplar::Input<poplar::Vector<T, poplar::VectorLayout::ONE_PTR, 8>> slope;
  poplar::Input<poplar::Vector<T, poplar::VectorLayout::ONE_PTR, 8>> score;
  poplar::Output<poplar::Vector<float, poplar::VectorLayout::ONE_PTR, 8>> out;
  unsigned n_pair;

  bool compute(unsigned worker) {
    const Share pairs(n_pair, worker, numWorkers());
    for (unsigned k = pairs.from; k < pairs.to; ++k) {
      const float s = static_cast<float>(score[k]);
      out[k] = s == 0.0f ? 0.0f : static_cast<float>(slope[k]) / s;
    }
    return true;
  }
};

#define BESSKGE_OF_EACH_TYPE(Vertex, comparison) \
  template class Vertex<float, comparison>;      \
  template class Vertex<half, comparison>;
BESSKGE_OF_EACH_TYPE(PairScores, kL1)
BESSKGE_OF_EACH_TYPE(PairScores, kL2)
BESSKGE_OF_EACH_TYPE(PairScores, kSquaredL2)
BESSKGE_OF_EACH_TYPE(PairScores, kModulus)
BESSKGE_OF_EACH_TYPE(PairGradients, kL1)
BESSKGE_OF_EACH_TYPE(PairGradients, kL2)
BESSKGE_OF_EACH_TYPE(PairGradients, kSquaredL2)
BESSKGE_OF_EACH_TYPE(PairGradients, kModulus)
template class NormCoefficients<float>;
template class NormCoefficients<half>;

}  // namespace besskge_core
