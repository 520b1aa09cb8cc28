// Buffers that are kept: the system clears the pages of a fresh one, which costs more than what is
// computed in it.
#pragma once

#include <ATen/ATen.h>

namespace besskge {

// A contiguous tensor whose memory goes back to the pool when the last reference is gone. Its
// contents are whatever was there; large ones are asked to lie on huge pages.
at::Tensor pooled(at::IntArrayRef sizes, at::ScalarType dtype);

inline float* floats(const at::Tensor& buffer) { return buffer.data_ptr<float>(); }

}  // namespace besskge
