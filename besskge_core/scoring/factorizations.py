"""Score functions that are products of embeddings: factorizations of the tensor of all triples."""

from __future__ import annotations

from typing import Optional

from besskge_core.embedding import init_KGE_normal, init_xavier_norm
from besskge_core.scoring.base import SCORE_FUNCTIONS
from besskge_core.scoring.comparators import Dot
from besskge_core.scoring.formula import QueryScore, ScoreFormula
from besskge_core.scoring.initializers import init_matrix
from besskge_core.scoring.models import NamedScoreFunction, SimilarityModel
from besskge_core.scoring.operators import (
    CircularConvolution,
    ComplexScaling,
    CoreTensor,
    LinearMap,
    QuaternionRotation,
    RoleScaling,
    Scaling,
    SwappedScaling,
)
from besskge_core.scoring.representations import Table
from besskge_core.sharding import Sharding


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

    entity_initializers = relation_initializers = (init_KGE_normal,)

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(ComplexScaling(), Dot(), dim)


@SCORE_FUNCTIONS.register("cp")
class CP(SimilarityModel):
    """<h_head, r, t_tail>. Hitchcock, 1927; for graphs Lacroix et al., ICML 2018.

    Entities: as head, as tail, 2 * `embedding_size`. Starts as Glorot and Bengio, AISTATS 2010.
    """

    entity_initializers = (init_xavier_norm, init_xavier_norm)
    relation_initializers = (init_xavier_norm,)

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(RoleScaling(), Dot(), dim)


@SCORE_FUNCTIONS.register("simple")
class SimplE(SimilarityModel):
    """(<h_head, r, t_tail> + <t_head, r_inverse, h_tail>) / 2. Kazemi and Poole, NeurIPS 2018.

    Entities: as head, as tail; relations: forwards, backwards; 2 * `embedding_size` each. Starts
    as Glorot and Bengio, AISTATS 2010.
    """

    entity_initializers = relation_initializers = (init_xavier_norm, init_xavier_norm)

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(SwappedScaling(), Dot(), dim)


@SCORE_FUNCTIONS.register("hole")
class HolE(SimilarityModel):
    """<r, h (*) t>, the circular correlation sum_i h_i t_(i + k). Nickel et al., AAAI 2016.

    Half precision is computed in float32. Starts as Glorot and Bengio, AISTATS 2010.
    """

    entity_initializers = relation_initializers = (init_xavier_norm,)

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(CircularConvolution(), Dot(), dim)


@SCORE_FUNCTIONS.register("quate")
class QuatE(SimilarityModel):
    """<h (x) r / |r|, t>, (x) the Hamilton product. Zhang et al., NeurIPS 2019.

    The score is the inner product, as published. PyKEEN keeps the minus sign of the authors' code,
    but not their loss, which is made for it: there, the least plausible triples score highest.
    Rows: parts 1, i, j, k, 4 * `embedding_size`; relations need not have length 1. Entities start
    as Glorot and Bengio, AISTATS 2010, and relations as rotations that are uniform.
    """

    entity_initializers = relation_initializers = (init_xavier_norm,) * 4

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(QuaternionRotation(), Dot(), dim)


@SCORE_FUNCTIONS.register("rescal")
class RESCAL(SimilarityModel):
    """h^T R t. Nickel et al., ICML 2011.

    Relations: `embedding_size` x `embedding_size` matrices, row by row. Starts as Glorot and
    Bengio, AISTATS 2010.
    """

    entity_initializers, relation_initializers = (init_xavier_norm,), (init_matrix,)

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return QueryScore(LinearMap(dim), Dot(), dim)


@SCORE_FUNCTIONS.register("tucker")
class TuckER(NamedScoreFunction):
    """W x_1 r x_2 h x_3 t, with a core tensor W that is learned. Balazevic et al., EMNLP 2019.

    Dropout and batch normalization are off unless asked for; the paper has input, relation and
    hidden dropout of up to 0.5 and normalizes batches. With batch normalization heads cannot be
    asked for: normalizing what is known of (h, r, ?) and of (?, r, t) would give a triple two
    scores. Rows start as Glorot and Bengio, AISTATS 2010, W in U(-1, 1) as in the authors' code.

    Args:
        relation_size: width of a relation row; None: `embedding_size`.
        input_dropout: of the entity that is known.
        relation_dropout: of the matrix that a relation makes of W.
        hidden_dropout: of their product.
        batch_normalization: of the entity that is known and of the product.
    """

    entity_initializers = relation_initializers = (init_xavier_norm,)

    def __init__(
        self,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        relation_size: Optional[int] = None,
        input_dropout: float = 0.0,
        relation_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        batch_normalization: bool = False,
        inverse_relations: bool = False,
    ) -> None:
        operator = CoreTensor(
            embedding_size, relation_size or embedding_size,
            input_dropout, relation_dropout, hidden_dropout, batch_normalization,
        )  # fmt: skip
        super().__init__(
            QueryScore(operator, Dot(), embedding_size), negative_sample_sharing, sharding,
            n_relation_type, entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip
