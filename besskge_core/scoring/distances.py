"""Score functions that measure a distance between the head and the tail, as the relation sees them."""

from __future__ import annotations

import abc
from typing import ClassVar, Optional

import torch
from torch import Tensor, nn

from besskge_core.embedding import (
    init_KGE_normal,
    init_KGE_uniform,
    init_uniform_rotation,
)
from besskge_core.scoring.base import SCORE_FUNCTIONS
from besskge_core.scoring.comparators import (
    Distance,
    ModulusDistance,
    TorusDistance,
    native_scores,
    norm,
    unit,
)
from besskge_core.scoring.formula import Heads, PairScore, QueryScore, ScoreFormula
from besskge_core.scoring.initializers import init_symmetric_uniform
from besskge_core.scoring.models import DistanceModel, NamedScoreFunction, SimilarityModel
from besskge_core.scoring.operators import Rotation, Translation
from besskge_core.scoring.representations import Table
from besskge_core.sharding import Sharding

# -- the relation moves the head --------------------------------------------------------------------


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

    entity_initializers = (init_KGE_uniform,)
    relation_initializers = (init_uniform_rotation,)

    @staticmethod
    def make_formula(dim: int, p: float) -> ScoreFormula:
        return QueryScore(Rotation(), ModulusDistance(p), dim)


@SCORE_FUNCTIONS.register("toruse")
class TorusE(DistanceModel):
    """-||h + r - t||_p on a torus: entries count modulo 1. Ebisu and Ichise, AAAI 2018.

    The paper scales this, and squares it for p = 2. Rows start uniform on the torus, as there.
    """

    entity_initializers = relation_initializers = (nn.init.uniform_,)

    @staticmethod
    def make_formula(dim: int, p: float) -> ScoreFormula:
        return QueryScore(Translation(), TorusDistance(p), dim)


# -- the relation scales head and tail -----------------------------------------------------------


