// ScatterUpdate: adds scaled gradients of rows straight into a table or an accumulator, in place.
//
//     variable (E, D), rows (K, D), index (K), scale () -> the variable:
//     variable[index[k]] += factor * scale * rows[k], for every k; equal indices add up
//
// Inputs: variable, float16 or float32; rows, cast to its type; index, int32 or uint32, those beyond
// the table left out; scale, a tensor if it changes from step to step, and not there if it never does.
// Outputs: the variable, in the same memory.
// Attributes: factor, -1 for a learning rate and 1 for an accumulator; of what it replaces, the scale
// if that never changes; of the look-up, its share of memory.
// Gradient: none, it is an update.
//
// Nobody calls it: PopART's autodiff hands a gradient of the shape of the table to an optimiser of its
// own. The pattern BesskgeSparseUpdate, off unless asked for, finds where that gradient is a ScatterAdd and
// puts this in the place of both, so that a step costs what its K rows cost, not the table:
//
//     ScatterAdd -> SGD0VarUpdate                       plain SGD: into the table, scale = the rate
//     ScatterAdd -> Accumulate (Add, DampenedAdd)       accumulation, momentum: into the accumulator
//
// It leaves alone what is not linear in the gradient (Adam's second moment, running means), weight
// decay, a gradient that something else reads too, and one that is still all-reduced: that goes by
// BesskgeRemoveAllReduce (remove_all_reduce.cpp), which is to be on beside this.
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include <poplar/Program.hpp>
#include <popops/Cast.hpp>
#include <popops/ElementWise.hpp>

#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/op/accumulate.hpp>
#include <popart/op/sgd0varupdate.hpp>
#include <popart/op/varupdate.hpp>
#include <popart/optimizervalue.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/tensor.hpp>
#include <popart/tensorindex.hpp>
#include <popart/tensors.hpp>
#include <popart/topocons.hpp>

#include "rows.h"

namespace besskge_core {
namespace {

const popart::OperatorIdentifier kScatterUpdate{kDomain, "ScatterUpdate", kVersion};

class ScatterUpdateOp : public popart::VarUpdateWithUpdaterOp {
 public:
  ScatterUpdateOp(float factor, popart::OptimizerValue scale, float memory,
                  const popart::Op::Settings& settings)
      : VarUpdateWithUpdaterOp(kScatterUpdate, settings),
        factor_(factor),
        scale_(scale),
        memory_(memory) {}
  std::unique_ptr<popart::Op> clone() const override {
    return std::make_unique<ScatterUpdateOp>(*this);
  }

  static popart::InIndex index_input() { return 2; }
  static popart::InIndex scale_input() { return 3; }

  std::map<popart::InIndex, popart::TensorId> optimizerInputs() const override {
    if (scale_.isConst()) return {};
    return {{scale_input(), inId(scale_input())}};
  }
  std::set<popart::InIndex> optionalInputs() const override { return {scale_input()}; }

  float getSubgraphValue() const override { return getLowSubgraphValue(); }
  void appendOutlineAttributes(popart::OpSerialiserBase& os) const override {
    Op::appendOutlineAttributes(os);
    os.appendAttribute("factor", factor_);
    os.appendAttribute(kMemoryAttribute, memory_);
    if (scale_.isConst()) os.appendAttribute("scale", scale_.val());
  }

  float factor() const { return factor_; }
  const popart::OptimizerValue& scale() const { return scale_; }
  float memory() const { return memory_; }

 private:
  float factor_;
  popart::OptimizerValue scale_;
  float memory_;
};

class ScatterUpdateOpx : public popart::popx::Opx {
 public:
  ScatterUpdateOpx(popart::Op* op, popart::popx::Devicex* device) : Opx(op, device) {
    verifyOp<ScatterUpdateOp>(op, kScatterUpdate);
    inputCreatorPriority = std::numeric_limits<double>::max();
    const auto variable = inInfo(variable_input()).shape_szt();
    plan_ = plan_of_rows(graph(), type(), variable[0], variable[1],
                         inInfo(ScatterUpdateOp::index_input()).nelms(),
                         getOp<ScatterUpdateOp>().memory());
  }

  // An accumulator that nobody else lays out; a table has the same layout from its Gather.
  popart::popx::InputCreatorType getInputCreatorType(popart::InIndex input) const override {
    return input == variable_input() ? popart::popx::InputCreatorType::CanCreate
                                     : Opx::getInputCreatorType(input);
  }
  std::set<popart::TensorId> mustExistBeforeCreate(popart::InIndex) const override { return {}; }
  poplar::Tensor createInput(popart::InIndex input,
                             const poplar::DebugNameAndId& name) const override {
    return popops::createSliceableTensor(graph(), type(), inInfo(input).shape_szt(), {0}, {1},
                                         plan_, {}, name);
  }

  void grow(poplar::program::Sequence& prog) const override {
    const poplar::Tensor variable = getInTensor(variable_input());
    poplar::Tensor rows = getInTensor(ScatterUpdateOp::getUpdaterInIndex());
    if (rows.elementType() != variable.elementType()) {
      rows = popops::cast(graph(), rows, variable.elementType(), prog, debugContext("castRows"));
    }
    const poplar::Tensor index = offsets_of(getInTensor(ScatterUpdateOp::index_input()));
    popops::multiUpdateAdd(graph(), variable, rows.expand({1}), index, scale(prog), {0}, {1}, prog,
                           plan_, {}, debugContext("scatterUpdate"));
    setOutTensor(ScatterUpdateOp::getUpdatedVarOutIndex(), variable);
  }

