// Pairwise: scores of every query with every candidate, of which no row of a pair ever exists.
//
//     q (B, D), e (N, D) -> scores (B, N), by attribute:
//     comparison = "l1", "l2", "l2_squared", "modulus": comparisons.h says what they are
//
// Inputs: q and e, both float16 or both float32. D is even for "modulus": real parts, then imaginary.
// Outputs: scores, negated distances, of the same type; differences and sums are float32.
// Gradient: PairwiseGrad: slope (B, N), q, e, and the scores for "l2" -> dq (B, D), de (N, D). It is 0
// where a distance has none: at equal entries, rows and complex entries.
//
// Each tile scores a rectangle of pairs (tiling.h), for which its rows are brought there; going back
// it adds up what its pairs give to its queries and to its candidates, and the parts of all tiles are
// summed in float32. The codelets are in pairwise_codelet.cpp, compiled beside this library.
#include <dlfcn.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include <poplar/Graph.hpp>
#include <poplar/Program.hpp>
#include <poplar/Tensor.hpp>
#include <popops/Cast.hpp>
#include <popops/Operation.hpp>
#include <popops/Reduce.hpp>
#include <poputil/VertexTemplates.hpp>

#include <popart/op.hpp>
#include <popart/opmanager.hpp>
#include <popart/opserialiser.hpp>
#include <popart/popx/devicex.hpp>
#include <popart/popx/opx.hpp>
#include <popart/popx/opxmanager.hpp>

#include "checks.h"
#include "comparisons.h"
#include "tiling.h"

namespace besskge_core {
namespace {

const popart::OperatorIdentifier kPairwise{kDomain, "Pairwise", kVersion};
const popart::OperatorIdentifier kPairwiseGrad{kDomain, "PairwiseGrad", kVersion};
constexpr const char* kComparisonAttribute = "comparison";

unsigned comparison_named(const std::string& name) {
  std::string known;
  for (unsigned i = 0; i < kComparisons; ++i) {
    if (name == kComparisonNames[i]) return i;
    known += (i ? ", " : "") + std::string(kComparisonNames[i]);
  }
  throw popart::error("{}", "besskge_core: Pairwise knows no comparison '" + name +
                                "'; expected one of " + known);
}

// -- operations ----------------------------------------------------------------------------------

class PairwiseOp : public popart::Op {
 public:
  PairwiseOp(const popart::OperatorIdentifier& id, unsigned comparison,
             const popart::Op::Settings& settings)
      : Op(id, settings), comparison_(comparison) {}
  std::unique_ptr<popart::Op> clone() const override {
    return std::make_unique<PairwiseOp>(*this);
  }

  void setup() override {
    const popart::TensorInfo &q = inInfo(0), &e = inInfo(1);
    const std::string came = "got " + described(q) + " and " + described(e);
    expect(is_one_of(q, floats()) && q.dataType() == e.dataType(),
           "Pairwise expects q and e of one type, FLOAT or FLOAT16, " + came);
    expect(q.rank() == 2 && e.rank() == 2 && q.dim(1) == e.dim(1),
           "Pairwise expects q (B, D) and e (N, D), " + came);
    expect(q.nelms() > 0 && e.nelms() > 0, "Pairwise expects a pair to compare, " + came);
    expect(comparison_ != kModulus || q.dim(1) % 2 == 0,
           "Pairwise by modulus expects an even D, real parts and then imaginary, " + came);
    outInfo(0) = {q.dataType(), {q.dim(0), e.dim(0)}};
  }

  std::vector<std::unique_ptr<popart::Op>> getGradOps() override;

  float getSubgraphValue() const override { return getHighSubgraphValue(); }
  void appendOutlineAttributes(popart::OpSerialiserBase& os) const override {
    Op::appendOutlineAttributes(os);
    os.appendAttribute(kComparisonAttribute, comparison_);
  }
  unsigned comparison() const { return comparison_; }

 private:
  unsigned comparison_;
};

// Inputs: 0 slope (B, N), 1 q (B, D), 2 e (N, D), and for kL2 3 scores (B, N). Outputs: 0 dq, 1 de.
class PairwiseGradOp : public popart::Op {
 public:
  explicit PairwiseGradOp(const PairwiseOp& forward)
      : Op(kPairwiseGrad, forward.getSettings()), comparison_(forward.comparison()) {}
  std::unique_ptr<popart::Op> clone() const override {
    return std::make_unique<PairwiseGradOp>(*this);
  }

