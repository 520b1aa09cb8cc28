// Candidates of each query that take no part: columns of query q are start[q] to start[q + 1].
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace besskge {

// Of a tile of candidates, of which `first` is the number of the one in column 0. Holds on to the
// tensors.
struct Filter {
  // Refuses what is none, of n_query queries.
  Filter(const at::Tensor& filter_start, const at::Tensor& filter_column, int64_t n_query,
         int64_t first, const char* op)
      : starts(filter_start.contiguous()), columns(filter_column.contiguous()), first(first) {
    TORCH_CHECK_VALUE(starts.dim() == 1 && columns.dim() == 1 && starts.size(0) == n_query + 1, op,
                      " expects filter_start (Q + 1) with Q=", n_query,
                      " and filter_column (K), got ", starts.sizes(), " and ", columns.sizes());
    for (const at::Tensor& x : {starts, columns}) {
      TORCH_CHECK_TYPE(x.scalar_type() == at::kLong, op, " expects a filter in int64, got ",
                       x.scalar_type());
    }
    start = starts.data_ptr<int64_t>();
    column = columns.data_ptr<int64_t>();
    bool rises = start[0] == 0 && start[n_query] == columns.numel();
    for (int64_t q = 0; q < n_query; ++q) rises = rises && start[q] <= start[q + 1];
    TORCH_CHECK_VALUE(rises, op, " expects filter_start to rise from 0 to ", columns.numel());
  }

  // Calls `visit` with each filtered column of a query that is among the n of the tile.
  template <class Visit>
  void each(int64_t query, int64_t n, const Visit& visit) const {
    for (int64_t i = start[query]; i < start[query + 1]; ++i) {
      const int64_t place = column[i] - first;
      if (place >= 0 && place < n) visit(place);
    }
  }

  at::Tensor starts, columns;
  int64_t first;
  const int64_t *start, *column;
};

}  // namespace besskge
