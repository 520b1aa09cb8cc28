// Host stand-in for the SDK's header of this name: fields of a vertex, over memory that a test gives
// by bind(), so that compute() can be called.
//
// It stops at an index out of range, at a field never bound and at one bound to memory less aligned
// than its type says. What walks on from &field[0] is past it: AddressSanitizer sees that, if each
// field lies on the heap by itself.
#pragma once
#include <cstddef>

#include <poplar/HalfFloat.hpp>

namespace poplar {

// How the SDK stores a vector: ONE_PTR is the start alone, so there is no size() to ask for.
enum class VectorLayout { ONE_PTR };

template <class T, VectorLayout layout, unsigned alignment>
struct Vector;

template <class T, unsigned alignment>
class Field {
 public:
  void bind(T* start, std::size_t size) {
    must_be_aligned(start, alignment);
    start_ = start;
    size_ = size;
    bound_ = true;
  }
  T& operator[](std::size_t i) const {
    if (!bound_) stop("a field was never bound");
    if (i >= size_ && i) stop("an index is out of range");  // &field[0] of an empty one is fine
    return start_[i];
  }

 private:
  T* start_ = nullptr;
  std::size_t size_ = 0;
  bool bound_ = false;
};

template <class V>
class Input;
template <class T, VectorLayout layout, unsigned alignment>
class Input<Vector<T, layout, alignment>> : public Field<const T, alignment> {};

template <class V>
class Output;
template <class T, VectorLayout layout, unsigned alignment>
class Output<Vector<T, layout, alignment>> : public Field<T, alignment> {};

template <class V>
class InOut;
template <class T, VectorLayout layout, unsigned alignment>
class InOut<Vector<T, layout, alignment>> : public Field<T, alignment> {};

// A vertex that all workers of a tile run.
class MultiVertex {
 public:
  static constexpr unsigned numWorkers() { return 6; }
};

}  // namespace poplar
