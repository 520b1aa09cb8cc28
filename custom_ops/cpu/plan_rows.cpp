// Look-ups grouped by row: a stable radix sort of (row, look-up), then the runs of equal rows.
//
// One thread: plans are made beside the step, which has use for the others.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "buffers.h"
#include "inputs.h"
#include "radix.h"

namespace {

int bits_of(uint64_t highest) {
  int bits = 1;
  while (bits < 64 && (highest >> bits) != 0) ++bits;
  return bits;
}

using besskge::Entry;

template <typename Key, typename Index>
void read_entries(const Index* rows, int64_t n_host, int64_t n_lookup, int64_t n_row,
                  Entry<Key>* to) {
  const besskge::Range range = besskge::range_of(rows, n_host * n_lookup);
  TORCH_CHECK_INDEX(range.within(n_row), "plan_rows: row ", range.outside(),
                    " is out of range for a table of ", n_row, " rows");
  for (int64_t shard = 0, i = 0; shard < n_host; ++shard) {
    for (int64_t last = i + n_lookup; i < last; ++i) {
      to[i] = {static_cast<Key>(shard * n_row + rows[i]), static_cast<Key>(i)};
    }
  }
}

using Plan = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <typename Key>
Plan plan_of(const Entry<Key>* sorted, int64_t n) {
  int64_t n_unique = n > 0;
  for (int64_t i = 1; i < n; ++i) n_unique += sorted[i].key != sorted[i - 1].key;
  const at::Tensor unique = besskge::pooled({n_unique}, at::kLong);
  const at::Tensor starts = besskge::pooled({n_unique}, at::kLong);
  const at::Tensor order = besskge::pooled({n}, at::kLong);
  int64_t* row_out = unique.data_ptr<int64_t>();
  int64_t* start_out = starts.data_ptr<int64_t>();
  int64_t* place_out = order.data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    place_out[i] = static_cast<int64_t>(sorted[i].place);
    if (i == 0 || sorted[i].key != sorted[i - 1].key) {
      *row_out++ = static_cast<int64_t>(sorted[i].key);
      *start_out++ = i;
    }
  }
  return {unique, starts, order};
}

template <typename Key>
Plan plan_with(const at::Tensor& rows, int64_t n_row) {
  const int64_t n = rows.numel(), n_host = rows.dim() == 2 ? rows.size(0) : 1;
  const int64_t n_byte = n * static_cast<int64_t>(sizeof(Entry<Key>));
  const at::Tensor near = besskge::pooled({n_byte}, at::kByte);
  const at::Tensor far = besskge::pooled({n_byte}, at::kByte);
  Entry<Key>* entries = static_cast<Entry<Key>*>(near.data_ptr());
  Entry<Key>* spare = static_cast<Entry<Key>*>(far.data_ptr());
  AT_DISPATCH_INDEX_TYPES(rows.scalar_type(), "plan_rows", [&] {
    read_entries(rows.data_ptr<index_t>(), n_host, n / std::max<int64_t>(n_host, 1), n_row,
                 entries);
  });
  const uint64_t highest = static_cast<uint64_t>(std::max<int64_t>(n_host * n_row, 1) - 1);
  return plan_of(besskge::radix_sort(entries, spare, n, 0, bits_of(highest)), n);
}

Plan plan_rows(const at::Tensor& rows, int64_t n_row) {
  TORCH_CHECK_VALUE(rows.dim() == 1 || rows.dim() == 2,
                    "plan_rows expects rows (K) or (L, K), got ", rows.sizes());
  TORCH_CHECK_TYPE(rows.scalar_type() == at::kInt || rows.scalar_type() == at::kLong,
                   "plan_rows expects rows of int32 or int64, got ", rows.scalar_type());
  constexpr int64_t kNarrow = int64_t{1} << 32;
  const int64_t n_host = rows.dim() == 2 ? rows.size(0) : 1;
  const bool narrow = rows.numel() <= kNarrow && n_row <= kNarrow / std::max<int64_t>(n_host, 1);
  const at::Tensor read = rows.contiguous();
  return narrow ? plan_with<uint32_t>(read, n_row) : plan_with<uint64_t>(read, n_row);
}

}  // namespace

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("plan_rows", &plan_rows); }
