#include "buffers.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace besskge {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kCacheLine = 64;
// What may lie idle; a step of the largest batches needs less.
constexpr size_t kMostIdle = size_t{1} << 31;

class Pool {
 public:
  void* take(size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto found = idle_.find(size);
      if (found != idle_.end() && !found->second.empty()) {
        void* block = found->second.back();
        found->second.pop_back();
        idle_bytes_ -= size;
        return block;
      }
    }
    void* block = nullptr;
    const size_t alignment = size >= kHugePage ? kHugePage : kCacheLine;
    if (posix_memalign(&block, alignment, size) != 0) {
      TORCH_CHECK(false, "not enough memory for a buffer of ", size, " bytes");
    }
#if defined(__linux__)
    if (size >= kHugePage) madvise(block, size, MADV_HUGEPAGE);  // a wish, no more
#endif
    return block;
  }

  void give_back(void* block, size_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (idle_bytes_ + size <= kMostIdle) {
        idle_[size].push_back(block);
        idle_bytes_ += size;
        return;
      }
    }
    std::free(block);
  }

 private:
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> idle_;
  size_t idle_bytes_ = 0;
};

Pool& pool() {
  static Pool* const the_pool = new Pool;  // lives on: tensors may outlast what is static
  return *the_pool;
}

// Sizes are rounded up to an eighth of a power of two, so that nearly equal ones share blocks.
size_t rounded(size_t bytes) {
  size_t step = kCacheLine;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step + (bytes == 0 ? kCacheLine : 0);
}

}  // namespace

at::Tensor pooled(at::IntArrayRef sizes, at::ScalarType dtype) {
  size_t bytes = c10::elementSize(dtype);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  const size_t size = rounded(bytes);
  void* block = pool().take(size);
  return at::from_blob(
      block, sizes, [size](void* data) { pool().give_back(data, size); },
      at::TensorOptions().dtype(dtype));
}

}  // namespace besskge
