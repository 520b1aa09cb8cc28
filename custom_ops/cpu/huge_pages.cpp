// Tables on huge pages: rows read at random miss the translation cache less.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, of Linux 6.1; headers may be older

// Asks for huge pages where the memory of a tensor covers them; a wish, refused without a word.
void prefer_huge_pages(const at::Tensor& x) {
#if defined(__linux__)
  if (!x.is_non_overlapping_and_dense()) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(x.data_ptr());
  const uintptr_t first = (start + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t last = (start + x.nbytes()) & ~(kHugePage - 1);
  if (last <= first) return;
  void* inner = reinterpret_cast<void*>(first);
  if (madvise(inner, last - first, MADV_HUGEPAGE) == 0) {
    madvise(inner, last - first, kCollapse);  // what is there already; later pages come huge
  }
#endif
}

}  // namespace

TORCH_LIBRARY_IMPL(besskge, CPU, m) { m.impl("prefer_huge_pages", &prefer_huge_pages); }
