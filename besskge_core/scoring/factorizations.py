"""Score functions that are products of embeddings: factorizations of the tensor of all triples."""

from __future__ import annotations

from besskge_core.embedding import init_KGE_normal
from besskge_core.scoring.base import SCORE_FUNCTIONS
from besskge_core.scoring.comparators import Dot
from besskge_core.scoring.formula import QueryScore, ScoreFormula
from besskge_core.scoring.models import SimilarityModel
from besskge_core.scoring.operators import ComplexScaling, Scaling


@SCORE_FUNCTIONS.register("distmult")
class DistMult(SimilarityModel):
    """<h, r, t>. Yang et al., ICLR 2015."""

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(Scaling(), Dot(), dim)


@SCORE_FUNCTIONS.register("complex")
class ComplEx(SimilarityModel):
    """Re <h, r, conj t>. Trouillon et al., ICML 2016.

    Rows: real then imaginary parts, 2 * `embedding_size`.
    """

    entity_initializers = relation_initializers = (init_KGE_normal, init_KGE_normal)

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(ComplexScaling(), Dot(), dim)
