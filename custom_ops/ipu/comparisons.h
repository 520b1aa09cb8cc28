// How a pair of rows is compared: shared by the operation, which names a codelet by it, and the
// codelets. The names are those of besskge_core/ops/pairwise.py, where it has them.
#pragma once

namespace besskge_core {

constexpr unsigned kL1 = 0;         // -sum |q - e|
constexpr unsigned kL2 = 1;         // -sqrt(sum (q - e)^2)
constexpr unsigned kSquaredL2 = 2;  // -sum (q - e)^2
constexpr unsigned kModulus = 3;    // -sum |q - e| of complex entries: real parts, then imaginary
constexpr unsigned kComparisons = 4;

constexpr const char* kComparisonNames[kComparisons] = {"l1", "l2", "l2_squared", "modulus"};

}  // namespace besskge_core
