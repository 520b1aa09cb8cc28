// The random numbers of besskge_core/philox.py: Philox4x64-10 (Salmon et al., SC 2011), counted as
// NumPy does it.
#pragma once

#include <cstdint>

namespace besskge {

constexpr int64_t kPhiloxBlock = 4;  // numbers of a counter step

struct PhiloxRow {
  uint64_t seed, purpose, epoch, step;
};

inline uint64_t high_product(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}

// Numbers 4 * block to 4 * block + 3 of the row.
inline void philox_block(const PhiloxRow& row, int64_t block, uint64_t out[kPhiloxBlock]) {
  constexpr uint64_t kMultiplier0 = 0xD2E7470EE14C6C93u, kMultiplier1 = 0xCA5A826395121157u;
  constexpr uint64_t kWeyl0 = 0x9E3779B97F4A7C15u, kWeyl1 = 0xBB67AE8584CAA73Bu;
  // NumPy counts on before it draws.
  uint64_t c0 = static_cast<uint64_t>(block) + 1, c1 = row.step, c2 = row.epoch, c3 = 0;
  uint64_t key0 = row.seed, key1 = row.purpose;
  for (int round = 0; round < 10; ++round) {
    const unsigned __int128 product0 = static_cast<unsigned __int128>(kMultiplier0) * c0;
    const unsigned __int128 product1 = static_cast<unsigned __int128>(kMultiplier1) * c2;
    c0 = static_cast<uint64_t>(product1 >> 64) ^ c1 ^ key0;
    c2 = static_cast<uint64_t>(product0 >> 64) ^ c3 ^ key1;
    c1 = static_cast<uint64_t>(product1);
    c3 = static_cast<uint64_t>(product0);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

}  // namespace besskge
