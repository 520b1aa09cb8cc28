// Rows of the hosted tables, copied in one pass into a buffer that is kept; the gradient names the
// rows touched and never has the size of a table.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "buffers.h"
#include "inputs.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kLine = 64;
// How far the rows asked for run ahead of the one that is copied: enough to hide the memory's
// latency, few enough to be in the cache still when their turn comes.
constexpr int64_t kAheadBytes = 8192;
// What a thread copies at least.
constexpr int64_t kGrainBytes = int64_t{1} << 18;

struct Table {
  const char* data;
  int64_t shard_stride, row_stride, row_bytes;  // in bytes
};

// Into the second-level cache: the first has too few places for lines under way.
inline void prefetch_row(const char* row, int64_t n_bytes) {
  for (int64_t byte = 0; byte < n_bytes; byte += kLine) __builtin_prefetch(row + byte, 0, 2);
}

template <typename Index>
void copy_rows(char* out, const char* table, int64_t row_stride, int64_t row_bytes,
               const Index* index, int64_t n) {
  const int64_t ahead = std::max<int64_t>(1, kAheadBytes / std::max(row_bytes, kLine));
  for (int64_t i = 0; i < std::min(ahead, n); ++i) {
    prefetch_row(table + int64_t{index[i]} * row_stride, row_bytes);
  }
  for (int64_t i = 0; i < n; ++i, out += row_bytes) {
    if (i + ahead < n) prefetch_row(table + int64_t{index[i + ahead]} * row_stride, row_bytes);
    const char* row = table + int64_t{index[i]} * row_stride;
    std::memcpy(out, row, static_cast<size_t>(row_bytes));
  }
}

template <typename Index>
void gather_rows(const at::Tensor& out, const Table& table, const Index* index, int64_t n_row) {
  const int64_t n_lookup = out.size(1), n = out.size(0) * n_lookup;
  const besskge::Range range = besskge::range_of(index, n);
  TORCH_CHECK_INDEX(range.within(n_row), "gather: index ", range.outside(),
                    " is out of range for a table of ", n_row, " rows");
  if (out.numel() == 0) return;
  char* const to = static_cast<char*>(out.data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / table.row_bytes);
  at::parallel_for(0, n, grain, [&](int64_t first, int64_t last) {
    while (first < last) {
      const int64_t shard = first / n_lookup;
      const int64_t end = std::min(last, (shard + 1) * n_lookup);
      copy_rows(to + first * table.row_bytes, table.data + shard * table.shard_stride,
                table.row_stride, table.row_bytes, index + first, end - first);
      first = end;
    }
  });
}

at::Tensor gather(const at::Tensor& table, const at::Tensor& index) {
  TORCH_CHECK_VALUE(table.dim() == 3 && index.dim() == 2 && table.size(0) == index.size(0),
                    "gather expects table (L, E, D) and index (L, K), got ", table.sizes(), " and ",
                    index.sizes());
  TORCH_CHECK_TYPE(index.scalar_type() == at::kInt || index.scalar_type() == at::kLong,
                   "gather expects an index of int32 or int64, got ", index.scalar_type());
  // Tables and rows may lie apart, the numbers of a row may not.
  const at::Tensor rows = table.stride(2) == 1 ? table : table.contiguous();
  const at::Tensor taken = index.contiguous();
  const at::Tensor out =
      besskge::pooled({table.size(0), index.size(1), table.size(2)}, table.scalar_type());
  const int64_t size = static_cast<int64_t>(table.element_size());
  const Table from{static_cast<const char*>(rows.data_ptr()), rows.stride(0) * size,
                   rows.stride(1) * size, rows.size(2) * size};
  if (taken.scalar_type() == at::kInt) {
    gather_rows(out, from, taken.data_ptr<int32_t>(), table.size(1));
  } else {
    gather_rows(out, from, taken.data_ptr<int64_t>(), table.size(1));
  }
  return out;
}

// int64 (2, L * K): shard and row of each look-up.
at::Tensor lookup_entries(const at::Tensor& index) {
  TORCH_CHECK_VALUE(index.dim() == 2, "lookup_entries expects index (L, K), got ", index.sizes());
  const at::Tensor out = at::empty({2, index.numel()}, index.options().dtype(at::kLong));
  const at::Tensor taken = index.contiguous();
  int64_t* shard_out = out.data_ptr<int64_t>();
  int64_t* row_out = shard_out + index.numel();
  const int64_t n_lookup = index.size(1);
  for (int64_t shard = 0; shard < index.size(0); ++shard, shard_out += n_lookup) {
    std::fill(shard_out, shard_out + n_lookup, shard);
  }
  AT_DISPATCH_INDEX_TYPES(taken.scalar_type(), "lookup_entries", [&] {
    const index_t* row = taken.data_ptr<index_t>();
    std::copy(row, row + index.numel(), row_out);
  });
  return out;
}

template <typename Schema>
c10::TypedOperatorHandle<Schema> operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Schema>();
}

class Gather : public torch::autograd::Function<Gather> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& table,
                            const at::Tensor& index) {
    static const auto op =
        operation<at::Tensor(const at::Tensor&, const at::Tensor&)>("besskge::gather");
    ctx->save_for_backward({index});
    ctx->saved_data["shape"] = table.sizes();
    const at::AutoDispatchBelowADInplaceOrView below;
    return op.call(table, index);
  }

  // A sparse (L, E, D), sparse in L and E, with one entry for each look-up.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = operation<at::Tensor(const at::Tensor&)>("besskge::lookup_entries");
    const at::Tensor index = ctx->get_saved_variables()[0], grad = grads[0];
    const std::vector<int64_t> shape = ctx->saved_data["shape"].toIntVector();
    const at::Tensor sparse = at::_sparse_coo_tensor_with_dims_and_tensors(
        2, 1, shape, op.call(index), grad.flatten(0, 1), grad.options().layout(at::kSparse));
    return {sparse, at::Tensor()};
  }
};

at::Tensor gather_with_gradient(const at::Tensor& table, const at::Tensor& index) {
  return Gather::apply(table, index);
}

}  // namespace

TORCH_LIBRARY_IMPL(besskge, CPU, m) {
  m.impl("gather", &gather);
  m.impl("lookup_entries", &lookup_entries);
}

TORCH_LIBRARY_IMPL(besskge, AutogradCPU, m) { m.impl("gather", &gather_with_gradient); }
