// What every operation here has in common: its domain, and errors that say what came.
#pragma once

#include <algorithm>
#include <sstream>
#include <string>

#include <popart/datatype.hpp>
#include <popart/error.hpp>
#include <popart/opmanager.hpp>
#include <popart/tensorinfo.hpp>

namespace besskge_core {

// By which poptorch.custom_op finds an operation, beside its name. PopTorch asks for version 1.
constexpr const char* kDomain = "besskge_core";
constexpr int kVersion = 1;

inline const popart::OpDefinition::DataTypes& floats() {
  static const popart::OpDefinition::DataTypes types = {popart::DataType::FLOAT16,
                                                        popart::DataType::FLOAT};
  return types;
}
inline const popart::OpDefinition::DataTypes& integers() {
  static const popart::OpDefinition::DataTypes types = {popart::DataType::INT32,
                                                        popart::DataType::UINT32};
  return types;
}

// Such as "FLOAT [3, 5]".
inline std::string described(const popart::TensorInfo& x) {
  std::ostringstream out;
  out << x.data_type() << " [";
  for (int axis = 0; axis < x.rank(); ++axis) out << (axis ? ", " : "") << x.dim(axis);
  out << "]";
  return out.str();
}

// Throws unless `good`; PopART itself never compares inputs with the types that an operation names.
inline void expect(bool good, const std::string& message) {
  if (!good) throw popart::error("{}", "besskge_core: " + message);
}

inline bool is_one_of(const popart::TensorInfo& x, const popart::OpDefinition::DataTypes& types) {
  return std::find(types.begin(), types.end(), x.dataType()) != types.end();
}

}  // namespace besskge_core