class ScaledDistance(PairScore):
    """-||h o (r_h + u) + r_m - t o (r_t + u)||_p, perhaps of unit entities, perhaps without r_m."""

    def __init__(
        self, dim: int, p: float, normalize: bool, translate: bool = True, u: float = 0.0
    ) -> None:
        super().__init__(dim)
        self.relation_parts = ("d", "d", "d") if translate else ("d", "d")
        self.p, self.normalize, self.u = p, normalize, u

    def prepare_entity(self, e: Tensor) -> Tensor:
        return unit(e) if self.normalize else e

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        r_h, *r_m, r_t = self.split(r, self.relation_parts)
        moved = h * (r_h + self.u) - t * (r_t + self.u)
        return -norm(moved + r_m[0] if r_m else moved, self.p)

    def pairwise(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        if e.dim() == 2 and not isinstance(heads, Tensor):
            known, r_h, *r_m, r_t = self.split(q, ("d", *self.relation_parts))
            of_known, of_candidate = (r_t, r_h) if heads else (r_h, r_t)
            moved = known * (of_known + self.u)
            if r_m:
                moved = moved - r_m[0] if heads else moved + r_m[0]
            prepared = self.prepare_entity(e)
            scores = native_scores(moved, prepared, self.p, of_candidate + self.u)
            if scores is not None:
                return scores
        return super().pairwise(q, e, heads)


@SCORE_FUNCTIONS.register("pairre")
class PairRE(NamedScoreFunction):
    """-||h o r_h - t o r_t||_p. Chao et al., ACL 2021.

    Relations: of heads, of tails, 2 * `embedding_size`. Arguments as for
    :class:`~besskge_core.scoring.models.DistanceModel`, and:

    Args:
        normalize_entities: give entities length 1 first.
    """

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        normalize_entities: bool = True,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            ScaledDistance(embedding_size, scoring_norm, normalize_entities, translate=False),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


@SCORE_FUNCTIONS.register("triplere")
class TripleRE(NamedScoreFunction):
    """-||h o (r_h + u) + r_m - t o (r_t + u)||_p. Yu et al., 2022.

    Relations: of heads, translation, of tails, 3 * `embedding_size`. Arguments as for
    :class:`~besskge_core.scoring.models.DistanceModel`, and:

    Args:
        normalize_entities: give entities length 1 first.
        u: what is added to both scales; not 0 in version 2 of the paper.
    """

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        normalize_entities: bool = True,
        u: float = 0.0,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            ScaledDistance(embedding_size, scoring_norm, normalize_entities, u=u),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


@SCORE_FUNCTIONS.register("lineare")
class LineaRE(DistanceModel):
    """-||h o r_h + r_m - t o r_t||_p. Peng and Zhang, ICDM 2020, with p = 1.

    Relations: of heads, translation, of tails, 3 * `embedding_size`. Scales start at 1, which is
    TransE: our choice.
    """

    relation_initializers = (nn.init.ones_, init_KGE_uniform, nn.init.ones_)

    @staticmethod
    def make_formula(dim: int, p: float) -> ScoreFormula:
        return ScaledDistance(dim, p, normalize=False)


class SquaredDistance(PairScore):
    """-||h o r_d - t - r||^2 + b_h + b_t."""

    entity_parts = ("d", 1, 1)  # entity, bias of a head, bias of a tail
    relation_parts = ("d", "d")  # diagonal, translation

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        diagonal, moved = self.split(r, self.relation_parts)
        h, bias_h, _ = self.split(h, self.entity_parts)
        t, _, bias_t = self.split(t, self.entity_parts)
        distance = (h * diagonal - (t + moved)).square().sum(-1)
        return bias_h.squeeze(-1) + bias_t.squeeze(-1) - distance


@SCORE_FUNCTIONS.register("mure")
class MuRE(SimilarityModel):
    """-||h o r_d - (t + r)||^2 + b_h + b_t. Balazevic et al., NeurIPS 2019.

    PyKEEN moves the head by r, not the tail. Entities: entity, bias as a head, bias as a tail,
    `embedding_size` + 2, of which biases start at 0; relations: diagonal, which starts in U(-1, 1)
    as in the authors' code, and translation, 2 * `embedding_size`.
    """

    entity_initializers = (init_KGE_normal, nn.init.zeros_, nn.init.zeros_)
    relation_initializers = (init_symmetric_uniform, init_KGE_normal)

    @staticmethod
    def make_formula(dim: int) -> ScoreFormula:
        return SquaredDistance(dim)


# -- head and tail scale each other --------------------------------------------------------------


class CrossedDistance(PairScore):
    """-||h o (t' + u + r_bar) + r - t o (h' + u - r_hat)||_p, perhaps without r_bar and r_hat."""

    entity_parts = ("d", "d")  # entity, its part in the scale of the other

    def __init__(
        self, dim: int, p: float, normalize: bool, offset: float, adjusted: bool = False
    ) -> None:
        super().__init__(dim)
        self.relation_parts = ("d", "d", "d") if adjusted else ("d",)
        self.p, self.normalize, self.offset = p, normalize, offset

    def prepare_entity(self, e: Tensor) -> Tensor:
        main, scale = self.split(e, self.entity_parts)
        if self.normalize:
            main, scale = unit(main), unit(scale)
        return torch.cat([main, scale + self.offset], dim=-1)

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        r, *adjustments = self.split(r, self.relation_parts)
        h, of_tail = self.split(h, self.entity_parts)
        t, of_head = self.split(t, self.entity_parts)
        if adjustments:
            of_head, of_tail = of_head + adjustments[0], of_tail - adjustments[1]
        return -norm(h * of_head + r - t * of_tail, self.p)


class CrossedModel(NamedScoreFunction, abc.ABC):
    """The constructor of models whose head and tail scale each other.

    Arguments as for :class:`~besskge_core.scoring.models.DistanceModel`, and:

    Args:
        normalize_entities: give both parts of entities length 1 first.
        offset: u.
    """

    entity_initializers = (init_KGE_uniform, init_KGE_uniform)
    adjusted: ClassVar[bool]

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        normalize_entities: bool = True,
        offset: float = 1.0,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            CrossedDistance(
                embedding_size, scoring_norm, normalize_entities, offset, self.adjusted
            ),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


@SCORE_FUNCTIONS.register("interht")
class InterHT(CrossedModel):
    """-||h o (t' + u) + r - t o (h' + u)||_p. Wang et al., 2022.

    Entities: entity, auxiliary, 2 * `embedding_size`. Arguments as for :class:`CrossedModel`.
    """

    adjusted = False


@SCORE_FUNCTIONS.register("trans")
class TranS(CrossedModel):
    """-||h o (t' + u + r_bar) + r - t o (h' + u - r_hat)||_p. Zhang et al., 2022.

    Entities: entity, tilde, 2 * `embedding_size`; relations: r, bar, hat, 3 * `embedding_size`.
    Arguments as for :class:`CrossedModel`.
    """

    adjusted = True
