"""Score formulas: how plausible is a triple, given the rows of its head, relation and tail?

A formula owns no table and knows no shards. Whatever the side, a triple is scored in two steps:
what is known, an entity and a relation, becomes a *query*; the query is compared with entities of
the other side. Queries can travel between shards, and are made once for all that they meet.

A formula comes in one of two forms:

- :class:`QueryScore`: the relation moves one entity, and the result is compared with the other.
  Candidates shared by a batch cost one matrix product or one distance matrix.
- :class:`PairScore`: the relation acts on both entities, so nothing can be shared, and candidates
  are broadcast, a tile of them at a time.

Axes:
    B: triples scored together      N: candidates
    D: width of an entity row       R: width of a relation row      Q: width of a query
"""

from __future__ import annotations

import abc
from typing import List, Tuple, Union

import torch
from torch import Tensor, nn

from besskge_core.scoring.comparators import Comparator, Dot
from besskge_core.scoring.operators import Operator, Parts
from besskge_core.scoring.tiles import in_tiles

#: Whether heads are asked for, (?, r, t), rather than tails, (h, r, ?): of all queries, or
#: bool (B,) of each.
Heads = Union[bool, Tensor]


class ScoreFormula(nn.Module, abc.ABC):
    """Scores of triples and of candidates.

    Attributes:
        dim: width of one part of a row.
        entity_parts, relation_parts: the parts of a row, see `operators`.
        complex_entities, complex_relations: rows hold complex numbers, real half first.
        scores_heads: whether heads can be asked for.
    """

    entity_parts: Parts = ("d",)
    relation_parts: Parts = ("d",)
    complex_entities: bool = False
    complex_relations: bool = False
    scores_heads: bool = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def widths(self, parts: Parts) -> List[int]:
        """Width of each part."""
        return [self.dim if part == "d" else int(part) for part in parts]

    def split(self, row: Tensor, parts: Parts) -> Tuple[Tensor, ...]:
        """row (..., D) -> its parts."""
        return tuple(torch.split(row, self.widths(parts), dim=-1))

    def squared_moduli(self, h: Tensor, r: Tensor, t: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Squared modulus of each entry of the rows; of a complex entry, not of its two halves."""
        return (
            _squared(h, self.complex_entities),
            _squared(r, self.complex_relations),
            _squared(t, self.complex_entities),
        )

    def triples(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """h (B, D), r (B, R), t (B, D) -> (B)."""
        return self.rowwise(self.query(h, r, False), t, False)

    def relations(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Each pair of h and t (B, D) with each relation (M, R) -> (B, M)."""
        n_pair, n_relation = len(h), len(r)
        h, t = (x.repeat_interleave(n_relation, dim=0) for x in (h, t))
        return self.triples(h, r.repeat(n_pair, 1), t).view(n_pair, n_relation)

    @abc.abstractmethod
    def query(self, known: Tensor, r: Tensor, heads: Heads) -> Tensor:
        """known (B, D), tails where heads are asked for, else heads; r (B, R) -> (B, Q)."""

    @abc.abstractmethod
    def rowwise(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        """q (B, Q), e (B, D) -> (B)."""

    @abc.abstractmethod
    def pairwise(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        """q (B, Q), e (N, D), shared, or (B, N, D) -> (B, N)."""


class QueryScore(ScoreFormula):
    """compare(operator(h, r), t), which must equal compare(operator.adjoint(t, r), h)."""

    def __init__(self, operator: Operator, comparator: Comparator, dim: int) -> None:
        super().__init__(dim)
        self.operator, self.comparator = operator, comparator
        self.entity_parts = operator.entity_parts
        self.relation_parts = operator.relation_parts
        self.complex_entities = operator.complex_entities
        self.complex_relations = operator.complex_relations
        self.scores_heads = operator.scores_heads

    def query(self, known: Tensor, r: Tensor, heads: Heads) -> Tensor:
        if isinstance(heads, Tensor):
            back, forth = self.operator.adjoint(known, r), self.operator(known, r)
            return torch.where(heads.unsqueeze(-1), back, forth)
        query: Tensor = self.operator.adjoint(known, r) if heads else self.operator(known, r)
        return query

    def relations(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        if not (self.operator.is_linear and isinstance(self.comparator, Dot)):
            return super().relations(h, r, t)
        # What is linear in the relation is its inner product with the gradient: one product.
        with torch.enable_grad():
            zero = r.new_zeros(len(h), r.shape[1], requires_grad=True)
            score = self.triples(h, zero, t).sum()
            (slope,) = torch.autograd.grad(score, zero, create_graph=True)
        return slope @ r.T

    def rowwise(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        return self.comparator.rowwise(q, e)

    def pairwise(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        return self.comparator.pairwise(q, e)


class PairScore(ScoreFormula):
    """One broadcasting formula, `score`, serves triples, heads and tails.

    What is done to an entity or to a relation alone is done once a row, before the rows of a query
    are laid end to end and meet the candidates.

    Attributes:
        pair_width: numbers that `score` holds for a query and a candidate, where that is more than
            a prepared row of the candidate.
    """

    pair_width: int = 0

    @abc.abstractmethod
    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Prepared h (..., E), r (..., F), t (..., E) -> (...), leading axes broadcast."""

    def prepare_entity(self, e: Tensor) -> Tensor:
        """e (..., D) -> (..., E)."""
        return e

    def prepare_relation(self, r: Tensor) -> Tensor:
        """r (..., R) -> (..., F)."""
        return r

    def query(self, known: Tensor, r: Tensor, heads: Heads) -> Tensor:
        return torch.cat([self.prepare_entity(known), self.prepare_relation(r)], dim=-1)

    def rowwise(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        return self._score(q, self.prepare_entity(e), heads)

    def pairwise(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        q, e = q.unsqueeze(-2), self.prepare_entity(e)
        side = heads.unsqueeze(-1) if isinstance(heads, Tensor) else heads
        if e.dim() == 3:
            return self._score(q, e, side)
        width = max(e.shape[-1], self.pair_width)
        return in_tiles(lambda tile: self._score(q, tile, side), e, q.shape[0] * width)

    def _score(self, q: Tensor, e: Tensor, heads: Heads) -> Tensor:
        known, r = q.split([e.shape[-1], q.shape[-1] - e.shape[-1]], dim=-1)
        if isinstance(heads, Tensor):
            heads = heads.unsqueeze(-1)
            return self.score(torch.where(heads, e, known), r, torch.where(heads, known, e))
        return self.score(e, r, known) if heads else self.score(known, r, e)


def _squared(row: Tensor, is_complex: bool) -> Tensor:
    if not is_complex:
        return row * row
    re, im = row.chunk(2, -1)
    return re * re + im * im
