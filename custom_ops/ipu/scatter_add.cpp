// ScatterAdd: rows of equal index, summed; the gradient of Gather.
//
//     values (K, D), index (K) -> sums (n_row, D): sums[r] = sum of values[k] where index[k] == r
//
// Inputs: values, float16 or float32; index, int32 or uint32, in [0, n_row); others are left out.
// Outputs: sums, of the type of the values, in which they are added up.
// Attributes: `n_row`; `available_memory_proportion`, 0.6, as of Gather.
// Gradient: Gather.
//
// It also sums the gradients of one row's look-ups, as besskge_core.ops.sum_rows does: with the place
// of each row among the distinct ones for an index, (K, D) -> (U, D).
#include "rows.h"

#include <popops/Zero.hpp>

#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>

namespace besskge_core {

const popart::OperatorIdentifier kScatterAdd{kDomain, "ScatterAdd", kVersion};

void ScatterAddOp::setup() {
  const popart::TensorInfo &values = inInfo(0), &index = inInfo(1);
  expect(is_one_of(values, floats()) && values.rank() == 2,
         "ScatterAdd expects values (K, D) of floats, got " + described(values));
  expect(is_one_of(index, integers()) && index.rank() == 1 && index.dim(0) == values.dim(0),
         "ScatterAdd expects an index (K) of 32-bit integers for values " + described(values) +
             ", got " + described(index));
  expect(n_row_ > 0, "ScatterAdd expects n_row of at least 1, got " + std::to_string(n_row_));
  outInfo(0) = {values.dataType(), {n_row_, values.dim(1)}};
}

std::vector<std::unique_ptr<popart::Op>> ScatterAddOp::getGradOps() {
  std::vector<std::unique_ptr<popart::Op>> ops;
  ops.push_back(std::make_unique<GatherOp>(kGather, memory(), getSettings()));
  return ops;
}

namespace {

class ScatterAddOpx : public popart::popx::Opx {
 public:
  ScatterAddOpx(popart::Op* op, popart::popx::Devicex* device) : Opx(op, device) {
    verifyOp<ScatterAddOp>(op, kScatterAdd);
  }

  void grow(poplar::program::Sequence& prog) const override {
    const auto type = popart::popx::popType(outInfo(0));
    const auto shape = outInfo(0).shape_szt();
    const popops::SlicePlan plan = plan_of_rows(graph(), type, shape[0], shape[1],
                                                inInfo(1).nelms(), getOp<ScatterAddOp>().memory());
    const poplar::Tensor sums = popops::createSliceableTensor(graph(), type, shape, {0}, {1}, plan,
                                                              {}, debugContext("sums"));
    popops::zero(graph(), sums, prog, debugContext("zero"));
    popops::multiUpdateAdd(graph(), sums, getInTensor(0).expand({1}), offsets_of(getInTensor(1)),
                           getConst(type, {}, 1.0, "one"), {0}, {1}, prog, plan, {},
                           debugContext("scatterAdd"));
    setOutTensor(0, sums);
  }
};

popart::OpCreator<ScatterAddOp> creator(
    popart::OpDefinitions(
        {{kScatterAdd,
          popart::OpDefinition(
              popart::OpDefinition::Inputs({{"values", floats()}, {"index", integers()}}),
              popart::OpDefinition::Outputs({{"sums", floats()}}),
              popart::OpDefinition::Attributes({{"n_row", {"*"}}, {kMemoryAttribute, {"*"}}}))}}),
    [](const popart::OpCreatorInfo& info) -> std::unique_ptr<popart::Op> {
      const auto n_row = info.attributes.getAttribute<popart::Attributes::Int>("n_row");
      const float memory =
          info.attributes.getAttribute<popart::Attributes::Float>(kMemoryAttribute, kMemory);
      return std::make_unique<ScatterAddOp>(info.opid, n_row, memory, info.settings);
    },
    true);

popart::popx::OpxCreator<ScatterAddOpx> lowering(kScatterAdd);

}  // namespace
}  // namespace besskge_core
