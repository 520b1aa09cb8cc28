// Rows of a table: the look-up and the sum into rows, each the gradient of the other, and the plan
// that they share with the update.
//
// A plan is how popops lays a table out over tiles. Every operation on a table must use the plan that
// laid it out, or popops copies the table into another layout and back, each time. Plans are equal
// where the table's shape and type, the number of look-ups and the share of memory are.
//
// Axes: E rows of the table, K rows looked up, D width of a row.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/Tensor.hpp>
#include <popops/DynamicSlice.hpp>

#include <popart/op.hpp>
#include <popart/opserialiser.hpp>

#include "checks.h"

namespace besskge_core {

extern const popart::OperatorIdentifier kGather, kScatterAdd;

// Share of a tile's memory that may be used on the way, of popops.
constexpr const char* kMemoryAttribute = "available_memory_proportion";
constexpr float kMemory = 0.6f;

// Both have the inputs 0 rows, 1 index, and one output.
class RowsOp : public popart::Op {
 public:
  RowsOp(const popart::OperatorIdentifier& id, float memory, const popart::Op::Settings& settings)
      : Op(id, settings), memory_(memory) {}

  // Of either as the gradient of the other: what came for its output, and the same index.
  const std::vector<popart::GradInOutMapper>& gradInputInfo() const override;
  const std::map<int, int>& gradOutToNonGradIn() const override;

  float getSubgraphValue() const override { return getLowSubgraphValue(); }
  void appendOutlineAttributes(popart::OpSerialiserBase& os) const override {
    Op::appendOutlineAttributes(os);
    os.appendAttribute(kMemoryAttribute, memory_);
  }
  float memory() const { return memory_; }

 private:
  float memory_;
};

// table (E, D), index (K) -> (K, D)
class GatherOp : public RowsOp {
 public:
  using RowsOp::RowsOp;
  std::unique_ptr<popart::Op> clone() const override { return std::make_unique<GatherOp>(*this); }
  void setup() override;
  std::vector<std::unique_ptr<popart::Op>> getGradOps() override;
};

// values (K, D), index (K) -> (n_row, D), sums
class ScatterAddOp : public RowsOp {
 public:
  ScatterAddOp(const popart::OperatorIdentifier& id, int64_t n_row, float memory,
               const popart::Op::Settings& settings)
      : RowsOp(id, memory, settings), n_row_(n_row) {}
  std::unique_ptr<popart::Op> clone() const override {
    return std::make_unique<ScatterAddOp>(*this);
  }
  void setup() override;
  std::vector<std::unique_ptr<popart::Op>> getGradOps() override;
  void appendOutlineAttributes(popart::OpSerialiserBase& os) const override {
    RowsOp::appendOutlineAttributes(os);
    os.appendAttribute("n_row", n_row_);
  }

 private:
  int64_t n_row_;
};

// Serves look-ups and sums of n_lookup rows alike.
popops::SlicePlan plan_of_rows(const poplar::Graph& graph, const poplar::Type& type,
                               std::size_t n_row, std::size_t width, std::size_t n_lookup,
                               float memory);

// index (K) -> (K, 1), unsigned: as popops wants it. An index below 0 is one far beyond the table.
poplar::Tensor offsets_of(const poplar::Tensor& index);

}  // namespace besskge_core
