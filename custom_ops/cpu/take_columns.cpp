// The columns of triples at given places, each column contiguous.
//
// One thread: batches are made beside the step, which has use for the others.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cstdint>
#include <vector>

#include "inputs.h"

namespace {

constexpr int64_t kAhead = 16;  // triples asked for before they are needed

at::Tensor take_columns(const at::Tensor& triples, const at::Tensor& places) {
  TORCH_CHECK_VALUE(triples.dim() == 2 && triples.size(1) == 3,
                    "take_columns expects triples (T, 3), got ", triples.sizes());
  TORCH_CHECK_TYPE(triples.scalar_type() == at::kInt && places.scalar_type() == at::kLong,
                   "take_columns expects int32 triples and int64 places, got ",
                   triples.scalar_type(), " and ", places.scalar_type());
  const at::Tensor rows = triples.contiguous(), at = places.contiguous();
  const int64_t n = at.numel(), n_triple = rows.size(0);
  const int64_t* place = at.data_ptr<int64_t>();
  const int32_t* from = rows.data_ptr<int32_t>();
  const besskge::Range range = besskge::range_of(place, n);
  TORCH_CHECK_INDEX(range.within(n_triple), "take_columns: place ", range.outside(),
                    " is out of range for ", n_triple, " triples");
  std::vector<int64_t> sizes{3};
  sizes.insert(sizes.end(), places.sizes().begin(), places.sizes().end());
  const at::Tensor out = at::empty(sizes, rows.options());
  int32_t* to = out.data_ptr<int32_t>();
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(from + 3 * place[i + kAhead]);
    const int32_t* triple = from + 3 * place[i];
    to[i] = triple[0];
    to[n + i] = triple[1];
    to[2 * n + i] = triple[2];
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("take_columns", &take_columns); }
