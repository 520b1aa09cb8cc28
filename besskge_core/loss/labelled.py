"""Losses of scores with labels, as PyKEEN users know them: one definition, three ways to call it.

- ``process_slcwa_scores``: positives, each with its negatives.
- ``process_lcwa_scores``: the scores of all entities, and labels that tell the true ones.
- ``sampled``: what :class:`~besskge_core.bess.BessKGE` calls with the scores of a micro-batch.

The one idea: a loss says what entries cost and which weight each has (:class:`~besskge_core.loss.entries.Part`). What is
common follows from that: weights, masks, reduction, `loss_scale`. An entry that is filtered, or
scores -inf with label 0, is excluded: it costs nothing, has no gradient and does not count.
Nothing to count makes 0, not NaN. All is computed in float32, or in float64 if the scores are, and
no argument is changed.

Axes:
    B: positives, or rows of labels      N: negatives of each      E: entities
"""

from __future__ import annotations

import abc
import math
from typing import ClassVar, List, Optional, Sequence

import torch
from torch import Tensor

from besskge_core.errors import ConfigError, UnsupportedLabelSmoothingError
from besskge_core.loss.base import LOSSES, Loss
from besskge_core.loss.entries import (
    Labelled,
    Samples,
    Smoothing,
    Term,
    column,
    dense,
    labelled,
    wide,
)
from besskge_core.loss.tiles import LossTile, Softmax, SoftmaxTile
from besskge_core.shapes import match_shapes

REDUCTIONS = ("mean", "sum")


class UnknownOptionError(ConfigError, KeyError):
    """An option has none of its values; a KeyError too, as it is in PyKEEN."""

    __str__ = Exception.__str__  # that of KeyError puts the message in quotes


