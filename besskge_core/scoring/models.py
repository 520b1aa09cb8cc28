"""The named score functions: a formula, its default initialisers, and where it was published.

Each takes `negative_sample_sharing`, `sharding`, `n_relation_type` and `embedding_size` (width of
one part of a row), with `scoring_norm` before `sharding` where it measures a distance.
"""

from __future__ import annotations

from besskge_core.embedding import (
    Initializers,
    init_KGE_normal,
    init_KGE_uniform,
    init_uniform_rotation,
)
from besskge_core.scoring.base import SCORE_FUNCTIONS, BaseScoreFunction
from besskge_core.scoring.comparators import Distance, Dot, ModulusDistance
from besskge_core.scoring.formula import QueryScore
from besskge_core.scoring.operators import ComplexScaling, Rotation, Scaling, Translation
from besskge_core.sharding import Sharding


@SCORE_FUNCTIONS.register("transe")
class TransE(BaseScoreFunction):
    """-||h + r - t||_p. Bordes et al., NeurIPS 2013. Rows: h, r, t of `embedding_size`."""

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Initializers = (init_KGE_uniform,),
        relation_initializer: Initializers = (init_KGE_uniform,),
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            QueryScore(Translation(), Distance(scoring_norm), embedding_size),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


@SCORE_FUNCTIONS.register("rotate")
class RotatE(BaseScoreFunction):
    """-||h o exp(i r) - t||_p, the norm of complex moduli. Sun et al., ICLR 2019.

    Upstream BESS-KGE takes the p-norm of real and imaginary parts, which for p = 1 a rotation
    does not preserve, so that its scores of heads and triples differ; here they agree.
    Entities: real then imaginary parts, 2 * `embedding_size`; relations: phases in radians.
    """

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Initializers = (init_KGE_uniform, init_KGE_uniform),
        relation_initializer: Initializers = (init_uniform_rotation,),
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            QueryScore(Rotation(), ModulusDistance(scoring_norm), embedding_size),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


@SCORE_FUNCTIONS.register("distmult")
class DistMult(BaseScoreFunction):
    """<h, r, t>. Yang et al., ICLR 2015. Rows: h, r, t of `embedding_size`."""

    def __init__(
        self,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Initializers = (init_KGE_uniform,),
        relation_initializer: Initializers = (init_KGE_uniform,),
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            QueryScore(Scaling(), Dot(), embedding_size),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


@SCORE_FUNCTIONS.register("complex")
class ComplEx(BaseScoreFunction):
    """Re <h, r, conj t>. Trouillon et al., ICML 2016.

    Rows: real then imaginary parts, 2 * `embedding_size`.
    """

    def __init__(
        self,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Initializers = (init_KGE_normal, init_KGE_normal),
        relation_initializer: Initializers = (init_KGE_normal, init_KGE_normal),
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            QueryScore(ComplexScaling(), Dot(), embedding_size),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip
