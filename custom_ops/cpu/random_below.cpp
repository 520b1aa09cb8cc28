// Random integers below bounds, those of besskge_core/philox.py, drawn and reduced in one pass.
//
// One thread: batches are made beside the step, which has use for the others.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

#include "buffers.h"
#include "philox.h"

namespace {

using besskge::kPhiloxBlock;

// x % bound by two multiplications; a bound of 0 counts as 1.
class Remainder {
 public:
  explicit Remainder(int64_t bound)
      : bound_(static_cast<uint64_t>(std::max<int64_t>(bound, 1))),
        inverse_(~uint64_t{0} / bound_) {}

  uint64_t operator()(uint64_t x) const {
    // The quotient is right or one too small; bounds are below 2^63, so that nothing overflows.
    const uint64_t rest = x - besskge::high_product(x, inverse_) * bound_;
    return rest >= bound_ ? rest - bound_ : rest;
  }

 private:
  uint64_t bound_, inverse_;
};

template <typename Out>
void draw(const besskge::PhiloxRow& row, int64_t block, const Remainder& remainder, Out* out,
          int64_t n) {
  // Two blocks at a time: a round of one waits for the round before.
  uint64_t bits[2 * kPhiloxBlock];
  for (int64_t i = 0; i < n; i += 2 * kPhiloxBlock, block += 2) {
    besskge::philox_block(row, block, bits);
    besskge::philox_block(row, block + 1, bits + kPhiloxBlock);
    const int64_t n_here = std::min<int64_t>(n - i, 2 * kPhiloxBlock);
    for (int64_t j = 0; j < n_here; ++j) out[i + j] = static_cast<Out>(remainder(bits[j]));
  }
}

at::Tensor random_below(int64_t seed, int64_t purpose, int64_t epoch, int64_t step,
                        const at::Tensor& bounds, int64_t width, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(bounds.dim() == 1 && width >= 0,
                    "random_below expects bounds (G) and a width of at least 0, got ",
                    bounds.sizes(), " and ", width);
  TORCH_CHECK_VALUE(epoch >= 0 && step >= 0,
                    "random_below expects an epoch and a step of at least 0, got ", epoch, " and ",
                    step);
  TORCH_CHECK_TYPE(dtype == at::kInt || dtype == at::kLong,
                   "random_below draws int32 or int64, got ", dtype);
  const besskge::PhiloxRow row{static_cast<uint64_t>(seed), static_cast<uint64_t>(purpose),
                               static_cast<uint64_t>(epoch), static_cast<uint64_t>(step)};
  const at::Tensor below = bounds.to(at::kLong).contiguous();
  const at::Tensor out = besskge::pooled({bounds.size(0), width}, dtype);
  const int64_t n_block = (width + kPhiloxBlock - 1) / kPhiloxBlock;
  AT_DISPATCH_INDEX_TYPES(dtype, "random_below", [&] {
    index_t* to = out.data_ptr<index_t>();
    for (int64_t group = 0; group < bounds.size(0); ++group, to += width) {
      const Remainder remainder(below.data_ptr<int64_t>()[group]);
      draw(row, group * n_block, remainder, to, width);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("random_below", &random_below); }
