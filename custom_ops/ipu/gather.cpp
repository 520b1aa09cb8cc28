// Gather: rows of this replica's part of a table, in one pass for heads, tails and negatives.
//
//     table (E, D), index (K) -> rows (K, D): rows[k] = table[index[k]]
//
// Inputs: table, float16 or float32; index, int32 or uint32, rows in [0, E): concatenated of all that
// a step looks up, so that there is one plan. The row of an index beyond the table is undefined.
// Outputs: rows, of the table's type.
// Attributes: `available_memory_proportion`, 0.6: of a tile's memory, for what is used on the way.
// Gradient: ScatterAdd, dense, for that is what PopART hands to an optimiser;
// BesskgeSparseUpdate (scatter_update.cpp) takes it out again.
//
// It lays the table out for look-ups and sums alike: beside PopART's own Gather, of which the gradient
// has a layout of its own, the update needs no copy of the table. besskge_core.ops.gather is this for
// L hosted shards; here L is 1 and left out. D should be a multiple of 8 bytes.
#include "rows.h"

#include <limits>
#include <set>
#include <string>

#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>

namespace besskge_core {

const popart::OperatorIdentifier kGather{kDomain, "Gather", kVersion};

const std::vector<popart::GradInOutMapper>& RowsOp::gradInputInfo() const {
  static const std::vector<popart::GradInOutMapper> inputs = {
      {0, 0, popart::GradOpInType::GradOut}, {1, 1, popart::GradOpInType::In}};
  return inputs;
}

const std::map<int, int>& RowsOp::gradOutToNonGradIn() const {
  static const std::map<int, int> outputs = {{0, 0}};
  return outputs;
}

void GatherOp::setup() {
  const popart::TensorInfo &table = inInfo(0), &index = inInfo(1);
  expect(is_one_of(table, floats()) && table.rank() == 2,
         "Gather expects a table (E, D) of floats, got " + described(table));
  expect(is_one_of(index, integers()) && index.rank() == 1,
         "Gather expects an index (K) of 32-bit integers, got " + described(index));
  outInfo(0) = {table.dataType(), {index.dim(0), table.dim(1)}};
}

std::vector<std::unique_ptr<popart::Op>> GatherOp::getGradOps() {
  std::vector<std::unique_ptr<popart::Op>> ops;
  ops.push_back(
      std::make_unique<ScatterAddOp>(kScatterAdd, inInfo(0).dim(0), memory(), getSettings()));
  return ops;
}

popops::SlicePlan plan_of_rows(const poplar::Graph& graph, const poplar::Type& type,
                               std::size_t n_row, std::size_t width, std::size_t n_lookup,
                               float memory) {
  return popops::embedding::plan(graph, type, n_row, width, {n_lookup},
                                 {{"usedForSlice", "true"},
                                  {"usedForUpdate", "true"},
                                  {"operationForUpdate", "add"},
                                  {"availableMemoryProportion", std::to_string(memory)}});
}

poplar::Tensor offsets_of(const poplar::Tensor& index) {
  return index.flatten().expand({1}).reinterpret(poplar::UNSIGNED_INT);
}

namespace {

class GatherOpx : public popart::popx::Opx {
 public:
  GatherOpx(popart::Op* op, popart::popx::Devicex* device) : Opx(op, device) {
    verifyOp<GatherOp>(op, kGather);
    inputCreatorPriority = std::numeric_limits<double>::max();
    const auto table = inInfo(0).shape_szt();
    plan_ = plan_of_rows(graph(), popart::popx::popType(inInfo(0)), table[0], table[1],
                         inInfo(1).nelms(), getOp<GatherOp>().memory());
  }

  popart::popx::InputCreatorType getInputCreatorType(popart::InIndex) const override {
    return popart::popx::InputCreatorType::CanCreate;
  }
  std::set<popart::TensorId> mustExistBeforeCreate(popart::InIndex) const override { return {}; }
  poplar::Tensor createInput(popart::InIndex input,
                             const poplar::DebugNameAndId& name) const override {
    const auto type = popart::popx::popType(inInfo(input));
    const auto shape = inInfo(input).shape_szt();
    if (input == 0) {
      return popops::createSliceableTensor(graph(), type, shape, {0}, {1}, plan_, {}, name);
    }
    return popops::createIndicesTensor(graph(), {0}, shape[0], plan_, {}, name)
        .reinterpret(type)
        .reshape(shape);
  }

  void grow(poplar::program::Sequence& prog) const override {
    const poplar::Tensor rows =
        popops::multiSlice(graph(), getInTensor(0), offsets_of(getInTensor(1)), {0}, {1}, prog,
                           plan_, {}, debugContext("gather"));
    setOutTensor(0, rows.squeeze({1}));
  }

 private:
  popops::SlicePlan plan_;
};

popart::OpCreator<GatherOp> creator(
    popart::OpDefinitions(
        {{kGather, popart::OpDefinition(
                       popart::OpDefinition::Inputs({{"table", floats()}, {"index", integers()}}),
                       popart::OpDefinition::Outputs({{"rows", floats()}}),
                       popart::OpDefinition::Attributes({{kMemoryAttribute, {"*"}}}))}}),
    [](const popart::OpCreatorInfo& info) -> std::unique_ptr<popart::Op> {
      const float memory =
          info.attributes.getAttribute<popart::Attributes::Float>(kMemoryAttribute, kMemory);
      return std::make_unique<GatherOp>(info.opid, memory, info.settings);
    },
    true);

popart::popx::OpxCreator<GatherOpx> lowering(kGather);

}  // namespace
}  // namespace besskge_core
