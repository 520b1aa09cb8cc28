"""What a loss with labels is put together from: entries, what they cost, and their weights.

Axes:
    B: positives, or rows of labels      N: negatives of each      E: entities
"""

from __future__ import annotations

import functools
import math
import operator
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from besskge_core.errors import ConfigError, ShapeError
from besskge_core.shapes import match_shapes


class Part(NamedTuple):
    """Entries that cost something.

    Args:
        cost: finite, of any shape.
        kept: bool, of the same shape; False leaves an entry out. None: all count.
        weight: broadcasts to `cost`. None: 1.
        counts: whether the entries count in a mean, and are not counted in another part already.
    """

    cost: Tensor
    kept: Optional[Tensor] = None
    weight: Optional[Tensor] = None
    counts: bool = True

    def total(self) -> Tensor:
        """The weighted sum of the costs, ()."""
        cost = self.cost if self.kept is None else self.cost.masked_fill(~self.kept, 0.0)
        return cost.sum() if self.weight is None else (self.weight * cost).sum()

    def size(self, in_number: bool) -> Tensor:
        """The sum of the weights, or the number of entries, ()."""
        if not self.counts:
            return self.cost.new_zeros(())
        if self.weight is not None and not in_number:
            weight = self.weight.expand_as(self.cost)
            return (weight if self.kept is None else weight.masked_fill(~self.kept, 0.0)).sum()
        if self.kept is not None:
            return self.kept.sum().to(self.cost.dtype)
        return self.cost.new_full((), self.cost.numel())


class Term(NamedTuple):
    """Parts that are reduced together, and the factor of the result in the loss."""

    parts: Tuple[Part, ...]
    factor: float = 1.0


class Samples(NamedTuple):
    """Positives and their negatives.

    Args:
        positive: (B, 1).
        negative: (B, N).
        kept: bool (B, N), False excludes a negative, whose score may then be anything.
        positive_weight: (B, 1).
        negative_weight: (B, N).
        row_weight: (B, 1), of a positive and all that belongs to it.
    """

    positive: Tensor
    negative: Tensor
    kept: Tensor
    positive_weight: Optional[Tensor] = None
    negative_weight: Optional[Tensor] = None
    row_weight: Optional[Tensor] = None

    def filled(self) -> Tensor:
        """The negatives, 0 where excluded: finite, and without gradient there."""
        return self.negative.masked_fill(~self.kept, 0.0)


class Rows(NamedTuple):
    """What is known of whole rows, where entries are but a tile of their columns.

    Args:
        n_positive: (B, 1), labels of 1; there are no others but 0.
        n_kept: (B, 1), entries that are not excluded.
        log_total: (B, 1), log-sum-exp of :meth:`LabelledLoss.logits`, without gradient, for the
            losses that have them.
        pairs: rows (K,) and scores (K,) of all entries of label 1, for losses of pairs.
    """

    n_positive: Tensor
    n_kept: Tensor
    log_total: Optional[Tensor] = None
    pairs: Optional[Tuple[Tensor, Tensor]] = None


class Labelled(NamedTuple):
    """Scores with labels.

    Args:
        score: (B, E).
        label: (B, E), bool or any number; None: see `places`.
        excluded: bool, broadcasts to (B, E), entries of label 0 that do not count. None: none.
        weight: (B, E).
        row_weight: (B, 1), of all that belongs to a row.
        places: rows (K,) and columns (K,) of the labels, which are all 1; None: see `label`.
        rows: of the rows that these entries are a tile of; None: they are whole.
    """

    score: Tensor
    label: Optional[Tensor] = None
    excluded: Optional[Tensor] = None
    weight: Optional[Tensor] = None
    row_weight: Optional[Tensor] = None
    places: Optional[Tuple[Tensor, Tensor]] = None
    rows: Optional[Rows] = None

    @property
    def labels(self) -> Tensor:
        """(B, E), whichever way they are given."""
        if self.label is not None:
            return self.label
        assert self.places is not None
        ones = torch.zeros_like(self.score, dtype=torch.bool)
        return ones.index_put_(self.places, torch.ones_like(self.places[0], dtype=torch.bool))

    @property
    def weights(self) -> Optional[Tensor]:
        """Of the entries, with that of the row: broadcasts to (B, E)."""
        return product(self.row_weight, self.weight)

    @property
    def kept(self) -> Optional[Tensor]:
        """bool (B, E), False for what is excluded; None: all count."""
        return None if self.excluded is None else ~self.excluded.expand_as(self.score)

    def filled(self, value: float = 0.0) -> Tensor:
        """The scores, and a value where excluded."""
        if self.excluded is None:
            return self.score
        return self.score.masked_fill(self.excluded, value)

    def at(self, weights: Optional[Tensor]) -> Optional[Tensor]:
        """Weights that broadcast to (B, E), at the places (K,)."""
        assert self.places is not None
        return None if weights is None else weights.expand_as(self.score)[self.places]


class Smoothing(NamedTuple):
    """How much labels are smoothed, and the number of classes that share it."""

    epsilon: float = 0.0
    n_entity: Optional[int] = None

    def smooth(self, label: Tensor | float) -> Tensor | float:
        """(1 - e) y + e / (C - 1) (1 - y): what is taken from one class goes to the others."""
        if not self.epsilon:
            return label
        if self.n_entity is None or self.n_entity < 2:
            raise ConfigError(
                f"label smoothing needs num_entities, at least 2, but got {self.n_entity}"
            )
        share = self.epsilon / (self.n_entity - 1)
        return (1.0 - self.epsilon) * label + share * (1.0 - label)


def product(*weights: Optional[Tensor]) -> Optional[Tensor]:
    """The product of those weights that there are."""
    given = [w for w in weights if w is not None]
    return functools.reduce(operator.mul, given) if given else None


def wide(*scores: Tensor) -> torch.dtype:
    """The type to compute in: float32, or float64 if a score is."""
    return functools.reduce(torch.promote_types, [x.dtype for x in scores], torch.float32)


def column(x: Tensor, name: str) -> Tensor:
    """(B,) or (B, 1) -> (B, 1)"""
    if x.dim() == 1:
        return x.unsqueeze(1)
    match_shapes(**{name: (x, "B 1")})
    return x


def dense(x: Tensor, batch_filter: Optional[Tensor], name: str) -> Tensor:
    """Put what the filter has kept, (K,), back into (B, N), zeros elsewhere."""
    if x.dim() != 1:
        return x
    n_kept = None if batch_filter is None else int(batch_filter.sum())
    if batch_filter is None or n_kept != x.shape[0]:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, which needs a batch_filter (B, N) that keeps as"
            f" many, but {'there is none' if n_kept is None else f'it keeps {n_kept}'}"
        )
    return x.new_zeros(batch_filter.shape).masked_scatter(batch_filter.bool(), x)


def labelled(predictions: Tensor, labels: Tensor) -> Labelled:
    """Scores (B, E) with labels (B, E), or integers (B,): the only true column of each row."""
    score = predictions.to(wide(predictions))
    if labels.dim() != 1 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        match_shapes(predictions=(predictions, "B E"), labels=(labels, "B E"))
        return Labelled(score, labels, (score == -math.inf) & ~labels.bool())
    match_shapes(predictions=(predictions, "B E"), labels=(labels, "B"))
    places = torch.arange(len(labels), device=labels.device), labels.long()
    entries = Labelled(score, places=places)
    return entries._replace(excluded=(score == -math.inf) & ~entries.labels)