  void setup() override {
    outInfo(0) = inInfo(1);
    outInfo(1) = inInfo(2);
  }

  const std::vector<popart::GradInOutMapper>& gradInputInfo() const override {
    using popart::GradOpInType;
    static const std::vector<popart::GradInOutMapper> of_sums = {
        {0, 0, GradOpInType::GradOut}, {1, 0, GradOpInType::In}, {2, 1, GradOpInType::In}};
    static const std::vector<popart::GradInOutMapper> of_roots = {{0, 0, GradOpInType::GradOut},
                                                                  {1, 0, GradOpInType::In},
                                                                  {2, 1, GradOpInType::In},
                                                                  {3, 0, GradOpInType::Out}};
    return comparison_ == kL2 ? of_roots : of_sums;
  }
  const std::map<int, int>& gradOutToNonGradIn() const override {
    static const std::map<int, int> outputs = {{0, 0}, {1, 1}};
    return outputs;
  }

  float getSubgraphValue() const override { return getHighSubgraphValue(); }
  void appendOutlineAttributes(popart::OpSerialiserBase& os) const override {
    Op::appendOutlineAttributes(os);
    os.appendAttribute(kComparisonAttribute, comparison_);
  }
  unsigned comparison() const { return comparison_; }

 private:
  unsigned comparison_;
};

std::vector<std::unique_ptr<popart::Op>> PairwiseOp::getGradOps() {
  std::vector<std::unique_ptr<popart::Op>> ops;
  ops.push_back(std::make_unique<PairwiseGradOp>(*this));
  return ops;
}

// -- lowering ------------------------------------------------------------------------------------

// The codelets, compiled by popc, lie where this library does.
std::string codelets_file() {
  Dl_info here;
  expect(dladdr(reinterpret_cast<const void*>(&kPairwise), &here) != 0 && here.dli_fname,
         "Pairwise cannot tell where its library is, so where its codelets are");
  const std::string library = here.dli_fname;
  return library.substr(0, library.rfind('/') + 1) + "pairwise_codelet.gp";
}

// What a tile has of pairs (B, N), end to end.
poplar::Tensor piece_of(const poplar::Tensor& pairs, const Part& part) {
  return pairs.slice({part.row, part.column}, {part.row_end, part.column_end}).flatten();
}

class PairsOpx : public popart::popx::Opx {
 public:
  PairsOpx(popart::Op* op, popart::popx::Devicex* device) : Opx(op, device) {
    if (!graph().hasCodelet("besskge_core::NormCoefficients<float>")) {
      graph().addCodelets(codelets_file());
    }
  }

 protected:
  typedef std::size_t Bytes(Rectangle, std::size_t width, std::size_t element_bytes);

  // Deals pairs to tiles, or says that they are too many: poplar's own words would name no shapes.
  std::vector<Part> deal(const poplar::Tensor& q, const poplar::Tensor& e, Bytes& bytes) const {
    const poplar::Target& target = graph().getTarget();
    const std::size_t n_query = q.dim(0), n_candidate = e.dim(0), width = q.dim(1);
    const std::size_t element_bytes = target.getTypeSize(q.elementType());
    const Rectangle each =
        deal_pairs(n_query, n_candidate, width, element_bytes, target.getNumTiles());
    const std::size_t needed = bytes(each, width, element_bytes);
    expect(needed <= target.getBytesPerTile(),
           "Pairwise of (" + std::to_string(n_query) + ", " + std::to_string(width) + ") and (" +
               std::to_string(n_candidate) + ", " + std::to_string(width) + ") needs " +
               std::to_string(needed) + " bytes on each of " +
               std::to_string(target.getNumTiles()) + " tiles, which have " +
               std::to_string(target.getBytesPerTile()) +
               "; compare fewer candidates at once, or in float16");
    return all_parts(n_query, n_candidate, each);
  }

