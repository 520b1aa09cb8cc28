// Inner products of queries with all rows of a table, a tile of rows at a time and a thread a tile,
// and the softmax over them: scores, log-sum-exp, and the gradients of queries and rows.
//
// Torch multiplies. A product of its own has one thread here, so that threads wait for each other
// once a call, not once a product; and what a tile holds is still in the cache when it is used.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "buffers.h"
#include "softmax_rows.h"

namespace besskge {
namespace {

using Mask = c10::optional<at::Tensor>;

constexpr int64_t kTile = 1024;  // the most rows of a tile
// Sums over tiles are made in so many parts, whatever the number of threads, so that their bits
// are always the same.
constexpr int64_t kParts = 16;

int64_t tiles_of(int64_t n_row, int64_t tile) { return (n_row + tile - 1) / tile; }

int64_t height_of(const char* name, int64_t tile) {
  TORCH_CHECK_VALUE(tile >= 1, name, " expects tiles of at least 1 row, got ", tile);
  return std::min(tile, kTile);
}

// out = a b, or out += a b; on this thread alone, for others are busy with other tiles.
void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b, bool add = false) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (add) {
    out.addmm_(a, b);
  } else {
    at::mm_out(out, a, b);
  }
}

uint16_t* halves(const at::Tensor& x) { return static_cast<uint16_t*>(x.data_ptr()); }

void check(const char* name, const at::Tensor& query, const at::Tensor& rows) {
  TORCH_CHECK_VALUE(query.dim() == 2 && rows.dim() == 2 && query.size(1) == rows.size(1), name,
                    " expects query (Q, D) and rows (M, D), got ", query.sizes(), " and ",
                    rows.sizes());
}

void check_floats(const char* name, const at::Tensor& query, const at::Tensor& rows,
                  at::ScalarType dtype) {
  check(name, query, rows);
  TORCH_CHECK_TYPE(query.scalar_type() == at::kFloat && rows.scalar_type() == at::kFloat, name,
                   " expects query and rows in float32, got ", query.scalar_type(), " and ",
                   rows.scalar_type());
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16, name,
                   " multiplies in float32 or bfloat16, not ", dtype);
}

at::Tensor inner_products(const at::Tensor& query, const at::Tensor& rows) {
  check("inner_products", query, rows);
  TORCH_CHECK_TYPE(query.scalar_type() == rows.scalar_type(), "inner_products expects one dtype, got ",
                   query.scalar_type(), " and ", rows.scalar_type());
  const int64_t n_query = query.size(0), n_row = rows.size(0);
  const at::Tensor out = pooled({n_query, n_row}, query.scalar_type());
  at::parallel_for(0, tiles_of(n_row, kTile), 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * kTile, size = std::min(kTile, n_row - begin);
      multiply(out.narrow(1, begin, size), query, rows.narrow(0, begin, size).t());
    }
  });
  return out;
}

// Scores of queries and tiles of rows; those of a tile lie together, so that kept ones take whole
// pages.
class Scorer {
 public:
  Scorer(const at::Tensor& query, const at::Tensor& rows, at::ScalarType dtype, int64_t height)
      : query_(in(query, dtype)), rows_(rows), dtype_(dtype), height_(height) {}

  int64_t n_tile() const { return tiles_of(rows_.size(0), height_); }
  int64_t n_query() const { return query_.size(0); }
  int64_t width() const { return query_.size(1); }
  int64_t size(int64_t tile) const { return std::min(height_, rows_.size(0) - tile * height_); }
  const at::Tensor& query() const { return query_; }
  at::Tensor rows(int64_t tile) const {
    return in(rows_.narrow(0, tile * height_, size(tile)), dtype_);
  }

  // Of all tiles, (n_tile, Q, height), or none.
  at::Tensor room(bool keep) const {
    return pooled({keep ? n_tile() : 0, n_query(), height_}, dtype_);
  }

