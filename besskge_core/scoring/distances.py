"""Score functions that measure a distance between the head and the tail, as the relation sees them."""

from __future__ import annotations

from besskge_core.embedding import init_KGE_uniform, init_uniform_rotation
from besskge_core.scoring.base import SCORE_FUNCTIONS
from besskge_core.scoring.comparators import Distance, ModulusDistance
from besskge_core.scoring.formula import QueryScore, ScoreFormula
from besskge_core.scoring.models import DistanceModel
from besskge_core.scoring.operators import Rotation, Translation


@SCORE_FUNCTIONS.register("transe")
class TransE(DistanceModel):
    """-||h + r - t||_p. Bordes et al., NeurIPS 2013."""

    @staticmethod
    def make_formula(dim: int, p: float) -> ScoreFormula:
        return QueryScore(Translation(), Distance(p), dim)


@SCORE_FUNCTIONS.register("rotate")
class RotatE(DistanceModel):
    """-||h o exp(i r) - t||_p, the norm of complex moduli. Sun et al., ICLR 2019.

    Upstream BESS-KGE takes the p-norm of real and imaginary parts, which for p = 1 a rotation
    does not preserve, so that its scores of heads and triples differ; here they agree.
    Entities: real then imaginary parts, 2 * `embedding_size`; relations: phases in radians.
    """

    entity_initializers = (init_KGE_uniform, init_KGE_uniform)
    relation_initializers = (init_uniform_rotation,)

    @staticmethod
    def make_formula(dim: int, p: float) -> ScoreFormula:
        return QueryScore(Rotation(), ModulusDistance(p), dim)