  // A vertex over the pairs of a tile.
  poplar::VertexRef add(poplar::ComputeSet cs, const std::string& vertex, unsigned tile,
                        const Part& part, const poplar::Tensor& q, const poplar::Tensor& e) const {
    const poplar::VertexRef v = graph().addVertex(cs, vertex);
    graph().setTileMapping(v, tile);
    graph().connect(v["q"], q.slice(part.row, part.row_end).flatten());
    graph().connect(v["e"], e.slice(part.column, part.column_end).flatten());
    graph().setInitialValue(v["n_query"], static_cast<unsigned>(part.rows()));
    graph().setInitialValue(v["n_candidate"], static_cast<unsigned>(part.columns()));
    graph().setInitialValue(v["width"], static_cast<unsigned>(q.dim(1)));
    graph().setPerfEstimate(v, cycles_of_pairs({part.rows(), part.columns()}, q.dim(1)));
    return v;
  }

  // float32, of which each part's rectangle lies in one piece on its tile. Looks like (B, N).
  poplar::Tensor add_pairs(const std::vector<Part>& dealt, const poplar::Tensor& q,
                           const poplar::Tensor& e, std::vector<poplar::Tensor>& pieces,
                           const std::string& name) const {
    const poplar::Tensor all =
        graph().addVariable(poplar::FLOAT, {q.dim(0) * e.dim(0)}, debugContext(name));
    std::vector<poplar::Tensor> rows, row;
    std::size_t from = 0;
    unsigned tile = 0;
    for (const Part& part : dealt) {
      const std::size_t to = from + part.rows() * part.columns();
      pieces.push_back(all.slice(from, to));
      graph().setTileMapping(pieces.back(), tile++);
      row.push_back(pieces.back().reshape({part.rows(), part.columns()}));
      if (part.column_end == e.dim(0)) {
        rows.push_back(poplar::concat(row, 1));
        row.clear();
      }
      from = to;
    }
    return poplar::concat(rows, 0);
  }
};

class PairwiseOpx : public PairsOpx {
 public:
  PairwiseOpx(popart::Op* op, popart::popx::Devicex* device) : PairsOpx(op, device) {
    verifyOp<PairwiseOp>(op, kPairwise);
  }

  void grow(poplar::program::Sequence& prog) const override {
    const poplar::Tensor q = getInTensor(0), e = getInTensor(1);
    const std::string vertex = poputil::templateVertex(
        "besskge_core::PairScores", q.elementType(), getOp<PairwiseOp>().comparison());
    const std::vector<Part> dealt = deal(q, e, bytes_forward);
    std::vector<poplar::Tensor> pieces;
    poplar::Tensor scores = add_pairs(dealt, q, e, pieces, "scores");
    const poplar::ComputeSet cs = graph().addComputeSet(debugContext("pairScores"));
    for (unsigned i = 0; i < dealt.size(); ++i) {
      const poplar::VertexRef v = add(cs, vertex, i, dealt[i], q, e);
      graph().connect(v["out"], pieces[i]);
    }
    prog.add(poplar::program::Execute(cs));
    if (q.elementType() != poplar::FLOAT) {
      scores = popops::cast(graph(), scores, q.elementType(), prog, debugContext("castScores"));
    }
    setOutTensor(0, scores);
  }
};

class PairwiseGradOpx : public PairsOpx {
 public:
  PairwiseGradOpx(popart::Op* op, popart::popx::Devicex* device) : PairsOpx(op, device) {
    verifyOp<PairwiseGradOp>(op, kPairwiseGrad);
  }

  void grow(poplar::program::Sequence& prog) const override {
    const poplar::Tensor q = getInTensor(1), e = getInTensor(2);
    const std::size_t width = q.dim(1);
    const std::vector<Part> dealt = deal(q, e, bytes_back);
    const std::vector<poplar::Tensor> slopes = slopes_of(dealt, q, e, prog);
    const poplar::Tensor dq = graph().addVariable(
        poplar::FLOAT, {dealt.back().across + 1, q.dim(0), width}, debugContext("dqOfTiles"));
    const poplar::Tensor de = graph().addVariable(
        poplar::FLOAT, {dealt.back().down + 1, e.dim(0), width}, debugContext("deOfTiles"));

    const std::string vertex = poputil::templateVertex(
        "besskge_core::PairGradients", q.elementType(), getOp<PairwiseGradOp>().comparison());
    const poplar::ComputeSet cs = graph().addComputeSet(debugContext("pairGradients"));
    for (unsigned i = 0; i < dealt.size(); ++i) {
      const Part& part = dealt[i];
      const poplar::VertexRef v = add(cs, vertex, i, part, q, e);
      const poplar::Tensor own_dq = dq[part.across].slice(part.row, part.row_end).flatten();
      const poplar::Tensor own_de = de[part.down].slice(part.column, part.column_end).flatten();
      graph().setTileMapping(own_dq, i);
      graph().setTileMapping(own_de, i);
      graph().connect(v["slope"], slopes[i]);
      graph().connect(v["dq"], own_dq);
      graph().connect(v["de"], own_de);
    }
    // The vertices clear what they add to, so nothing need be kept of it until then.
    prog.add(poplar::program::WriteUndef(de, debugContext("deOfTiles")));
    prog.add(poplar::program::Execute(cs));
    setOutTensor(0, summed(dq, q.elementType(), prog, "dq"));
    setOutTensor(1, summed(de, e.elementType(), prog, "de"));
  }

 private:
  // What each tile's vertex takes for the slopes of its pairs, in float32.
  std::vector<poplar::Tensor> slopes_of(const std::vector<Part>& dealt, const poplar::Tensor& q,
                                        const poplar::Tensor& e,
                                        poplar::program::Sequence& prog) const {
    poplar::Tensor slope = getInTensor(0);
    std::vector<poplar::Tensor> pieces;
    if (getOp<PairwiseGradOp>().comparison() != kL2) {
      if (slope.elementType() != poplar::FLOAT) {
        slope = popops::cast(graph(), slope, poplar::FLOAT, prog, debugContext("castSlope"));
      }
      for (const Part& part : dealt) pieces.push_back(piece_of(slope, part));
      return pieces;
    }
    const poplar::Tensor score = getInTensor(3);
    add_pairs(dealt, q, e, pieces, "coefficients");
    const poplar::ComputeSet cs = graph().addComputeSet(debugContext("normCoefficients"));
    const std::string vertex =
        poputil::templateVertex("besskge_core::NormCoefficients", slope.elementType());
    for (unsigned i = 0; i < dealt.size(); ++i) {
      const poplar::VertexRef v = graph().addVertex(cs, vertex);
      graph().setTileMapping(v, i);
      graph().connect(v["slope"], piece_of(slope, dealt[i]));
      graph().connect(v["score"], piece_of(score, dealt[i]));
      graph().connect(v["out"], pieces[i]);
      graph().setInitialValue(v["n_pair"], static_cast<unsigned>(pieces[i].numElements()));
      graph().setPerfEstimate(v, 20 * pieces[i].numElements());
    }
    prog.add(poplar::program::Execute(cs));
    return pieces;
  }

  poplar::Tensor summed(const poplar::Tensor& of_tiles, const poplar::Type& type,
                        poplar::program::Sequence& prog, const std::string& name) const {
    return popops::reduce(graph(), of_tiles, type, {0}, popops::ReduceParams(popops::Operation::ADD),
                          prog, debugContext(name));
  }
};

popart::OpCreator<PairwiseOp> creator(
    popart::OpDefinitions(
        {{kPairwise,
          popart::OpDefinition(popart::OpDefinition::Inputs({{"q", floats()}, {"e", floats()}}),
                               popart::OpDefinition::Outputs({{"scores", floats()}}),
                               popart::OpDefinition::Attributes({{kComparisonAttribute, {"*"}}}))}}),
    [](const popart::OpCreatorInfo& info) -> std::unique_ptr<popart::Op> {
      const auto name =
          info.attributes.getAttribute<popart::Attributes::String>(kComparisonAttribute);
      return std::make_unique<PairwiseOp>(info.opid, comparison_named(name), info.settings);
    },
    true);

popart::popx::OpxCreator<PairwiseOpx> lowering(kPairwise);
popart::popx::OpxCreator<PairwiseGradOpx> lowering_of_gradient(kPairwiseGrad);

}  // namespace
}  // namespace besskge_core