  // (Q, T) of a tile, in its place if all are kept, to be computed if not.
  at::Tensor place(const at::Tensor& kept, int64_t tile) const {
    const int64_t n = size(tile);
    if (kept.size(0) == 0) return pooled({n_query(), n}, dtype_);
    return kept[tile].view(-1).narrow(0, 0, n_query() * n).view({n_query(), n});
  }

  static at::Tensor in(const at::Tensor& x, at::ScalarType dtype) {
    const at::Tensor dense = x.contiguous();
    if (dtype == at::kFloat) return dense;
    const at::Tensor out = pooled(dense.sizes(), dtype);
    to_bfloat16(floats(dense), dense.numel(), halves(out));
    return out;
  }

 private:
  at::Tensor query_, rows_;
  at::ScalarType dtype_;
  int64_t height_;
};

template <typename Scalar>
void log_sums(const Softmax& softmax, const std::vector<int64_t>& left_out, const at::Tensor& scores,
              int64_t begin, float* own, Partial* part) {
  const int64_t n = scores.size(1);
  for (int64_t q = 0; q < scores.size(0); ++q) {
    Scalar* row = static_cast<Scalar*>(scores.data_ptr()) + q * n;
    put_in_columns(left_out, begin, begin + n, lowest<Scalar>(), row);
    part[q] = log_sum(softmax, q, begin, begin + n, row, own);
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> softmax_scores(
    const at::Tensor& query, const at::Tensor& rows, const Mask& excluded,
    const at::Tensor& label_row, const at::Tensor& label_column, double margin, double temperature,
    at::ScalarType dtype, bool keep, int64_t tile_rows) {
  check_floats("softmax_scores", query, rows, dtype);
  const int64_t height = height_of("softmax_scores", tile_rows);
  const int64_t n_query = query.size(0), n_row = rows.size(0), n_tile = tiles_of(n_row, height);
  const Labels labels("softmax_scores", label_row, label_column, n_query, n_row);
  const Softmax softmax{labels, static_cast<float>(margin), static_cast<float>(1.0 / temperature)};
  const std::vector<int64_t> left_out = excluded_columns("softmax_scores", excluded, n_row);
  const Scorer scorer(query, rows, dtype, height);
  const at::Tensor kept = scorer.room(keep);
  at::Tensor total = at::empty({n_query}, at::kFloat);
  at::Tensor own = at::empty({label_row.numel()}, at::kFloat);
  std::vector<Partial> part(n_tile * n_query);
  at::parallel_for(0, n_tile, 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const at::Tensor scores = scorer.place(kept, tile);
      multiply(scores, scorer.query(), scorer.rows(tile).t());
      const auto run = dtype == at::kFloat ? &log_sums<float> : &log_sums<uint16_t>;
      run(softmax, left_out, scores, tile * height, floats(own), part.data() + tile * n_query);
    }
  });
  for (int64_t q = 0; q < n_query; ++q) {
    floats(total)[q] = joined(part.data() + q, n_tile, n_query);
  }
  return {kept, total, own};
}

template <typename Scalar>
void gradients(const Softmax& softmax, const Slope& slope, const std::vector<int64_t>& left_out,
               const at::Tensor& scores, int64_t begin) {
  const int64_t n = scores.size(1);
  for (int64_t q = 0; q < scores.size(0); ++q) {
    Scalar* row = static_cast<Scalar*>(scores.data_ptr()) + q * n;
    gradient(softmax, slope, q, begin, begin + n, row, row);
    put_in_columns(left_out, begin, begin + n, Scalar(0), row);
  }
}

// sum = a b, or sum += a b, of floats; by way of a product in bfloat16 if that is what a and b are.
void add_product(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, bool add) {
  if (a.scalar_type() == at::kFloat) return multiply(sum, a, b, add);
  const at::Tensor product = pooled({a.size(0), b.size(1)}, at::kBFloat16);
  multiply(product, a, b);
  accumulate(floats(sum), halves(product), sum.numel(), add);
}

