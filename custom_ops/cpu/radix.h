// A stable radix sort, for one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace besskge {

// Counters of a digit of 11 bits stay in the first-level cache, with the ends of their runs.
constexpr int kMostDigitBits = 11;

// What is sorted by, and where it stood.
template <typename Key>
struct Entry {
  Key key, place;
};

// Sorts by bits `low` to `low + n_bit` of the key, digit after digit from the lowest; says in which
// of the two buffers the result is.
template <typename Key>
Entry<Key>* radix_sort(Entry<Key>* from, Entry<Key>* to, int64_t n, int low, int n_bit) {
  const int n_pass = (n_bit + kMostDigitBits - 1) / kMostDigitBits;
  const int digit_bits = (n_bit + n_pass - 1) / n_pass;
  const size_t n_digit = size_t{1} << digit_bits;
  const Key mask = static_cast<Key>(n_digit - 1);
  std::vector<int64_t> counts(n_digit * static_cast<size_t>(n_pass));
  for (int64_t i = 0; i < n; ++i) {
    Key rest = static_cast<Key>(from[i].key >> low);
    for (int64_t* count = counts.data(); count != counts.data() + counts.size(); count += n_digit) {
      ++count[rest & mask];
      rest = static_cast<Key>(rest >> digit_bits);
    }
  }
  for (int pass = 0; pass < n_pass; ++pass) {
    int64_t* next = counts.data() + n_digit * static_cast<size_t>(pass);
    int64_t first = 0;
    for (size_t digit = 0; digit < n_digit; ++digit) first += std::exchange(next[digit], first);
    const int shift = low + pass * digit_bits;
    for (int64_t i = 0; i < n; ++i) to[next[(from[i].key >> shift) & mask]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

}  // namespace besskge
