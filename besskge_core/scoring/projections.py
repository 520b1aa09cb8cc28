"""Score functions that translate between projections of head and tail, of each relation its own."""

from __future__ import annotations

import functools
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from besskge_core.embedding import init_KGE_uniform, init_xavier_norm
from besskge_core.scoring.base import SCORE_FUNCTIONS
from besskge_core.scoring.comparators import clamp_norm, norm, unit
from besskge_core.scoring.formula import PairScore, ScoreFormula
from besskge_core.scoring.initializers import init_identity
from besskge_core.scoring.models import DistanceModel, NamedScoreFunction
from besskge_core.scoring.operators import row_times_matrix
from besskge_core.scoring.representations import Table
from besskge_core.sharding import Sharding


class HyperplaneDistance(PairScore):
    """-||x - <w, x> w + r||_p of x = h - t and a unit normal w."""

    relation_parts = ("d", "d")  # normal, translation

    def __init__(self, dim: int, p: float) -> None:
        super().__init__(dim)
        self.p = p

    def prepare_relation(self, r: Tensor) -> Tensor:
        normal, moved = self.split(r, self.relation_parts)
        return torch.cat([unit(normal), moved], dim=-1)

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        normal, moved = self.split(r, self.relation_parts)
        way = h - t
        across = (way * normal).sum(-1, keepdim=True) * normal
        return -norm(way - across + moved, self.p)


@SCORE_FUNCTIONS.register("transh")
class TransH(DistanceModel):
    """-||h_w + r - t_w||_p, x_w = x - <w, x> w with |w| = 1. Wang et al., AAAI 2014.

    The paper squares the norm, with p = 2. Relations: normal, of any length but 0, and translation,
    2 * `embedding_size`. Normals start uniform in direction.
    """

    relation_initializers = (init_xavier_norm, init_KGE_uniform)

    @staticmethod
    def make_formula(dim: int, p: float) -> ScoreFormula:
        return HyperplaneDistance(dim, p)


class MappedDistance(PairScore):
    """-||c(h M) + r - c(t M)||_p, where c scales what is longer than 1 down to that."""

    def __init__(self, dim: int, p: float, relation_size: int) -> None:
        super().__init__(dim)
        self.relation_parts = (relation_size, dim * relation_size)  # translation, M row by row
        self.p, self.pair_width = p, relation_size

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        moved, matrix = self.split(r, self.relation_parts)
        h, t = (clamp_norm(row_times_matrix(x, matrix), self.p) for x in (h, t))
        return -norm(h + moved - t, self.p)


@SCORE_FUNCTIONS.register("transr")
class TransR(NamedScoreFunction):
    """-||h M + r - t M||_p, with h M and t M scaled down to a p-norm of 1. Lin et al., AAAI 2015.

    The paper squares the norm, with p = 2. Relations: translation, then M row by row, which is
    `relation_size` * (1 + `embedding_size`). M starts as the identity, as there.
    Arguments as for :class:`~besskge_core.scoring.models.DistanceModel`, and:

    Args:
        relation_size: width of the space of a relation; None: `embedding_size`.
    """

    relation_initializers = (init_KGE_uniform, init_identity)

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        relation_size: Optional[int] = None,
        inverse_relations: bool = False,
    ) -> None:
        if relation_initializer is None:
            identity = functools.partial(init_identity, n_row=embedding_size)
            relation_initializer = [init_KGE_uniform, identity]
        super().__init__(
            MappedDistance(embedding_size, scoring_norm, relation_size or embedding_size),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


class DynamicDistance(PairScore):
    """-||c(h') + r - c(t')||_p, where x' = x + <x_p, x> r_p and c scales down to length 1."""

    entity_parts = ("d", "d")  # entity, projection

    def __init__(self, dim: int, p: float, relation_size: int) -> None:
        super().__init__(dim)
        self.relation_parts = (relation_size, relation_size)  # translation, projection
        self.p, self.relation_size = p, relation_size

    def prepare_entity(self, e: Tensor) -> Tensor:
        e, projection = self.split(e, self.entity_parts)
        fitted = F.pad(e, [0, self.relation_size - self.dim])  # cut if that is negative
        return torch.cat([fitted, (projection * e).sum(-1, keepdim=True)], dim=-1)

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        moved, projection = self.split(r, self.relation_parts)
        h, t = (clamp_norm(x[..., :-1] + x[..., -1:] * projection, 2) for x in (h, t))
        return -norm(h + moved - t, self.p)


@SCORE_FUNCTIONS.register("transd")
class TransD(NamedScoreFunction):
    """-||h' + r - t'||_p, x' = x + <x_p, x> r_p of length 1 at most. Ji et al., ACL 2015.

    The paper squares the norm, with p = 2. Entities: entity, projection, 2 * `embedding_size`;
    relations: translation, projection, 2 * `relation_size`, to which x is cut or padded by zeros.
    Arguments as for :class:`~besskge_core.scoring.models.DistanceModel`, and:

    Args:
        relation_size: width of the space of a relation; None: `embedding_size`.
    """

    entity_initializers = relation_initializers = (init_KGE_uniform, init_KGE_uniform)

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        relation_size: Optional[int] = None,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            DynamicDistance(embedding_size, scoring_norm, relation_size or embedding_size),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip
