"""Score formulas: how plausible is a triple, given the rows of its head, relation and tail?

A formula owns no table and knows no shards. It comes in one of two forms:

- :class:`QueryScore`: the relation moves one entity, and the result (the query) is compared with
  the other. Candidates shared by a batch cost one matrix product or one distance matrix.
- :class:`PairScore`: the relation acts on both entities, so nothing can be shared, and
  candidates are broadcast.

Axes:
    B: triples scored together      N: candidates
    D: width of an entity row       R: width of a relation row
"""

from __future__ import annotations

import abc
from typing import List, Tuple

import torch
from torch import Tensor, nn

from besskge_core.scoring.comparators import Comparator
from besskge_core.scoring.operators import Operator, Parts


class ScoreFormula(nn.Module, abc.ABC):
    """Scores of triples and of candidates.

    Attributes:
        dim: width of one part of a row.
        entity_parts, relation_parts: the parts of a row, see `operators`.
        complex_entities, complex_relations: rows hold complex numbers, real half first.
        materializes: scoring shared candidates holds a row for each score, not a number.
    """

    entity_parts: Parts = ("d",)
    relation_parts: Parts = ("d",)
    complex_entities: bool = False
    complex_relations: bool = False
    materializes: bool = False

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

    @abc.abstractmethod
    def triples(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """h (B, D), r (B, R), t (B, D) -> (B)."""

    @abc.abstractmethod
    def heads(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Candidates h, (N, D) shared or (B, N, D); r (B, R), t (B, D) -> (B, N)."""

    @abc.abstractmethod
    def tails(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Candidates t, (N, D) shared or (B, N, D); h (B, D), r (B, R) -> (B, N)."""


class QueryScore(ScoreFormula):
    """compare(operator(h, r), t), which must equal compare(operator.adjoint(t, r), h)."""

    def __init__(self, operator: Operator, comparator: Comparator, dim: int) -> None:
        super().__init__(dim)
        self.operator, self.comparator = operator, comparator
        self.entity_parts = operator.entity_parts
        self.relation_parts = operator.relation_parts
        self.complex_entities = operator.complex_entities
        self.complex_relations = operator.complex_relations
        self.materializes = comparator.materializes

    def triples(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.comparator.rowwise(self.operator(h, r), t)

    def tails(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.comparator.pairwise(self.operator(h, r), t)

    def heads(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.comparator.pairwise(self.operator.adjoint(t, r), h)


class PairScore(ScoreFormula):
    """One broadcasting formula, `score`, serves triples, heads and tails."""

    materializes = True

    @abc.abstractmethod
    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """h (..., D), r (..., R), t (..., D) -> (...), leading axes broadcast."""

    def triples(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.score(h, r, t)

    def tails(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.score(h.unsqueeze(-2), r.unsqueeze(-2), t)

    def heads(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.score(h, r.unsqueeze(-2), t.unsqueeze(-2))


def _squared(row: Tensor, is_complex: bool) -> Tensor:
    if not is_complex:
        return row * row
    re, im = row.chunk(2, -1)
    return re * re + im * im