 private:
  static popart::InIndex variable_input() { return ScatterUpdateOp::getVarToUpdateInIndex(); }
  poplar::Type type() const { return popart::popx::popType(inInfo(variable_input())); }

  // Of the type of the variable; a table of halves may have a scale in float32.
  poplar::Tensor scale(poplar::program::Sequence& prog) const {
    const auto& op = getOp<ScatterUpdateOp>();
    if (op.scale().isConst()) return getConst(type(), {}, op.factor() * op.scale().val(), "scale");
    poplar::Tensor scale = getInTensor(ScatterUpdateOp::scale_input());
    if (op.factor() < 0) scale = popops::neg(graph(), scale, prog, debugContext("negated"));
    if (type() == poplar::FLOAT && scale.elementType() != poplar::FLOAT) {
      scale = popops::cast(graph(), scale, poplar::FLOAT, prog, debugContext("castScale"));
    }
    return scale;
  }

  popops::SlicePlan plan_;
};

popart::popx::OpxCreator<ScatterUpdateOpx> lowering(kScatterUpdate);

// -- the pattern ---------------------------------------------------------------------------------

// How an update adds its gradient to its variable, where it does no more than that.
struct Linear {
  float factor;
  popart::OptimizerValue scale;
  popart::InIndex scale_input;  // of the update, where the scale is a tensor
};

std::unique_ptr<Linear> linear(const popart::Op* op) {
  if (const auto* sgd = dynamic_cast<const popart::SGD0VarUpdateOp*>(op)) {
    const bool decays = !sgd->initWdsf0.isConst() || sgd->initWdsf0.val() != 1.0f;
    if (decays) return nullptr;
    return std::make_unique<Linear>(
        Linear{-1.0f, sgd->initSlr0, popart::SGD0VarUpdateOp::getSlr0InIndex()});
  }
  if (const auto* sum = dynamic_cast<const popart::AccumulateOp*>(op)) {
    const popart::InIndex input = popart::AccumulateOp::getFactorInIndex();
    switch (sum->getAccumulationType()) {
      case popart::AccumulationType::Add:
        return std::make_unique<Linear>(Linear{1.0f, popart::OptimizerValue(1.0f), input});
      case popart::AccumulationType::DampenedAdd:
        return std::make_unique<Linear>(Linear{1.0f, sum->getFactor(), input});
      default:
        return nullptr;
    }
  }
  return nullptr;
}

class SparseUpdate : public popart::PreAliasPattern {
 public:
  bool matches(popart::Op* op) const override {
    if (!linear(op)) return false;
    const popart::Tensor* gradient = op->inTensor(gradient_input());
    return gradient->hasProducer() && gradient->consumers.getTotal() == 1 &&
           !op->getGraph().hasOutputId(gradient->id) &&
           dynamic_cast<ScatterAddOp*>(gradient->getProducer()) != nullptr;
  }

  std::vector<const popart::Tensor*> touches(popart::Op* op) const override {
    return {op->inTensor(gradient_input())};
  }

  bool apply(popart::Op* op) const override {
    popart::Graph& graph = op->getGraph();
    const std::unique_ptr<Linear> how = linear(op);
    popart::Tensor* gradient = op->inTensor(gradient_input());
    auto* scatter = static_cast<ScatterAddOp*>(gradient->getProducer());
    const popart::TensorId variable = op->inId(popart::VarUpdateOp::getVarToUpdateInIndex());
    const popart::TensorId updated = op->outId(popart::VarUpdateOp::getUpdatedVarOutIndex());

    // Its settings are those of the update: where and when it runs.
    auto* update = graph.createOp<ScatterUpdateOp>(how->factor, how->scale, scatter->memory(),
                                                   op->getSettings());
    transferBaseProperties(op, update);
    update->connectInTensor(popart::VarUpdateOp::getVarToUpdateInIndex(), variable);
    update->connectInTensor(gradient_input(), scatter->inId(0));
    update->connectInTensor(ScatterUpdateOp::index_input(), scatter->inId(1));
    if (!how->scale.isConst()) {
      update->connectInTensor(ScatterUpdateOp::scale_input(), op->inId(how->scale_input));
    }
    graph.topoCons->transfer(op, update);

    erase(op);
    erase(scatter);
    graph.getTensors().remove(gradient->id);
    update->connectOutTensor(popart::VarUpdateOp::getUpdatedVarOutIndex(), updated);
    update->setup();
    return true;
  }

 private:
  static popart::InIndex gradient_input() {
    return popart::VarUpdateWithUpdaterOp::getUpdaterInIndex();
  }
  static void erase(popart::Op* op) {
    op->disconnectAllInputs();
    op->disconnectAllOutputs();
    op->getGraph().eraseOp(op->id);
  }
};

popart::PatternCreator<SparseUpdate> pattern("BesskgeSparseUpdate", /*enabled=*/false);

}  // namespace
}  // namespace besskge_core