class LabelledLoss(Loss):
    """Base of the losses of scores with labels.

    Args:
        reduction: "mean" or "sum". The mean is sum(w l) / sum(w) over the entries that count.
        loss_scale: factor of the loss.

    Attributes:
        smooths_samples, smooths_labels: whether labels can be smoothed, in the ways "sLCWA" and
            "LCWA".
        mean_over_number: the mean of `process_...` is sum(w l) / number, as torch does it.
        pairs: entries cost in pairs, so that a tile must know the scores of all positives.
        has_logits: what an entry costs depends on its share in a softmax, see :meth:`logits`.
    """

    smooths_samples: ClassVar[bool] = True
    smooths_labels: ClassVar[bool] = True
    mean_over_number: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    has_logits: ClassVar[bool] = False

    def __init__(self, reduction: str = "mean", loss_scale: float = 1.0) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise UnknownOptionError(f"unknown reduction {reduction!r}; expected {REDUCTIONS}")
        self.reduction, self.loss_scale = reduction, loss_scale

    @abc.abstractmethod
    def of_samples(self, samples: Samples, smoothing: Smoothing) -> Sequence[Term]:
        """What positives and negatives cost."""

    @abc.abstractmethod
    def of_labels(self, entries: Labelled, smoothing: Smoothing) -> Sequence[Term]:
        """What scores with labels cost; those of the tiles of a row add up to those of the row."""

    @abc.abstractmethod
    def counts(self, n_positive: Tensor, n_kept: Tensor) -> Sequence[Tensor]:
        """How much of rows with so many entries of label 1, and in all, a mean of each term counts.

        Args:
            n_positive, n_kept: (B, 1).

        Returns:
            (B, 1) for each term of :meth:`of_labels`.
        """

    def logits(self, entries: Labelled) -> Tensor:
        """(B, E), of whose shares in a softmax over each row the cost depends, -inf if of none."""
        raise NotImplementedError(f"{type(self).__name__} has no softmax")

    def process_slcwa_scores(
        self,
        positive_scores: Tensor,
        negative_scores: Tensor,
        label_smoothing: Optional[float] = None,
        batch_filter: Optional[Tensor] = None,
        num_entities: Optional[int] = None,
        pos_weights: Optional[Tensor] = None,
        neg_weights: Optional[Tensor] = None,
    ) -> Tensor:
        """The loss of positives and their negatives.

        Args:
            positive_scores: (B, 1) or (B,).
            negative_scores: (B, N), or (K,) those alone that the filter keeps, row by row.
            label_smoothing: 0 to 1; None: 0.
            batch_filter: bool (B, N), True keeps a negative.
            num_entities: classes of the pointwise losses, which need it for smoothing.
            pos_weights: (B, 1) or (B,), weights of the positives.
            neg_weights: (B, N) or (K,), weights of the negatives.

        Returns:
            (), float32 or float64.
        """
        dtype = wide(positive_scores, negative_scores)
        positive = column(positive_scores, "positive_scores").to(dtype)
        negative = dense(negative_scores.to(dtype), batch_filter, "negative_scores")
        match_shapes(positive_scores=(positive, "B 1"), negative_scores=(negative, "B N"))
        kept = negative != -math.inf
        if batch_filter is not None:
            match_shapes(negative_scores=(negative, "B N"), batch_filter=(batch_filter, "B N"))
            kept = kept & batch_filter.bool()
        samples = Samples(positive, negative, kept)
        if pos_weights is not None:
            weight = column(pos_weights, "pos_weights").to(dtype)
            match_shapes(positive_scores=(positive, "B 1"), pos_weights=(weight, "B 1"))
            samples = samples._replace(positive_weight=weight)
        if neg_weights is not None:
            weight = dense(neg_weights.to(dtype), batch_filter, "neg_weights")
            match_shapes(negative_scores=(negative, "B N"), neg_weights=(weight, "B N"))
            samples = samples._replace(negative_weight=weight)
        smoothing = self._smoothing(label_smoothing, num_entities, self.smooths_samples)
        return self._reduce(self.of_samples(samples, smoothing), self.mean_over_number)

    def process_lcwa_scores(
        self,
        predictions: Tensor,
        labels: Tensor,
        label_smoothing: Optional[float] = None,
        num_entities: Optional[int] = None,
        weights: Optional[Tensor] = None,
    ) -> Tensor:
        """The loss of the scores of all entities.

        Args:
            predictions: (B, E).
            labels: (B, E), bool or any number; or (B,), integers, the only true column of a row.
            label_smoothing, num_entities: see :meth:`process_slcwa_scores`.
            weights: (B, E), or (B, 1) or (B,) of rows.

        Returns:
            (), float32 or float64.
        """
        entries = labelled(predictions, labels)
        if weights is not None:
            weight = weights.to(entries.score.dtype)
            if weight.dim() == 1 or weight.shape[-1] == 1:
                weight = column(weight, "weights")
                match_shapes(predictions=(predictions, "B E"), weights=(weight, "B 1"))
                entries = entries._replace(row_weight=weight)
            else:
                match_shapes(predictions=(predictions, "B E"), weights=(weight, "B E"))
                entries = entries._replace(weight=weight)
        smoothing = self._smoothing(label_smoothing, num_entities, self.smooths_labels)
        return self._reduce(self.of_labels(entries, smoothing), self.mean_over_number)

    def sampled(
        self,
        positive_score: Tensor,
        negative_score: Tensor,
        triple_weight: Tensor,
        n_negative: Optional[Tensor] = None,
    ) -> Tensor:
        """The loss of a micro-batch; all that belongs to a positive has its weight.

        Args, Returns: see :meth:`Loss.sampled`; the scores tell `n_negative` already.
        """
        match_shapes(positive_score=(positive_score, "B"), negative_score=(negative_score, "B N"))
        dtype = wide(positive_score, negative_score)
        positive, negative = positive_score.to(dtype).unsqueeze(1), negative_score.to(dtype)
        weight = triple_weight.to(dtype).reshape(-1, 1)
        if weight.shape[0] != 1:
            match_shapes(positive_score=(positive, "B 1"), triple_weight=(weight, "B 1"))
        samples = Samples(
            positive, negative, negative != -math.inf, row_weight=weight.expand_as(positive)
        )
        return self._reduce(self.of_samples(samples, Smoothing()), in_number=False)

    # -- the same a tile of the columns at a time ------------------------------------------------------

    def sizes(self, n_positive: Tensor, n_kept: Tensor, row_weight: Tensor) -> List[Tensor]:
        """What the sums of each term are divided by, of rows (B, 1) each; add those of all rows up."""
        if self.reduction == "sum":
            return []
        return [(row_weight * x).sum() for x in self.counts(n_positive, n_kept)]

    def of_tile(self, entries: Labelled, smoothing: Smoothing, sizes: Sequence[Tensor]) -> Tensor:
        """The share, (), of a tile in the loss of all entries.

        Args:
            entries: with what is known of their rows.
            smoothing: of the labels.
            sizes: those of all rows, see :meth:`sizes`.
        """
        terms = self.of_labels(entries, smoothing)
        total = torch.zeros((), dtype=entries.score.dtype, device=entries.score.device)
        for i, term in enumerate(terms):
            of_term = torch.stack([part.total() for part in term.parts]).sum()
            total = total + term.factor * (of_term / sizes[i] if sizes else of_term)
        return self.loss_scale * total

    def tile(self, entries: Labelled, smoothing: Smoothing) -> LossTile:
        """A tile of rows."""
        softmax = self.softmax(smoothing)
        if softmax is not None:
            return SoftmaxTile(self, entries, smoothing, softmax)
        return LossTile(self, entries, smoothing)

    def softmax(self, smoothing: Smoothing) -> Optional[Softmax]:
        """What this makes of scores if it is the cross-entropy of labels as places; else None."""
        return None

    def smoothing(self, epsilon: Optional[float], n_entity: Optional[int]) -> Smoothing:
        """How labels of all entities are smoothed.

        Raises:
            UnsupportedLabelSmoothingError: this loss has none.
        """
        return self._smoothing(epsilon, n_entity, self.smooths_labels)

    def _smoothing(
        self, epsilon: Optional[float], n_entity: Optional[int], supported: bool
    ) -> Smoothing:
        if not epsilon:
            return Smoothing()
        if not supported:
            raise UnsupportedLabelSmoothingError(
                f"{type(self).__name__} does not support label smoothing here; pass None"
            )
        if not 0.0 <= epsilon <= 1.0:
            raise ConfigError(f"label_smoothing must be between 0 and 1, got {epsilon}")
        return Smoothing(epsilon, n_entity)

    def _reduce(self, terms: Sequence[Term], in_number: bool) -> Tensor:
        loss = sum(term.factor * self._of_term(term, in_number) for term in terms)
        return self.loss_scale * torch.as_tensor(loss)

    def _of_term(self, term: Term, in_number: bool) -> Tensor:
        total = torch.stack([part.total() for part in term.parts]).sum()
        if self.reduction == "sum":
            return total
        size = torch.stack([part.size(in_number) for part in term.parts]).sum()
        # Not a small eps: its inverse, times the gradient, can be inf, and inf times 0 is NaN.
        return total / torch.where(size > 0.0, size, torch.ones_like(size))


def labelled_losses() -> List[str]:
    """Names of the losses of scores with labels."""
    return [name for name in LOSSES if issubclass(LOSSES[name], LabelledLoss)]