void check_gradients(const at::Tensor& kept, const at::Tensor& query, const at::Tensor& rows,
                     at::ScalarType dtype, int64_t height,
                     const at::Tensor& grad_query, const at::Tensor& grad_rows) {
  TORCH_CHECK_VALUE(
      kept.dim() == 3 && kept.scalar_type() == dtype && kept.is_contiguous() &&
          (kept.size(0) == 0 || (kept.size(0) == tiles_of(rows.size(0), height) &&
                                 kept.size(1) == query.size(0) && kept.size(2) == height)),
      "softmax_gradients expects the scores that softmax_scores gave, got ", kept.sizes());
  for (const auto& pair : {std::make_pair(grad_query, query), std::make_pair(grad_rows, rows)}) {
    TORCH_CHECK_VALUE(pair.first.sizes() == pair.second.sizes() && pair.first.is_contiguous() &&
                          pair.first.scalar_type() == at::kFloat,
                      "softmax_gradients expects gradients in float32, contiguous, of sizes ",
                      pair.second.sizes(), ", got ", pair.first.scalar_type(), " ",
                      pair.first.sizes());
  }
}

void softmax_gradients(const at::Tensor& kept, const at::Tensor& query, const at::Tensor& rows,
                       const Mask& excluded, const at::Tensor& label_row,
                       const at::Tensor& label_column, const at::Tensor& log_total,
                       const at::Tensor& weight, const at::Tensor& of_label, double margin,
                       double temperature, at::ScalarType dtype, const at::Tensor& grad_query,
                       const at::Tensor& grad_rows, bool add, int64_t tile_rows) {
  check_floats("softmax_gradients", query, rows, dtype);
  const int64_t height = height_of("softmax_gradients", tile_rows);
  check_gradients(kept, query, rows, dtype, height, grad_query, grad_rows);
  const int64_t n_query = query.size(0), n_row = rows.size(0), n_tile = tiles_of(n_row, height);
  const Labels labels("softmax_gradients", label_row, label_column, n_query, n_row);
  const Softmax softmax{labels, static_cast<float>(margin), static_cast<float>(1.0 / temperature)};
  const SlopeTensors given("softmax_gradients", log_total, weight, of_label, n_query,
                           label_row.numel());
  const std::vector<int64_t> left_out = excluded_columns("softmax_gradients", excluded, n_row);
  const Scorer scorer(query, rows, dtype, height);
  const int64_t n_part = std::min(kParts, n_tile);
  const at::Tensor parts = pooled({n_part, n_query, scorer.width()}, at::kFloat);
  at::parallel_for(0, n_part, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = n_tile * i / n_part, end = n_tile * (i + 1) / n_part;
      for (int64_t tile = begin; tile < end; ++tile) {
        const at::Tensor scores = scorer.place(kept, tile), of_tile = scorer.rows(tile);
        if (kept.size(0) == 0) multiply(scores, scorer.query(), of_tile.t());
        const auto run = dtype == at::kFloat ? &gradients<float> : &gradients<uint16_t>;
        run(softmax, given.slope(), left_out, scores, tile * height);
        add_product(grad_rows.narrow(0, tile * height, scorer.size(tile)), scores.t(),
                    scorer.query(), add);
        add_product(parts[i], scores, of_tile, tile > begin);
      }
    }
  });
  for (int64_t i = 0; i < n_part; ++i) {
    accumulate(floats(grad_query), floats(parts[i]), grad_query.numel(), i > 0);
  }
  if (n_part == 0) grad_query.zero_();
}

at::Tensor buffer(at::IntArrayRef sizes, at::ScalarType dtype) { return pooled(sizes, dtype); }

}  // namespace
}  // namespace besskge

TORCH_LIBRARY_IMPL(besskge, CPU, m) {
  m.impl("inner_products", &besskge::inner_products);
  m.impl("softmax_scores", &besskge::softmax_scores);
  m.impl("softmax_gradients", &besskge::softmax_gradients);
}

TORCH_LIBRARY_IMPL(besskge, CompositeExplicitAutograd, m) { m.impl("buffer", &besskge::buffer); }
