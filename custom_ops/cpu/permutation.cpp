// The permutation of besskge_core/philox.py: the stable order of n random numbers.
//
// One thread: an epoch is shuffled beside the step, which has use for the others.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

#include "buffers.h"
#include "philox.h"
#include "radix.h"

namespace {

using besskge::Entry;
using besskge::kPhiloxBlock;

void draw(const besskge::PhiloxRow& row, Entry<uint64_t>* to, int64_t n) {
  uint64_t bits[kPhiloxBlock];
  for (int64_t i = 0; i < n; i += kPhiloxBlock) {
    besskge::philox_block(row, i / kPhiloxBlock, bits);
    for (int64_t j = 0; j < std::min(n - i, kPhiloxBlock); ++j) {
      to[i + j] = {bits[j], static_cast<uint64_t>(i + j)};
    }
  }
}

// Puts right what is out of order, which is next to its place.
void insertion_sort(Entry<uint64_t>* entries, int64_t n) {
  for (int64_t i = 1; i < n; ++i) {
    const Entry<uint64_t> entry = entries[i];
    int64_t j = i;
    for (; j > 0 && entries[j - 1].key > entry.key; --j) entries[j] = entries[j - 1];
    entries[j] = entry;
  }
}

at::Tensor permutation(int64_t seed, int64_t purpose, int64_t epoch, int64_t step, int64_t n) {
  TORCH_CHECK_VALUE(n >= 0 && epoch >= 0 && step >= 0,
                    "permutation expects a size, an epoch and a step of at least 0, got ", n, ", ",
                    epoch, " and ", step);
  const int64_t n_byte = n * static_cast<int64_t>(sizeof(Entry<uint64_t>));
  const at::Tensor near = besskge::pooled({n_byte}, at::kByte);
  const at::Tensor far = besskge::pooled({n_byte}, at::kByte);
  Entry<uint64_t>* entries = static_cast<Entry<uint64_t>*>(near.data_ptr());
  const besskge::PhiloxRow row{static_cast<uint64_t>(seed), static_cast<uint64_t>(purpose),
                               static_cast<uint64_t>(epoch), static_cast<uint64_t>(step)};
  draw(row, entries, n);
  // Numbers of which the upper bits are equal are rare, if these bits are many for their number.
  const int n_bit = n < (int64_t{1} << 26) ? 33 : 44;
  entries = besskge::radix_sort(entries, static_cast<Entry<uint64_t>*>(far.data_ptr()), n,
                                64 - n_bit, n_bit);
  insertion_sort(entries, n);
  const at::Tensor order = besskge::pooled({n}, at::kLong);
  int64_t* out = order.data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int64_t>(entries[i].place);
  return order;
}

}  // namespace

TORCH_LIBRARY_IMPL(besskge, CompositeExplicitAutograd, m) { m.impl("permutation", &permutation); }
