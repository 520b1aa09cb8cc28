// BesskgeRemoveAllReduce: takes out all-reduces over groups of one replica. A pattern, no operation.
//
//     x -> ReplicatedAllReduce, of a group of one -> readers      becomes      x -> readers
//
// A table that is sharded over replicas is a variable of which each replica has its own
// (CommGroupType.NoGrouping). PopART still all-reduces its gradient, over groups of one: nothing
// comes of it but a copy of the gradient, and ScatterAdd is not seen by BesskgeSparseUpdate behind it.
//
// Off unless asked for: options._Popart.setPatterns({"BesskgeRemoveAllReduce": True}, level=2).
// Training is right without it, and larger. Left alone: what is no sum or mean, what must run before
// or after something by constraint, and what leaves the graph.
#include <vector>

#include <popart/graph.hpp>
#include <popart/op/collectives/replicatedallreduce.hpp>
#include <popart/patterns/patterns.hpp>
#include <popart/tensor.hpp>
#include <popart/tensorindex.hpp>
#include <popart/tensors.hpp>
#include <popart/topocons.hpp>

namespace besskge_core {
namespace {

class RemoveAllReduce : public popart::PreAliasPattern {
 public:
  bool matches(popart::Op* op) const override {
    const auto* reduce = dynamic_cast<popart::ReplicatedAllReduceOp*>(op);
    if (!reduce || reduce->getReplicaGrouping().getGroupSize() != 1) return false;
    const bool is_identity = reduce->getCollectiveOp() == popart::CollectiveOperator::Add ||
                             reduce->getCollectiveOp() == popart::CollectiveOperator::Mean;
    return is_identity && op->input->n() == 1 && !op->getGraph().topoCons->hasConstraint(op) &&
           !op->getGraph().hasOutputId(op->outId(output()));
  }

  std::vector<const popart::Tensor*> touches(popart::Op* op) const override {
    return {op->inTensor(input()), op->outTensor(output())};
  }

  bool apply(popart::Op* op) const override {
    popart::Graph& graph = op->getGraph();
    const popart::TensorId before = op->inId(input());
    popart::Tensor* after = op->outTensor(output());
    for (popart::Op* reader : after->consumers.getOps()) {
      const std::vector<int> inputs = reader->input->indices(after);  // changes as they go
      for (const int i : inputs) {
        reader->disconnectInTensor(i, after);
        reader->connectInTensor(i, before);
      }
    }
    op->disconnectAllInputs();
    op->disconnectAllOutputs();
    graph.eraseOp(op->id);
    graph.getTensors().remove(after->id);
    return true;
  }

 private:
  static popart::InIndex input() { return popart::ReplicatedAllReduceOp::getInIndex(); }
  static popart::OutIndex output() { return popart::ReplicatedAllReduceOp::getOutIndex(); }
};

popart::PatternCreator<RemoveAllReduce> pattern("BesskgeRemoveAllReduce", /*enabled=*/false);

}  // namespace
}  // namespace besskge_core
