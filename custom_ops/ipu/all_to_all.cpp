// AllToAll: swaps blocks between replicas; the only communication of a step of BESS.
//
//     blocks (R, ...) to -> (R, ...) from: on replica r, out[s] is what replica s had at [r]
//
// Inputs: blocks, float16, float32, int32 or uint32. Axis R has one block for each replica of the
// group: the same size for all. Outputs: of the same shape and type.
// Attributes: `__collectiveReplicaGrouping`, [replicas, stride, group size], as PopART's own
// collectives have it; without it all replicas are one group.
// Gradient: AllToAll, for an exchange is its own inverse and its own transpose.
//
// besskge_core.exchange.Exchange.all_to_all is (L, S, ...) -> (L, S, ...); here L is 1 and left out.
// One call moves all that there is: each is a point where all replicas wait for each other.
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include <gcl/Collectives.hpp>
#include <poplar/Program.hpp>
#include <poplar/Tensor.hpp>

#include <popart/alias/aliasmodel.hpp>
#include <popart/analysis/replicaequal/replicaequalanalysisproxy.hpp>
#include <popart/graph.hpp>
#include <popart/ir.hpp>
#include <popart/op/collectives/collectives.hpp>
#include <popart/opmanager.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/irlowering.hpp>
#include <popart/popx/op/collectives/collectivesx.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>
#include <popart/region.hpp>
#include <popart/sessionoptions.hpp>

#include "checks.h"

namespace besskge_core {
namespace {

const popart::OperatorIdentifier kAllToAll{kDomain, "AllToAll", kVersion};

popart::OpDefinition::DataTypes movable() {
  popart::OpDefinition::DataTypes types = floats();
  types.insert(types.end(), integers().begin(), integers().end());
  return types;
}

class AllToAllOp : public popart::CollectivesBaseOp {
 public:
  using popart::CollectivesBaseOp::CollectivesBaseOp;

  std::unique_ptr<popart::Op> clone() const override {
    return std::make_unique<AllToAllOp>(*this);
  }

  void setup() override {
    const popart::TensorInfo& blocks = inInfo(getInIndex());
    expect(is_one_of(blocks, movable()), "AllToAll moves numbers of 16 or 32 bits, got " +
                                             described(blocks));
    const auto n_replica = static_cast<int64_t>(getReplicaGrouping().getGroupSize());
    expect(blocks.rank() > 0 && blocks.dim(0) == n_replica,
           "AllToAll expects blocks (R, ...), one for each of R = " + std::to_string(n_replica) +
               " replicas, got " + described(blocks));
    outInfo(getOutIndex()) = blocks;
  }

  std::vector<std::unique_ptr<popart::Op>> getGradOps() override {
    std::vector<std::unique_ptr<popart::Op>> ops;
    ops.push_back(std::make_unique<AllToAllOp>(kAllToAll, getReplicaGrouping(), getSettings()));
    return ops;
  }
  const std::vector<popart::GradInOutMapper>& gradInputInfo() const override {
    static const std::vector<popart::GradInOutMapper> inputs = {
        {0, 0, popart::GradOpInType::GradOut}};
    return inputs;
  }
  const std::map<int, int>& gradOutToNonGradIn() const override {
    static const std::map<int, int> outputs = {{0, 0}};
    return outputs;
  }

  // Replicas that hold the same blocks receive different ones.
  std::tuple<popart::ReplEqOutputMap, popart::ReplEqModifiedInputMap> fwdPropagateIsReplicaEqual(
      const popart::AliasModel&, const popart::ReplEqInputMap&,
      popart::ReplicaEqualAnalysisProxy& proxy) const override {
    popart::ReplEqOutputMap equal;
    equal[getOutIndex()] = false;
    return {equal, proxy.getModifiedInputMapFromAliases(this, equal)};
  }

  float getSubgraphValue() const override { return getHighSubgraphValue(); }
};

class AllToAllOpx : public popart::popx::Opx {
 public:
  AllToAllOpx(popart::Op* op, popart::popx::Devicex* device) : Opx(op, device) {
    verifyOp<AllToAllOp>(op, kAllToAll);
  }

  void grow(poplar::program::Sequence& prog) const override {
    const popart::ReplicaGrouping& group = getOp<AllToAllOp>().getReplicaGrouping();
    const poplar::Tensor blocks = getInTensor(AllToAllOp::getInIndex());
    setOutTensor(
        AllToAllOp::getOutIndex(),
        group.getGroupSize() == 1
            ? cloneNcopy(prog, blocks)
            : gcl::allToAllCrossReplica(graph(), blocks, prog, popart::popx::toGclCommGroup(group),
                                        debugContext("allToAll"), dv_p->lowering().gclOptions));
  }

  // Blocks may lie as whoever reads them next would have them.
  popart::popx::InputCreatorType getInputCreatorType(popart::InIndex) const override {
    return popart::popx::InputCreatorType::CanUnwind;
  }
  poplar::Tensor unwindTensorLayout(poplar::Tensor layout, popart::InIndex,
                                    popart::OutIndex) const override {
    return layout;
  }
  popart::view::RegMap unwindRegion(popart::InIndex, popart::OutIndex) const override {
    return [](const popart::view::Region& region) { return popart::view::Regions(1, region); };
  }
};

popart::OpCreator<AllToAllOp> creator(
    popart::OpDefinitions({{kAllToAll, popart::OpDefinition(
                                           popart::OpDefinition::Inputs({{"blocks", movable()}}),
                                           popart::OpDefinition::Outputs({{"out", movable()}}),
                                           popart::OpDefinition::Attributes(
                                               {{popart::sCollectiveReplicaGrouping, {"*"}}}))}}),
    [](const popart::OpCreatorInfo& info) -> std::unique_ptr<popart::Op> {
      const popart::ReplicaGrouping group = popart::extractReplicaGroupingFromAttrs(
          info.attributes,
          info.settings.getIr().getSessionOptions().getGlobalReplicationFactor());
      return std::make_unique<AllToAllOp>(info.opid, group, info.settings);
    },
    true);

popart::popx::OpxCreator<AllToAllOpx> lowering(kAllToAll);

}  // namespace
}  // namespace besskge_core
