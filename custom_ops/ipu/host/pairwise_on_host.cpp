// Runs vertices of pairwise_codelet.cpp on the host, one after the other: tests/test_ipu_codelets.py
// gives their fields on standard input, and reads what they wrote from standard output.
//
//     in:  seven int32: vertex (0 PairScores, 1 PairGradients, 2 NormCoefficients of B pairs),
//          comparison, whether rows are halves, B, N, D, whether workers go last to first; then the
//          inputs
//     out: how many numbers there are, int32; the outputs, float32
//
// "Vertex" 3 asks tiling.h to deal the pairs to `comparison` tiles: six numbers of each part.
//
// Each field has heap memory of just its size, so that AddressSanitizer sees a step beyond it.
#include "../pairwise_codelet.cpp"
#include "../tiling.h"

#include <cstdint>
#include <cstring>
#include <memory>

using namespace besskge_core;

namespace {

template <class T>
struct Memory {
  explicit Memory(std::size_t n)
      : size(n), start(static_cast<T*>(std::malloc(n * sizeof(T))), &std::free) {}
  Memory& read() {
    if (std::fread(start.get(), sizeof(T), size, stdin) != size) poplar::stop("input is too short");
    return *this;
  }
  void write() const { std::fwrite(start.get(), sizeof(T), size, stdout); }
  // What a codelet must not rely on: memory as it comes.
  Memory& spoil() {
    std::memset(start.get(), 0xff, size * sizeof(T));  // not a number
    return *this;
  }
  std::size_t size;
  std::unique_ptr<T, void (*)(void*)> start;
};

template <class Field, class T>
void bind(Field& field, Memory<T>& memory) {
  field.bind(memory.start.get(), memory.size);
}

void announce(std::size_t n_number) {
  const auto n = static_cast<std::int32_t>(n_number);
  std::fwrite(&n, sizeof n, 1, stdout);
}

struct Case {
  std::int32_t vertex, comparison, is_half, n_query, n_candidate, width, is_reversed;
};

template <class Vertex>
void run(Vertex& vertex, const Case& c) {
  const unsigned n_worker = poplar::MultiVertex::numWorkers();
  for (unsigned w = 0; w < n_worker; ++w) vertex.compute(c.is_reversed ? n_worker - 1 - w : w);
}

template <class Vertex>
void set_sizes(Vertex& vertex, const Case& c) {
  vertex.n_query = c.n_query, vertex.n_candidate = c.n_candidate, vertex.width = c.width;
}

template <class T, unsigned comparison>
void run_pairs(const Case& c) {
  const std::size_t n_pair = std::size_t(c.n_query) * c.n_candidate;
  Memory<T> q(std::size_t(c.n_query) * c.width), e(std::size_t(c.n_candidate) * c.width);
  q.read(), e.read();
  if (c.vertex == 0) {
    Memory<float> out(n_pair);
    PairScores<T, comparison> vertex;
    bind(vertex.q, q), bind(vertex.e, e), bind(vertex.out, out.spoil());
    set_sizes(vertex, c), run(vertex, c);
    announce(out.size), out.write();
  } else {
    Memory<float> slope(n_pair), dq(q.size), de(e.size);
    PairGradients<T, comparison> vertex;
    bind(vertex.q, q), bind(vertex.e, e), bind(vertex.slope, slope.read());
    bind(vertex.dq, dq.spoil()), bind(vertex.de, de.spoil());
    set_sizes(vertex, c), run(vertex, c);
    announce(dq.size + de.size), dq.write(), de.write();
  }
}

template <class T>
void run_case(const Case& c) {
  if (c.vertex == 2) {
    Memory<T> slope(c.n_query), score(c.n_query);
    Memory<float> out(c.n_query);
    NormCoefficients<T> vertex;
    bind(vertex.slope, slope.read()), bind(vertex.score, score.read());
    bind(vertex.out, out.spoil());
    vertex.n_pair = c.n_query, run(vertex, c);
    announce(out.size), out.write();
    return;
  }
  switch (c.comparison) {
    case kL1: return run_pairs<T, kL1>(c);
    case kL2: return run_pairs<T, kL2>(c);
    case kSquaredL2: return run_pairs<T, kSquaredL2>(c);
    case kModulus: return run_pairs<T, kModulus>(c);
    default: poplar::stop("there is no such comparison");
  }
}

void deal(const Case& c) {
  const Rectangle each =
      deal_pairs(c.n_query, c.n_candidate, c.width, c.is_half ? 2 : 4, c.comparison);
  const std::vector<Part> parts = all_parts(c.n_query, c.n_candidate, each);
  announce(6 * parts.size());
  for (const Part& p : parts) {
    for (const std::size_t x : {p.row, p.row_end, p.column, p.column_end, p.down, p.across}) {
      const float number = static_cast<float>(x);
      std::fwrite(&number, sizeof number, 1, stdout);
    }
  }
}

}  // namespace

int main() {
  Case c;
  while (std::fread(&c, sizeof c, 1, stdin) == 1) {
    if (c.vertex == 3) {
      deal(c);
    } else {
      c.is_half ? run_case<half>(c) : run_case<float>(c);
    }
    std::fflush(stdout);
  }
}
